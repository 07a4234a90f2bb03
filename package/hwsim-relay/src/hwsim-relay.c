// SPDX-License-Identifier: Apache-2.0
/*
 * hwsim-relay - carry mac80211_hwsim netlink messages over a port to the host
 *
 * The stream on the port is described in PROTOCOL.md. The relay holds no
 * state of the simulated radios: it frames messages, bounds queues, counts
 * what it has to drop, and keeps the host from reaching any netlink family
 * other than MAC80211_HWSIM. Of nl80211 it asks one thing itself: what
 * interfaces there are, for their transmit power, of which hwsim says nothing.
 */
#define _GNU_SOURCE

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <linux/nl80211.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

/* The tests build the relay for a family that every kernel has. */
#ifndef RELAY_FAMILY
#define RELAY_FAMILY "MAC80211_HWSIM"
#endif
#ifndef RELAY_ASKED
#define RELAY_ASKED "nl80211"
#define RELAY_ASKS NL80211_CMD_GET_INTERFACE
#endif
#ifndef RELAY_PORTS
#define RELAY_PORTS "/sys/class/virtio-ports"
#endif
#ifndef RELAY_DEV
#define RELAY_DEV "/dev"
#endif

#define PROTOCOL_VERSION 1
#define FRAME_MAX 65536U	/* largest value of a frame's length field */
#define HEADER 5U		/* length and kind */
#define HELLO_SIZE 24U		/* a HELLO without counters, length field included */
#define STALL_MS 1000		/* patience with an incomplete frame */
#define IN_SIZE (4U + FRAME_MAX + 32768U)
#define OUT_SIZE (256U * 1024U)
#define OUT_CHUNK 32768U	/* what virtio_console takes in one write() */
#define NL_SLOTS 16		/* netlink datagrams read in one system call */
#define NL_SLOT 8192U		/* NLMSG_GOODSIZE is 8 KiB at most */
#define NL_RCVBUF (8 * 1024 * 1024)
#define BATCH 64		/* messages handed to the kernel in one system call */

enum kind { KIND_NETLINK, KIND_HELLO, KIND_STATS, KIND_ERROR };

enum exit_status {
	EXIT_USAGE = 2,
	EXIT_NO_PORT = 3,
	EXIT_NO_FAMILY = 4,
	EXIT_PORT = 5,
	EXIT_SYSTEM = 6,
};

/* The order is part of the protocol. */
enum counter {
	TO_KERNEL,
	TO_HOST,
	SESSIONS,
	QUEUE_FULL,
	OVERRUNS,
	TRUNCATED,
	FOREIGN,
	REFUSED,
	SEND_ERRORS,
	BAD_FRAMES,
	STALLS,
	SKIPPED_BYTES,
	DISCARDED_BYTES,
	COUNTERS
};

struct hello {
	uint32_t length;
	uint8_t kind;
	uint8_t version;
	uint16_t family;
	uint8_t magic[8];
	uint64_t nonce;
};

_Static_assert(sizeof(struct hello) == HELLO_SIZE, "the HELLO has no padding");

static const uint8_t magic[8] = { 'H', 'W', 'S', 'I', 'M', 'R', 'L', 'Y' };

static uint64_t counters[COUNTERS];
static int port = -1;
static int nl = -1;		/* open exactly while there is a session */
static int ep = -1;
static uint16_t family;
static uint16_t asked;		/* the family whose interfaces the host is told of; 0: none */
static bool greet = true;	/* the host does not know yet that we have no session */
static volatile sig_atomic_t ending;

static uint8_t in[IN_SIZE];
static size_t in_len;
static uint8_t out[OUT_SIZE];
static size_t out_head, out_tail;

static struct iovec batch[2 * BATCH];
static unsigned int batch_parts, batch_messages;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void die(int status, const char *format, ...)
	__attribute__((format(printf, 2, 3), noreturn));

static void vsay(const char *format, va_list args)
{
	fputs("hwsim-relay: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
}

static void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsay(format, args);
	va_end(args);
}

