// SPDX-License-Identifier: Apache-2.0
/*
 * The clock of a program under test, linked with --wrap=clock_gettime: milliseconds in the file that
 * RELAY_CLOCK names, which the test moves. Without RELAY_CLOCK it is the system's.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

int __real_clock_gettime(clockid_t which, struct timespec *time);
int __wrap_clock_gettime(clockid_t which, struct timespec *time);

int __wrap_clock_gettime(clockid_t which, struct timespec *time)
{
	static const volatile int64_t *held;
	const char *path = getenv("RELAY_CLOCK");

	if (!path)
		return __real_clock_gettime(which, time);
	if (!held) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		void *page = mmap(NULL, sizeof(*held), PROT_READ, MAP_SHARED, fd, 0);

		if (fd < 0 || page == MAP_FAILED)
			abort();
		held = page;
	}
	time->tv_sec = *held / 1000;
	time->tv_nsec = *held % 1000 * 1000000;
	return 0;
}
