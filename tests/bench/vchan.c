// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * The two ends of a libxenvchan, which `make bench` compares with IDC.
 *
 *   vchan serve PEER BYTES          offers rings of BYTES each to the domain PEER
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
/* The rounds of each measurement, of which the medians count. */
#define ROUNDS 10

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

static int compare(const void *one, const void *other)
{
	uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;

	return a < b ? -1 : a > b;
}

static void command(struct libxenvchan *chan, enum op op, uint32_t size, uint64_t count)
{
	struct command command = { .op = op, .size = size, .count = count };

	send_all(chan, &command, sizeof(command));
}

static void out(struct libxenvchan *chan, uint64_t mib, uint64_t *time)
{
	uint64_t since = now();

	command(chan, OP_SOURCE, PIECE, mib << 20);
	receive_bytes(chan, mib << 20, PIECE);
	*time = now() - since;
}

static void in(struct libxenvchan *chan, uint64_t mib, uint64_t *time)
{
	uint64_t since = now();

	command(chan, OP_SINK, PIECE, mib << 20);
	send_bytes(chan, mib << 20, PIECE);
	receive_all(chan, piece, 1);
	*time = now() - since;
}

static void round_trips(struct libxenvchan *chan, uint64_t count, uint64_t *times)
{
	uint64_t since;

	command(chan, OP_ECHO, MESSAGE, count);
	while (count--) {
		since = now();
		send_all(chan, piece, MESSAGE);
		receive_all(chan, piece, MESSAGE);
		*times++ = now() - since;
	}
}

/* One-way messages, until the server has taken the last one. */
static void messages(struct libxenvchan *chan, uint64_t count, uint64_t *time)
{
	uint64_t since = now();

	command(chan, OP_SINK, MESSAGE, count * MESSAGE);
	send_bytes(chan, count * MESSAGE, MESSAGE);
	receive_all(chan, piece, 1);
	*time = now() - since;
}

typedef void work(struct libxenvchan *chan, uint64_t count, uint64_t *times);

struct client {
	struct libxenvchan *chan;
	xc_interface *xc;
	int domain;
};

/*
 * Does a work in rounds, each of which takes `each` times. Prints the processor's time of both ends
 * in nanoseconds times `factor`, for one of `count`. Returns the times, sorted.
 */
static uint64_t *measure(struct client *client, work *work, uint64_t count, uint64_t each,
			 double factor, const char *format)
{
	uint64_t *times = calloc(ROUNDS * each, sizeof(*times));
	uint64_t guest = cpu_time(client->xc, client->domain), own = cpu_time(client->xc, 0);

	if (!times)
		die("no memory");
	for (int round = 0; round < ROUNDS; round++)
		work(client->chan, count, times + round * each);
	factor /= ROUNDS * count;
	printf(format, "guest", (cpu_time(client->xc, client->domain) - guest) * factor);
	printf(format, "client", (cpu_time(client->xc, 0) - own) * factor);
	qsort(times, ROUNDS * each, sizeof(*times), compare);
	return times;
}

static void visit(int domain, uint64_t mib, uint64_t count)
{
	struct client client = { .xc = hypervisor(), .domain = domain };
	double gib = 1024e-9;
	char path[64];
	uint64_t *times;

	snprintf(path, sizeof(path), "/local/domain/%d/data/vchan", domain);
	client.chan = libxenvchan_client_init(NULL, domain, path);
	if (!client.chan)
		die("cannot connect to domain %d", domain);
	client.chan->blocking = 1;
	mib = (mib + ROUNDS - 1) / ROUNDS;
	count = (count + ROUNDS - 1) / ROUNDS;

	times = measure(&client, out, mib, 1, gib, "out_%s_cpu_s_per_gib %.6f\n");
	printf("out_mib_per_s %.3f\n", mib * 1e9 / times[ROUNDS / 2]);
	times = measure(&client, in, mib, 1, gib, "in_%s_cpu_s_per_gib %.6f\n");
	printf("in_mib_per_s %.3f\n", mib * 1e9 / times[ROUNDS / 2]);
	times = measure(&client, round_trips, count, count, 1e-6,
			"round_trip_%s_cpu_ms_each %.6f\n");
	printf("round_trip_us %.1f\n", times[ROUNDS * count / 2] / 1e3);
	printf("round_trip_p99_us %.1f\n", times[ROUNDS * count * 99 / 100] / 1e3);
	times = measure(&client, messages, 10 * count, 1, 1e-6, "message_%s_cpu_ms_each %.6f\n");
	printf("messages_per_s %.1f\n", 10 * count * 1e9 / times[ROUNDS / 2]);
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