static void die(int status, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsay(format, args);
	va_end(args);
	exit(status);
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- to the host ------------------------------------------------------ */

/* Room for one more frame with a body of @size bytes, or NULL: counted. */
static uint8_t *queue_frame(enum kind kind, size_t size)
{
	uint32_t length = htole32((uint32_t)(1 + size));
	uint8_t *frame;

	if (OUT_SIZE - out_tail < HEADER + size && out_head) {
		memmove(out, out + out_head, out_tail - out_head);
		out_tail -= out_head;
		out_head = 0;
	}
	if (OUT_SIZE - out_tail < HEADER + size) {
		counters[QUEUE_FULL]++;
		return NULL;
	}
	frame = out + out_tail;
	memcpy(frame, &length, sizeof(length));
	frame[4] = (uint8_t)kind;
	out_tail += HEADER + size;
	return frame + HEADER;
}

static void put_counters(uint8_t *to)
{
	for (int i = 0; i < COUNTERS; i++) {
		uint64_t value = htole64(counters[i]);

		memcpy(to + 8 * i, &value, sizeof(value));
	}
}

static void queue_error(int error, const char *text)
{
	uint32_t number = htole32((uint32_t)error);
	uint8_t *body = queue_frame(KIND_ERROR, sizeof(number) + strlen(text));

	if (!body)
		return;
	memcpy(body, &number, sizeof(number));
	memcpy(body + sizeof(number), text, strlen(text));
}

static void queue_hello(uint64_t nonce)
{
	struct hello hello = {
		.kind = KIND_HELLO,
		.version = PROTOCOL_VERSION,
		.family = htole16(family),
		.nonce = nonce,
	};
	uint8_t *body = queue_frame(KIND_HELLO, HELLO_SIZE - HEADER + 8 * COUNTERS);

	if (!body)
		return;
	memcpy(hello.magic, magic, sizeof(magic));
	memcpy(body, (uint8_t *)&hello + HEADER, HELLO_SIZE - HEADER);
	put_counters(body + HELLO_SIZE - HEADER);
}

static void queue_stats(void)
{
	uint8_t *body = queue_frame(KIND_STATS, 8 * COUNTERS);

	if (body)
		put_counters(body);
}

static void discard_queue(void)
{
	counters[DISCARDED_BYTES] += out_tail - out_head;
	out_head = 0;
	out_tail = 0;
}

static void write_port(void)
{
	while (out_head < out_tail) {
		size_t size = out_tail - out_head;
		ssize_t done;

		/* One write() is one virtio buffer and one exit of the machine. */
		done = write(port, out + out_head, size < OUT_CHUNK ? size : OUT_CHUNK);
		if (done > 0)
			out_head += (size_t)done;
		else if (done < 0 && errno == EINTR)
			continue;
		else if (done < 0 && errno != EAGAIN)
			die(EXIT_PORT, "writing to the port failed: %s", strerror(errno));
		else
			return;	/* the next edge of EPOLLOUT continues */
	}
	out_head = 0;
	out_tail = 0;
}

/* ---- kernel ----------------------------------------------------------- */

static void close_session(void)
{
	if (nl >= 0)
		close(nl);	/* takes itself out of the epoll set */
	nl = -1;
	batch_parts = 0;
	batch_messages = 0;
}

static int open_netlink(void)
{
	struct sockaddr_nl self = { .nl_family = AF_NETLINK };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_GENERIC);
	int size = NL_RCVBUF;
	int one = 1;

	if (fd < 0 || bind(fd, (struct sockaddr *)&self, sizeof(self)) < 0)
		die(EXIT_SYSTEM, "no generic netlink socket: %s", strerror(errno));
	/* Bursts of frames must not be lost while the machine is busy. */
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) < 0) {
		say("small netlink buffer, hwsim needs CAP_NET_ADMIN: %s", strerror(errno));
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	}
	if (setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof(one)) < 0 ||
	    setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof(one)) < 0)
		die(EXIT_SYSTEM, "the kernel lacks short netlink errors: %s", strerror(errno));
	return fd;
}

