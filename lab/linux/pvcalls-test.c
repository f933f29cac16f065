// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Tests Linux's own PV Calls frontend. Loading the module runs the test that its parameters name,
 * and fails if the test fails.
 *
 *   test=echo     connects several sockets to an echo server, and checks each echo
 *   test=eof      connects, and reads until the end of the stream
 *   test=refused  connects to a port without a listener
 *   test=serve    listens, and echoes all data of each connection
 *
 * All bytes follow one pattern, so lost, doubled and exchanged bytes are detected.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/in.h>
#include <linux/inet.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <net/sock.h>

#include "linux/pvcalls-front.h"

/* The pattern's period; not a divisor of the page size. */
#define PERIOD 251
#define CHUNK 16384
#define MAX_SOCKETS 64
/* The number of turns in which each socket transfers its bytes. */
#define TURNS 4
/* The time limit for the other end to do something. */
#define PATIENCE (60 * HZ)

static char *test = "";
module_param(test, charp, 0);
MODULE_PARM_DESC(test, "echo, eof, refused or serve");
static char *to = "127.0.0.1";
module_param(to, charp, 0);
MODULE_PARM_DESC(to, "the address to connect to");
static ushort port;
module_param(port, ushort, 0);
MODULE_PARM_DESC(port, "the port to connect to, or to listen on");
static ulong bytes;
module_param(bytes, ulong, 0);
MODULE_PARM_DESC(bytes, "how many bytes each socket sends, or gets");
static uint sockets = 1;
module_param(sockets, uint, 0);
MODULE_PARM_DESC(sockets, "how many sockets are connected or accepted");

static struct proto test_proto = {
	.name = "PVCallsTest",
	.owner = THIS_MODULE,
	.obj_size = sizeof(struct sock),
};

static u8 *chunk;

/* Sockets */

/* A socket for the frontend; without `sk` if accept will set it. */
static struct socket *make_socket(bool with_sk)
{
	struct socket *sock;
	int ret = sock_create_lite(AF_INET, SOCK_STREAM, IPPROTO_TCP, &sock);

	if (ret)
		return ERR_PTR(ret);
	if (with_sk) {
		sock->sk = sk_alloc(&init_net, PF_INET, GFP_KERNEL, &test_proto, 0);
		if (!sock->sk) {
			sock_release(sock);
			return ERR_PTR(-ENOMEM);
		}
	}
	return sock;
}

static int close_socket(struct socket *sock)
{
	int ret = pvcalls_front_release(sock);

	if (sock->sk)
		sk_free(sock->sk);
	sock->sk = NULL;
	sock_release(sock);
	return ret;
}

static struct sockaddr_in address(const char *host)
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = in_aton(host),
	};

	return addr;
}

static struct socket *open_and_connect(void)
{
	struct sockaddr_in addr = address(to);
	struct socket *sock = make_socket(true);
	int ret;

	if (IS_ERR(sock))
		return sock;
	ret = pvcalls_front_socket(sock);
	if (!ret)
		ret = pvcalls_front_connect(sock, (struct sockaddr *)&addr, sizeof(addr), 0);
	if (ret) {
		close_socket(sock);
		return ERR_PTR(ret);
	}
	return sock;
}

/* Waiting, by poll */

struct waiter {
	poll_table table;
	struct wait_queue_entry entry;
	wait_queue_head_t *head;
};

static void join_queue(struct file *file, wait_queue_head_t *head, poll_table *table)
{
	struct waiter *waiter = container_of(table, struct waiter, table);

	waiter->head = head;
	add_wait_queue(head, &waiter->entry);
}

