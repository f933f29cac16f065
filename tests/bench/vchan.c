// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * The two ends of a libxenvchan, which `make bench` compares with IDC.
 *
 *   vchan serve PEER BYTES          offers rings of BYTES each to PEER, and serves one client
 *   vchan visit DOMAIN MIB COUNT    is that client, in dom0, and prints its figures
 *   vchan time DOMAIN...            prints the CPU time of domains, in nanoseconds (in dom0 only)
 *
 * A client sends a command, then what the command tells, then the next command.
 */

/* First: it defines what the other headers of Xen then declare. */
#include <xenctrl.h>

#include <libxenvchan.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The bytes of one transfer, as IDC's couriers transfer them. */
#define PIECE (1 << 20)
#define MESSAGE 64
/* The round trips before those that are measured. */
#define WARM_UP 50

static char piece[PIECE];

enum op {
	/* The server sends `count` bytes. */
	OP_SOURCE,
	/* The server receives `count` bytes in pieces of `size`, and sends a byte. */
	OP_SINK,
	/* The server sends back `count` messages of `size` bytes. */
	OP_ECHO,
};

struct command {
	uint32_t op;
	uint32_t size;
	uint64_t count;
};

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("vchan: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	exit(1);
}

static void send_all(struct libxenvchan *chan, const void *from, size_t size)
{
	if (libxenvchan_write(chan, from, size) != (int)size)
		die("cannot write");
}

static void receive_all(struct libxenvchan *chan, void *to, size_t size)
{
	while (size) {
		int count = libxenvchan_read(chan, to, size);

		if (count <= 0)
			die("cannot read");
		to = (char *)to + count;
		size -= count;
	}
}

static void send_bytes(struct libxenvchan *chan, uint64_t left, size_t size)
{
	while (left) {
		size_t some = left < size ? left : size;

		send_all(chan, piece, some);
		left -= some;
	}
}

static void receive_bytes(struct libxenvchan *chan, uint64_t left, size_t size)
{
	while (left) {
		size_t some = left < size ? left : size;

		receive_all(chan, piece, some);
		left -= some;
	}
}

/* The server */

static void serve(int peer, size_t bytes)
{
	struct libxenvchan *chan = libxenvchan_server_init(NULL, peer, "data/vchan", bytes, bytes);
	struct command command;

	if (!chan)
		die("cannot offer rings of %zu bytes to domain %d", bytes, peer);
	chan->blocking = 1;
	puts("vchan serves");
	fflush(stdout);
	for (;;) {
		receive_all(chan, &command, sizeof(command));
		if (command.size > PIECE)
			die("a size of %u", command.size);
		switch (command.op) {
		case OP_SOURCE:
			send_bytes(chan, command.count, command.size);
			break;
		case OP_SINK:
			receive_bytes(chan, command.count, command.size);
			send_all(chan, piece, 1);
			break;
		case OP_ECHO:
			while (command.count--) {
				receive_all(chan, piece, command.size);
				send_all(chan, piece, command.size);
			}
			break;
		default:
			die("there is no command %u", command.op);
		}
	}
}

/* The client */

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static uint64_t cpu_time(xc_interface *xc, int domain)
{
	xc_dominfo_t info;

	if (xc_domain_getinfo(xc, domain, 1, &info) != 1 || (int)info.domid != domain)
		die("there is no domain %d", domain);
	return info.cpu_time;
}

static xc_interface *hypervisor(void)
{
	xc_interface *xc = xc_interface_open(NULL, NULL, 0);

	if (!xc)
		die("cannot open /dev/xen/privcmd");
	return xc;
}

struct client {
	struct libxenvchan *chan;
	xc_interface *xc;
	int domain;
	uint64_t guest, own, since;
};

static void begin(struct client *client)
{
	client->guest = cpu_time(client->xc, client->domain);
	client->own = cpu_time(client->xc, 0);
	client->since = now();
}