/* CTRL_CMD_GETFAMILY; the kernel has answered when send() returns. */
static uint16_t find_family(int fd, const char *name)
{
	struct {
		struct nlmsghdr header;
		struct genlmsghdr genl;
		struct nlattr attribute;
		char name[GENL_NAMSIZ];
	} request = {
		.header = {
			.nlmsg_len = sizeof(request),
			.nlmsg_type = GENL_ID_CTRL,
			.nlmsg_flags = NLM_F_REQUEST,
		},
		.genl = { .cmd = CTRL_CMD_GETFAMILY, .version = 1 },
		.attribute = {
			.nla_len = NLA_HDRLEN + sizeof(request.name),
			.nla_type = CTRL_ATTR_FAMILY_NAME,
		},
	};
	static uint8_t reply[NL_SLOT];
	struct nlmsghdr header;
	struct nlattr attribute;
	uint16_t id;
	ssize_t size;
	size_t at;

	snprintf(request.name, sizeof(request.name), "%s", name);
	if (send(fd, &request, sizeof(request), 0) < 0)
		die(EXIT_SYSTEM, "asking for the family failed: %s", strerror(errno));
	size = recv(fd, reply, sizeof(reply), 0);
	if (size < (ssize_t)sizeof(header))
		die(EXIT_SYSTEM, "no answer about the family: %s", strerror(errno));
	memcpy(&header, reply, sizeof(header));
	if (header.nlmsg_type != GENL_ID_CTRL)
		return 0;
	for (at = NLMSG_HDRLEN + GENL_HDRLEN; at + NLA_HDRLEN <= (size_t)size;
	     at += NLA_ALIGN(attribute.nla_len)) {
		memcpy(&attribute, reply + at, sizeof(attribute));
		if (attribute.nla_len < NLA_HDRLEN || at + attribute.nla_len > (size_t)size)
			break;
		if (attribute.nla_type == CTRL_ATTR_FAMILY_ID &&
		    attribute.nla_len == NLA_HDRLEN + sizeof(id)) {
			memcpy(&id, reply + at + NLA_HDRLEN, sizeof(id));
			return id;
		}
	}
	return 0;
}

static void open_session(uint64_t nonce)
{
	struct epoll_event event = { .events = EPOLLIN };

	close_session();
	discard_queue();
	nl = open_netlink();
	family = find_family(nl, RELAY_FAMILY);
	asked = find_family(nl, RELAY_ASKED);
	if (!family) {
		queue_error(ENOENT, "the kernel has no " RELAY_FAMILY " family: load the module");
		write_port();
		die(EXIT_NO_FAMILY, "the kernel has no %s family: load the module", RELAY_FAMILY);
	}
	event.data.fd = nl;
	if (epoll_ctl(ep, EPOLL_CTL_ADD, nl, &event) < 0)
		die(EXIT_SYSTEM, "epoll: %s", strerror(errno));
	counters[SESSIONS]++;
	greet = false;
	queue_hello(nonce);
}

/* A datagram can hold several messages; each becomes a frame of its own. */
static void take_datagram(const uint8_t *data, size_t size)
{
	while (size >= sizeof(struct nlmsghdr)) {
		uint32_t length;
		uint8_t *body;

		memcpy(&length, data, sizeof(length));
		if (length < sizeof(struct nlmsghdr) || length > size)
			return;
		body = queue_frame(KIND_NETLINK, length);
		if (body) {
			memcpy(body, data, length);
			counters[TO_HOST]++;
		}
		if (NLMSG_ALIGN(length) >= size)
			return;
		data += NLMSG_ALIGN(length);
		size -= NLMSG_ALIGN(length);
	}
}