/* Waits until one of the events is pending. */
static int wait_for(struct socket *sock, __poll_t events)
{
	struct waiter waiter = { };
	long left = PATIENCE;
	int ret = 0;

	init_waitqueue_entry(&waiter.entry, current);
	init_poll_funcptr(&waiter.table, join_queue);
	if (pvcalls_front_poll(NULL, sock, &waiter.table) & events)
		goto out;
	for (;;) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (pvcalls_front_poll(NULL, sock, NULL) & events)
			break;
		if (!left || signal_pending(current)) {
			ret = left ? -EINTR : -ETIMEDOUT;
			break;
		}
		left = schedule_timeout(left);
	}
	__set_current_state(TASK_RUNNING);
out:
	if (waiter.head)
		remove_wait_queue(waiter.head, &waiter.entry);
	return ret;
}

/* Bytes */

static void fill(u8 *into, size_t len, u64 offset)
{
	size_t i;

	for (i = 0; i < len; i++)
		into[i] = (offset + i) % PERIOD;
}

static bool fits(const u8 *from, size_t len, u64 offset)
{
	size_t i;

	for (i = 0; i < len; i++)
		if (from[i] != (offset + i) % PERIOD)
			return false;
	return true;
}

/* Sends as much as the ring has room for; -EAGAIN if it is full. */
static int send_some(struct socket *sock, void *from, size_t len)
{
	struct msghdr msg = { .msg_flags = MSG_DONTWAIT };
	struct kvec vec = { .iov_base = from, .iov_len = len };
	int ret;

	iov_iter_kvec(&msg.msg_iter, ITER_SOURCE, &vec, 1, len);
	ret = pvcalls_front_sendmsg(sock, &msg, len);
	return ret ? ret : -EAGAIN;
}

/* Receives data: 0 at the end of the stream; with MSG_DONTWAIT -EAGAIN if there is none. */
static int receive_some(struct socket *sock, void *into, size_t len, int flags)
{
	struct msghdr msg = { .msg_flags = flags };
	struct kvec vec = { .iov_base = into, .iov_len = len };

	iov_iter_kvec(&msg.msg_iter, ITER_DEST, &vec, 1, len);
	return pvcalls_front_recvmsg(sock, &msg, len, flags);
}

/* Sends the bytes from `offset` to `end`, and receives their echo at the same time. */
static int exchange(struct socket *sock, u64 offset, u64 end)
{
	u64 sent = offset, received = offset;

	while (received < end) {
		int in, out = -EAGAIN;

		if (sent < end) {
			size_t len = min_t(u64, CHUNK, end - sent);

			fill(chunk, len, sent);
			out = send_some(sock, chunk, len);
			if (out < 0 && out != -EAGAIN)
				return out;
			if (out > 0)
				sent += out;
		}
		in = receive_some(sock, chunk, CHUNK, MSG_DONTWAIT);
		if (in == 0)
			return -EPIPE;
		if (in < 0 && in != -EAGAIN)
			return in;
		if (in > 0) {
			if (!fits(chunk, in, received))
				return -EILSEQ;
			received += in;
		}
		if (in == -EAGAIN && out == -EAGAIN) {
			int ret = wait_for(sock, sent < end ? EPOLLIN | EPOLLOUT : EPOLLIN);

			if (ret)
				return ret;
		}
	}
	return received == end ? 0 : -EOVERFLOW;
}

/* Echoes all data until the end of the stream. */
static int echo_until_end(struct socket *sock)
{
	for (;;) {
		int done = 0, len = receive_some(sock, chunk, CHUNK, 0);

		if (len <= 0)
			return len;
		while (done < len) {
			int out = send_some(sock, chunk + done, len - done);

			if (out == -EAGAIN)
				out = wait_for(sock, EPOLLOUT);
			else if (out > 0)
				done += out;
			if (out < 0)
				return out;
		}
	}
}

/* The tests */

