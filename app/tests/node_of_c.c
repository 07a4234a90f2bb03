// SPDX-License-Identifier: Apache-2.0
// A node made with Erlang's library ei, for test_c_and_java.py.
//
//     node_of_c OWN_ADDRESS PEER_ADDRESS PORT COOKIE
//
// It sends {Self, hello} to the process "box" of the node there, prints what it is sent, a line each,
// and ends at the atom "last". ei knows IPv4 only, but lets a program bring its own sockets.
#include <arpa/inet.h>
#include <ei.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct sockaddr_in6 own = {.sin6_family = AF_INET6};
static struct sockaddr_in6 peer = {.sin6_family = AF_INET6};

static int descriptor(void *context)
{
	return (int)(intptr_t)context;
}

static int make(void **context, void *setup)
{
	int fd = socket(AF_INET6, SOCK_STREAM, 0);

	(void)setup;
	if (fd < 0 || bind(fd, (struct sockaddr *)&own, sizeof(own)) < 0)
		return errno;
	*context = (void *)(intptr_t)fd;
	return 0;
}

static int reach(void *context, void *address, int length, unsigned timeout)
{
	(void)address, (void)length, (void)timeout;
	return connect(descriptor(context), (struct sockaddr *)&peer, sizeof(peer)) < 0 ? errno : 0;
}

static int finish(void *context)
{
	return close(descriptor(context)) < 0 ? errno : 0;
}

static int put(void *context, const char *data, ssize_t *length, unsigned timeout)
{
	ssize_t written = write(descriptor(context), data, *length);

	(void)timeout;
	if (written < 0)
		return errno;
	*length = written;
	return 0;
}

static int get(void *context, char *data, ssize_t *length, unsigned timeout)
{
	ssize_t found = read(descriptor(context), data, *length);

	(void)timeout;
	if (found < 0)
		return errno;
	*length = found;
	return 0;
}

static int header_size(void *context, int *size)
{
	(void)context;
	*size = 2;
	return 0;
}

static int complete(void *context)
{
	(void)context;
	return 0;
}

static int number(void *context, int *fd)
{
	*fd = descriptor(context);
	return 0;
}

static ei_socket_callbacks sockets = {
	.socket = make,
	.close = finish,
	.connect = reach,
	.write = put,
	.read = get,
	.handshake_packet_header_size = header_size,
	.connect_handshake_complete = complete,
	.accept_handshake_complete = complete,
	.get_fd = number,
};

static int fail(const char *what)
{
	printf("%s failed: %s\n", what, strerror(erl_errno));
	return 1;
}

int main(int argc, char **argv)
{
	struct in_addr unused = {.s_addr = htonl(INADDR_LOOPBACK)};
	char loopback[] = "127.0.0.1", name[MAXNODELEN];
	int last = 0, fd, index;
	ei_cnode node;
	ei_x_buff out;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc != 5 || inet_pton(AF_INET6, argv[1], &own.sin6_addr) != 1 ||
	    inet_pton(AF_INET6, argv[2], &peer.sin6_addr) != 1)
		return 2;
	peer.sin6_port = htons(atoi(argv[3]));
	snprintf(name, sizeof(name), "c@%s", argv[1]);
	ei_init();
	if (ei_connect_xinit_ussi(&node, argv[1], "c", name, &unused, argv[4], 1, &sockets,
				  sizeof(sockets), NULL) < 0)
		return fail("the beginning");
	fd = ei_connect_host_port(&node, loopback, atoi(argv[3]));
	if (fd < 0)
		return fail("the connection");
	ei_x_new_with_version(&out);
	ei_x_encode_tuple_header(&out, 2);
	ei_x_encode_pid(&out, ei_self(&node));
	ei_x_encode_atom(&out, "hello");
	if (ei_reg_send(&node, fd, "box", out.buff, out.index) < 0)
		return fail("the message");
	while (!last) {
		int type, size, version;
		char *text = NULL;
		erlang_msg message;
		ei_x_buff in;

		ei_x_new(&in);
		switch (ei_xreceive_msg(fd, &message, &in)) {
		case ERL_MSG:
			index = 0;
			ei_decode_version(in.buff, &index, &version);
			ei_get_type(in.buff, &index, &type, &size);
			ei_s_print_term(&text, in.buff, &index);
			printf("%c %s\n", type, text);
			last = strcmp(text, "last") == 0;
			free(text);
			break;
		case ERL_ERROR:
			return fail("receiving");
		}
		ei_x_free(&in);
	}
	return 0;
}