static void read_netlink(void)
{
	static uint8_t slots[NL_SLOTS][NL_SLOT] __attribute__((aligned(8)));
	struct mmsghdr messages[NL_SLOTS];
	struct sockaddr_nl from[NL_SLOTS];
	struct iovec parts[NL_SLOTS];
	int count = NL_SLOTS;

	memset(messages, 0, sizeof(messages));
	memset(from, 0, sizeof(from));
	for (int i = 0; i < NL_SLOTS; i++) {
		parts[i].iov_base = slots[i];
		parts[i].iov_len = NL_SLOT;
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
		messages[i].msg_hdr.msg_name = &from[i];
	}
	while (count == NL_SLOTS && nl >= 0) {
		for (int i = 0; i < NL_SLOTS; i++)
			messages[i].msg_hdr.msg_namelen = sizeof(from[i]);
		count = recvmmsg(nl, messages, NL_SLOTS, MSG_DONTWAIT, NULL);
		if (count < 0 && (errno == ENOBUFS || errno == EINTR)) {
			counters[OVERRUNS] += errno == ENOBUFS;
			count = NL_SLOTS;
			continue;
		}
		if (count < 0 && errno != EAGAIN)
			die(EXIT_SYSTEM, "reading netlink failed: %s", strerror(errno));
		for (int i = 0; i < count; i++) {
			if (from[i].nl_pid)
				counters[FOREIGN]++;
			else if (messages[i].msg_hdr.msg_flags & MSG_TRUNC)
				counters[TRUNCATED]++;
			else
				take_datagram(slots[i], messages[i].msg_len);
		}
		/* Without this a flood would fill the queue before any of it left. */
		if (out_tail - out_head >= OUT_CHUNK)
			write_port();
	}
}

static void flush_batch(void)
{
	struct msghdr message = { .msg_iov = batch, .msg_iovlen = batch_parts };
	ssize_t done;

	if (!batch_messages)
		return;
	do {
		done = sendmsg(nl, &message, 0);
	} while (done < 0 && errno == EINTR);
	if (done < 0) {
		counters[SEND_ERRORS] += batch_messages;
		queue_error(errno, "the netlink socket did not take messages");
	} else {
		counters[TO_KERNEL] += batch_messages;
	}
	batch_parts = 0;
	batch_messages = 0;
	/* Acknowledgements are there by now: save a turn of the main loop. */
	read_netlink();
}

/* The kernel's answers are for the host: it is told of all interfaces. */
static void ask_interfaces(void)
{
	struct {
		struct nlmsghdr header;
		struct genlmsghdr genl;
	} request = {
		.header = {
			.nlmsg_len = sizeof(request),
			.nlmsg_type = asked,
			.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
		},
		.genl = { .cmd = RELAY_ASKS },
	};

	/* One that fails is repeated with the host's next request. */
	if (asked && send(nl, &request, sizeof(request), 0) >= 0)
		read_netlink();	/* to the end of the dump: the host may want one of its own */
}

/* ---- from the host ---------------------------------------------------- */

static void take_netlink(uint8_t *data, size_t size)
{
	static uint8_t padding[NLMSG_ALIGNTO];
	struct nlmsghdr header;

	if (size < sizeof(header)) {
		counters[REFUSED]++;
		queue_error(EINVAL, "refused: shorter than a netlink header");
		return;
	}
	memcpy(&header, data, sizeof(header));
	if (header.nlmsg_len != size) {
		counters[REFUSED]++;
		queue_error(EINVAL, "refused: nlmsg_len is not the size of the message");
		return;
	}
	if (header.nlmsg_type != family) {
		counters[REFUSED]++;
		queue_error(EPERM, "refused: not a message of the " RELAY_FAMILY " family");
		return;
	}
	batch[batch_parts].iov_base = data;
	batch[batch_parts++].iov_len = size;
	if (NLMSG_ALIGN(size) > size) {
		batch[batch_parts].iov_base = padding;
		batch[batch_parts++].iov_len = NLMSG_ALIGN(size) - size;
	}
	if (++batch_messages == BATCH)
		flush_batch();
}