static int test_echo(void)
{
	struct socket *all[MAX_SOCKETS];
	unsigned int i, turn, count = 0;
	int ret = 0, closed;

	/* All sockets are open at the same time, and take turns. */
	while (count < min_t(uint, sockets, MAX_SOCKETS)) {
		all[count] = open_and_connect();
		if (IS_ERR(all[count])) {
			ret = PTR_ERR(all[count]);
			goto out;
		}
		count++;
	}
	for (turn = 0; turn < TURNS; turn++) {
		for (i = 0; i < count; i++) {
			ret = exchange(all[i], bytes * turn / TURNS, bytes * (turn + 1) / TURNS);
			if (ret)
				goto out;
		}
	}
out:
	for (i = 0; i < count; i++) {
		closed = close_socket(all[i]);
		ret = ret ? ret : closed;
	}
	return ret;
}

static int test_eof(void)
{
	struct socket *sock = open_and_connect();
	u64 received = 0;
	int ret, closed;

	if (IS_ERR(sock))
		return PTR_ERR(sock);
	while ((ret = receive_some(sock, chunk, CHUNK, 0)) > 0) {
		if (!fits(chunk, ret, received)) {
			ret = -EILSEQ;
			break;
		}
		received += ret;
	}
	if (!ret && received != bytes) {
		pr_err("the stream ended after %llu bytes\n", received);
		ret = -EPIPE;
	}
	/* Further reads also return the end. */
	if (!ret)
		ret = receive_some(sock, chunk, CHUNK, 0);
	closed = close_socket(sock);
	return ret ? ret : closed;
}

static int test_refused(void)
{
	struct socket *sock = open_and_connect();

	if (!IS_ERR(sock)) {
		close_socket(sock);
		return -EISCONN;
	}
	return PTR_ERR(sock) == -ECONNREFUSED ? 0 : PTR_ERR(sock);
}

/* Waits for every second connection by poll, for the others by accept alone. */
static int serve_one(struct socket *listener, bool poll)
{
	struct socket *sock;
	int ret = 0, closed;

	if (poll)
		ret = wait_for(listener, EPOLLIN);
	if (ret)
		return ret;
	sock = make_socket(false);
	if (IS_ERR(sock))
		return PTR_ERR(sock);
	ret = pvcalls_front_accept(listener, sock, 0);
	if (!ret)
		ret = echo_until_end(sock);
	closed = close_socket(sock);
	return ret ? ret : closed;
}

static int test_serve(void)
{
	struct sockaddr_in addr = address("0.0.0.0");
	struct socket *listener = make_socket(true);
	unsigned int i;
	int ret, closed;

	if (IS_ERR(listener))
		return PTR_ERR(listener);
	ret = pvcalls_front_socket(listener);
	if (!ret)
		ret = pvcalls_front_bind(listener, (struct sockaddr *)&addr, sizeof(addr));
	if (!ret)
		ret = pvcalls_front_listen(listener, 16);
	if (!ret)
		pr_warn("serving on port %u\n", port);
	for (i = 0; !ret && i < sockets; i++)
		ret = serve_one(listener, i % 2 == 0);
	closed = close_socket(listener);
	return ret ? ret : closed;
}

static const struct {
	const char *name;
	int (*run)(void);
} tests[] = {
	{ "echo", test_echo },
	{ "eof", test_eof },
	{ "refused", test_refused },
	{ "serve", test_serve },
};

static int __init pvcalls_test_init(void)
{
	int i, ret = -EINVAL;

	chunk = kmalloc(CHUNK, GFP_KERNEL);
	if (!chunk)
		return -ENOMEM;
	for (i = 0; i < ARRAY_SIZE(tests); i++)
		if (!strcmp(test, tests[i].name))
			ret = tests[i].run();
	kfree(chunk);
	if (ret)
		pr_err("%s failed: %d\n", test, ret);
	return ret;
}
module_init(pvcalls_test_init);

static void __exit pvcalls_test_exit(void)
{
}
module_exit(pvcalls_test_exit);

MODULE_DESCRIPTION("Tries the PV Calls frontend");
MODULE_LICENSE("Dual MIT/GPL");