/* Ends a measurement. Prints its CPU time in nanoseconds times `factor`, and returns its time. */
static double end(struct client *client, const char *name, const char *unit, double factor)
{
	uint64_t time = now() - client->since;
	uint64_t own = cpu_time(client->xc, 0) - client->own;
	uint64_t guest = cpu_time(client->xc, client->domain) - client->guest;

	printf("%s_guest_cpu_%s %.6f\n", name, unit, guest * factor);
	printf("%s_client_cpu_%s %.6f\n", name, unit, own * factor);
	return time;
}

static void command(struct client *client, enum op op, uint32_t size, uint64_t count)
{
	struct command command = { .op = op, .size = size, .count = count };

	send_all(client->chan, &command, sizeof(command));
}

static void bulk(struct client *client, enum op op, const char *name, uint64_t mib)
{
	uint64_t bytes = mib << 20;
	double time;

	begin(client);
	command(client, op, PIECE, bytes);
	if (op == OP_SOURCE) {
		receive_bytes(client->chan, bytes, PIECE);
	} else {
		send_bytes(client->chan, bytes, PIECE);
		receive_all(client->chan, piece, 1);
	}
	time = end(client, name, "s_per_gib", 1024.0 / mib / 1e9);
	printf("%s_mib_per_s %.3f\n", name, mib / time * 1e9);
}

static int compare(const void *one, const void *other)
{
	uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;

	return a < b ? -1 : a > b;
}

static void round_trips(struct client *client, uint64_t count)
{
	uint64_t *times = calloc(count, sizeof(*times));
	uint64_t since, each;

	if (!times)
		die("no memory");
	command(client, OP_ECHO, MESSAGE, WARM_UP + count);
	for (each = 0; each < WARM_UP + count; each++) {
		if (each == WARM_UP)
			begin(client);
		since = now();
		send_all(client->chan, piece, MESSAGE);
		receive_all(client->chan, piece, MESSAGE);
		if (each >= WARM_UP)
			times[each - WARM_UP] = now() - since;
	}
	end(client, "round_trip", "ms_each", 1e-6 / count);
	qsort(times, count, sizeof(*times), compare);
	printf("round_trip_us %.1f\n", times[count / 2] / 1e3);
	printf("round_trip_p99_us %.1f\n", times[count * 99 / 100] / 1e3);
	free(times);
}

/* One-way messages, until the server has taken the last one. */
static void messages(struct client *client, uint64_t count)
{
	double time;

	begin(client);
	command(client, OP_SINK, MESSAGE, count * MESSAGE);
	send_bytes(client->chan, count * MESSAGE, MESSAGE);
	receive_all(client->chan, piece, 1);
	time = end(client, "message", "ms_each", 1e-6 / count);
	printf("messages_per_s %.1f\n", count / time * 1e9);
}

static void visit(int domain, uint64_t mib, uint64_t count)
{
	struct client client = { .xc = hypervisor(), .domain = domain };
	char path[64];

	snprintf(path, sizeof(path), "/local/domain/%d/data/vchan", domain);
	client.chan = libxenvchan_client_init(NULL, domain, path);
	if (!client.chan)
		die("cannot connect to domain %d", domain);
	client.chan->blocking = 1;
	bulk(&client, OP_SOURCE, "out", mib);
	bulk(&client, OP_SINK, "in", mib);
	round_trips(&client, count);
	messages(&client, 10 * count);
	libxenvchan_close(client.chan);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "serve"))
		serve(atoi(argv[2]), strtoul(argv[3], NULL, 0));
	else if (argc == 5 && !strcmp(argv[1], "visit"))
		visit(atoi(argv[2]), strtoul(argv[3], NULL, 0), strtoul(argv[4], NULL, 0));
	else if (argc > 2 && !strcmp(argv[1], "time"))
		for (int word = 2; word < argc; word++)
			printf("%lu\n", cpu_time(hypervisor(), atoi(argv[word])));
	else
		die("serve PEER BYTES, visit DOMAIN MIB COUNT, or time DOMAIN...");
	return 0;
}