/* @frame is at least HELLO_SIZE long, length field included. */
static bool is_hello(const uint8_t *frame)
{
	uint32_t length;

	memcpy(&length, frame, sizeof(length));
	return le32toh(length) == HELLO_SIZE - 4 && frame[4] == KIND_HELLO &&
	       !memcmp(frame + offsetof(struct hello, magic), magic, sizeof(magic));
}

static void take_hello(const uint8_t *frame)
{
	struct hello hello;

	memcpy(&hello, frame, sizeof(hello));
	if (hello.version != PROTOCOL_VERSION) {
		close_session();
		queue_error(EPROTONOSUPPORT, "this relay speaks version 1 of the protocol");
		return;
	}
	open_session(hello.nonce);
}

static void lose_session(const char *reason)
{
	flush_batch();
	close_session();
	queue_error(EPROTO, reason);
	greet = true;
}

/* Without a session: skip to the next HELLO. Returns the bytes used up. */
static size_t search_hello(const uint8_t *data, size_t size)
{
	size_t at;

	for (at = 0; at + HELLO_SIZE <= size; at++) {
		if (is_hello(data + at)) {
			counters[SKIPPED_BYTES] += at;
			take_hello(data + at);
			return at + HELLO_SIZE;
		}
	}
	counters[SKIPPED_BYTES] += at;
	return at;
}

/* One frame of a session. Returns the bytes used up, 0: incomplete. */
static size_t take_frame(uint8_t *data, size_t size)
{
	uint32_t length;

	if (size < HEADER)
		return 0;
	memcpy(&length, data, sizeof(length));
	length = le32toh(length);
	if (!length || length > FRAME_MAX || data[4] > KIND_STATS) {
		counters[BAD_FRAMES]++;
		lose_session("lost the framing, send HELLO");
		return 0;
	}
	if (size - 4 < length)
		return 0;
	if (data[4] == KIND_NETLINK) {
		take_netlink(data + HEADER, length - 1);
		return 4 + length;
	}
	flush_batch();
	if (data[4] == KIND_STATS) {
		ask_interfaces();
		queue_stats();
	} else if (length == HELLO_SIZE - 4 && is_hello(data)) {
		take_hello(data);
	} else {
		counters[BAD_FRAMES]++;
		lose_session("a HELLO without sense, send HELLO");
		return 0;
	}
	return 4 + length;
}

static void take_input(void)
{
	size_t at = 0;

	for (;;) {
		bool session = nl >= 0;
		size_t used;

		if (session)
			used = take_frame(in + at, in_len - at);
		else
			used = search_hello(in + at, in_len - at);
		at += used;
		/* Nothing used up although in the same state: more must arrive. */
		if (!used && session == (nl >= 0))
			break;
	}
	if (nl >= 0)
		flush_batch();	/* refers to the buffer that moves now */
	memmove(in, in + at, in_len - at);
	in_len -= at;
}

/* Read until EAGAIN, as an edge-triggered descriptor must be. */
static void read_port(void)
{
	for (;;) {
		ssize_t size = read(port, in + in_len, IN_SIZE - in_len);

		if (size < 0 && errno == EINTR)
			continue;
		if (size < 0 && errno == EAGAIN)
			break;
		if (size < 0)
			die(EXIT_PORT, "reading the port failed: %s", strerror(errno));
		if (!size) {
			/* No host. Whatever it left behind has been read. */
			close_session();
			discard_queue();
			break;
		}
		in_len += (size_t)size;
		if (IN_SIZE - in_len < 4096)
			take_input();
	}
	take_input();
}

/* A serial line hands over bytes as they come, and changes none of them. */
static void make_raw(const char *path)
{
	struct termios line;

	if (tcgetattr(port, &line) < 0) {
		if (errno == ENOTTY)
			return;	/* a virtio-serial port */
		die(EXIT_PORT, "cannot ask how %s is set: %s", path, strerror(errno));
	}
	cfmakeraw(&line);
	line.c_cflag |= CLOCAL | CREAD;
	line.c_cflag &= ~(tcflag_t)(CRTSCTS | HUPCL);
	/* With 0 a read() of nothing would look like a host that is gone. */
	line.c_cc[VMIN] = 1;
	line.c_cc[VTIME] = 0;
	if (tcsetattr(port, TCSANOW, &line) < 0)
		die(EXIT_PORT, "cannot make %s a raw line: %s", path, strerror(errno));
}

static void open_port(const char *name)
{
	char path[PATH_MAX];
	struct dirent *entry;
	bool found = false;
	DIR *ports;

	if (name[0] == '/') {
		snprintf(path, sizeof(path), "%s", name);
		found = true;
	}
	ports = found ? NULL : opendir(RELAY_PORTS);
	while (ports && !found && (entry = readdir(ports))) {
		char content[256];
		FILE *file;

		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s/name", RELAY_PORTS, entry->d_name);
		file = fopen(path, "re");
		if (!file)
			continue;
		if (fgets(content, sizeof(content), file)) {
			content[strcspn(content, "\n")] = '\0';
			found = !strcmp(content, name);
		}
		fclose(file);
		snprintf(path, sizeof(path), "%s/%s", RELAY_DEV, entry->d_name);
	}
	if (ports)
		closedir(ports);
	if (!found)
		die(EXIT_NO_PORT, "no virtio-serial port is named %s (looked in %s)", name,
		    RELAY_PORTS);
	port = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (port < 0)
		die(errno == ENOENT ? EXIT_NO_PORT : EXIT_PORT, "cannot open %s: %s", path,
		    strerror(errno));
	make_raw(path);
}

static void on_signal(int number)
{
	(void)number;
	ending = 1;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	/*
	 * Edge-triggered: while no host is connected the port is always in
	 * EPOLLHUP, which would make a level-triggered wait return at once.
	 */
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT | EPOLLET };
	bool host = false;	/* connected to the port, as far as we know */
	int64_t last_input = 0;
	sigset_t blocked, old;
	int fd;

	if (argc != 2 || argv[1][0] == '-' || !argv[1][0])
		die(EXIT_USAGE, "use: hwsim-relay PORT (a virtio-serial port's name, or a device)");
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGTERM);
	sigaddset(&blocked, SIGINT);
	sigprocmask(SIG_BLOCK, &blocked, &old);
	sigdelset(&old, SIGTERM);
	sigdelset(&old, SIGINT);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	signal(SIGPIPE, SIG_IGN);

	open_port(argv[1]);
	fd = open_netlink();
	family = find_family(fd, RELAY_FAMILY);
	close(fd);
	if (!family)
		die(EXIT_NO_FAMILY, "the kernel has no %s family: load the module", RELAY_FAMILY);

	ep = epoll_create1(EPOLL_CLOEXEC);
	event.data.fd = port;
	if (ep < 0 || epoll_ctl(ep, EPOLL_CTL_ADD, port, &event) < 0)
		die(EXIT_SYSTEM, "epoll: %s", strerror(errno));

	while (!ending) {
		struct epoll_event events[2];
		int64_t left = -1;
		int count;

		if (nl >= 0 && in_len) {
			left = last_input + STALL_MS - now_ms();
			left = left < 0 ? 0 : left;
		}
		count = epoll_pwait(ep, events, 2, (int)left, &old);
		if (count < 0 && errno != EINTR)
			die(EXIT_SYSTEM, "epoll: %s", strerror(errno));
		for (int i = 0; i < count; i++) {
			if (events[i].data.fd != port) {
				if (nl >= 0)
					read_netlink();
				continue;
			}
			host = !(events[i].events & EPOLLHUP);
			if (!host) {
				close_session();
				discard_queue();
			}
			read_port();
			last_input = now_ms();
		}
		if (nl >= 0 && in_len && now_ms() - last_input >= STALL_MS) {
			counters[STALLS]++;
			lose_session("an incomplete frame, send HELLO");
			take_input();	/* a HELLO may be behind the torn frame */
		}
		if (greet && nl < 0 && host) {
			queue_hello(0);
			greet = false;
		}
		write_port();
	}
	close_session();
	close(port);
	return 0;
}
