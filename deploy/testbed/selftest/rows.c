// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Each row does one thing to memory that RDMA writes into, and says in a cell what a program sees of it. */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "selftest.h"

const char *const modes[MODES] = { "dynamic", "pinned", "revocable" };

void set_importer(const char *mode)
{
	FILE *file = fopen("/sys/module/rdma_rxe/parameters/dmabuf_mode", "w");

	if (!file || fprintf(file, "%s", mode) < 0 || fclose(file))
		die("cannot set the importer's mode");
}

static long faults(void)
{
	FILE *file = fopen("/sys/module/rdma_rxe/parameters/dmabuf_faults", "r");
	long count;

	if (!file || fscanf(file, "%ld", &count) != 1)
		die("soft-RoCE does not tell its faults");
	fclose(file);
	return count;
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

#define REGION_ACCESS (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC)

static struct ibv_mr *registered_at(struct link *link, int fd, uint64_t offset, uint64_t length)
{
	return ibv_reg_dmabuf_mr(link->target.pd, offset, length, REGION_IOVA, fd, REGION_ACCESS);
}

static struct ibv_mr *registered(struct link *link, struct buffer *buffer)
{
	struct ibv_mr *mr = registered_at(link, buffer->fd, REGION_OFFSET, WRITE_BYTES);

	if (!mr)
		die("cannot register the buffer: %s", strerror(errno));
	return mr;
}

static void deregister(struct ibv_mr *mr)
{
	int error = ibv_dereg_mr(mr);

	if (error)
		die("cannot deregister: %s", strerror(error));
}

static const char *status_name(enum ibv_wc_status status)
{
	switch (status) {
	case IBV_WC_SUCCESS:
		return "writes succeed";
	case IBV_WC_REM_ACCESS_ERR:
		return "REM_ACCESS_ERR";
	case IBV_WC_WR_FLUSH_ERR:
		return "WR_FLUSH_ERR";
	case IBV_WC_RETRY_EXC_ERR:
		return "RETRY_EXC_ERR";
	default:
		return ibv_wc_status_str(status);
	}
}

static const char *state_names(struct link *link)
{
	enum ibv_qp_state sender = side_state(&link->sender), target = side_state(&link->target);

	if (sender == IBV_QPS_RTS && target == IBV_QPS_RTS)
		return "RTS";
	return sender == IBV_QPS_ERR && target == IBV_QPS_ERR ? "both ERR" : "states differ";
}

/*
 * Writes the region over and over with WINDOW writes under way, and does `act` amid them `times` times. Between two acts at least one write begins
 * and ends. Returns the status of the first write that failed; *last is the value of the last write that was posted.
 */
struct act {
	int (*act)(struct buffer *buffer, unsigned int flags, unsigned int fence_ms);
	unsigned int flags, times, done, busy;
	struct buffer *buffer;
};

static int do_revoke(struct buffer *buffer, unsigned int flags, unsigned int fence_ms)
{
	(void)flags;
	(void)fence_ms;
	return accelerator_revoke(buffer);
}

static void do_act(struct act *act)
{
	int error = act->act(act->buffer, act->flags, 0);

	if (error && error != EBUSY)
		die("the accelerator refuses: %s", strerror(error));
	act->done += !error;
	act->busy += error == EBUSY;
}

static enum ibv_wc_status stream(struct link *link, struct ibv_mr *mr, struct act *act, unsigned int *last)
{
	enum ibv_wc_status failure = IBV_WC_SUCCESS;
	unsigned int writes = 12, posted = 0, completed = 0, begun_before = 0;

	while (completed < posted || (posted < writes && failure == IBV_WC_SUCCESS)) {
		while (posted < writes && posted - completed < WINDOW && failure == IBV_WC_SUCCESS)
			link_post(link, IBV_WR_RDMA_WRITE, ++posted, REGION_IOVA, mr->rkey);
		if (act && completed > begun_before && act->done + act->busy < act->times) {
			begun_before = posted;
			do_act(act);
			writes = posted + 12;
		}
		struct ibv_wc wc = link_wait(link);

		completed++;
		if (failure == IBV_WC_SUCCESS)
			failure = wc.status;
	}
	*last = posted;
	return failure;
}

static const char *data_after(struct link *link, struct buffer *buffer)
{
	struct ibv_mr *mr = registered(link, buffer);
	unsigned int last;
	bool right;

	link_connect(link, 7);
	right = stream(link, mr, NULL, &last) == IBV_WC_SUCCESS && buffer_holds(buffer, last);
	deregister(mr);
	return right ? "data right" : "data wrong";
}

static void move_in_stream(struct link *link, char *cell, unsigned int flags, unsigned int times)
{
	struct buffer buffer = accelerator_buffer();
	struct ibv_mr *mr = registered(link, &buffer);
	struct act act = { accelerator_move, flags, times, 0, 0, &buffer };
	long before = faults();
	unsigned int last;
	enum ibv_wc_status status;
	int n;

	link_connect(link, 7);
	status = stream(link, mr, &act, &last);
	n = snprintf(cell, CELL, "%u moved, %u EBUSY, %ld faults, %s, ", act.done, act.busy, faults() - before, status_name(status));
	if (status == IBV_WC_SUCCESS) {
		n += snprintf(cell + n, CELL - n, "%s", buffer_holds(&buffer, last) ? "data right" : "data lost");
		deregister(mr);
	} else {
		n += snprintf(cell + n, CELL - n, "%s", state_names(link));
		deregister(mr);
		n += snprintf(cell + n, CELL - n, ", again: %s", data_after(link, &buffer));
	}
	snprintf(cell + n, CELL - n, ", %ju stale", (uintmax_t)accelerator_stale_bytes(&buffer));
	buffer_close(&buffer);
}

static void row_move(struct link *link, char *cell)
{
	move_in_stream(link, cell, 0, 20);
}

static void row_forced_move(struct link *link, char *cell)
{
	move_in_stream(link, cell, WINDLASS_ACCELERATOR_FORCE, 1);
}

static void row_revoke(struct link *link, char *cell)
{
	struct buffer buffer = accelerator_buffer(), fresh = accelerator_buffer();
	struct ibv_mr *mr = registered(link, &buffer);
	struct act act = { do_revoke, 0, 1, 0, 0, &buffer };
	enum ibv_wc_status status;
	unsigned int last;
	int n;

	link_connect(link, 7);
	status = stream(link, mr, &act, &last);
	n = snprintf(cell, CELL, "%s, %s, ", act.done ? "0" : "EBUSY", status_name(status));
	if (status != IBV_WC_SUCCESS)
		n += snprintf(cell + n, CELL - n, "%s, %s, ", state_names(link), link_access_event(link) ? "event" : "no event");
	deregister(mr);
	snprintf(cell + n, CELL - n, "%ju stale, new buffer: %s", (uintmax_t)accelerator_stale_bytes(&buffer), data_after(link, &fresh));
	buffer_close(&buffer);
	buffer_close(&fresh);
}

static void row_revoke_idle(struct link *link, char *cell)
{
	struct buffer buffer = accelerator_buffer();
	struct ibv_mr *mr = registered(link, &buffer);
	const char *idle, *event;
	struct ibv_wc wc;

	link_connect(link, 7);
	if (accelerator_revoke(&buffer) == ENODEV)
		die("the buffer was revoked already");
	event = link_access_event(link) ? "event" : "no event";
	idle = state_names(link);
	link_post(link, IBV_WR_RDMA_READ, 1, REGION_IOVA, mr->rkey);
	wc = link_wait(link);
	deregister(mr);
	mr = registered_at(link, buffer.fd, REGION_OFFSET, WRITE_BYTES);
	snprintf(cell, CELL, "%s, %s, a read: %s, registered anew: %s", idle, event, wc.status == IBV_WC_SUCCESS ? "succeeds" : status_name(wc.status),
		 mr ? "succeeds" : errno == ENODEV ? "ENODEV" : strerror(errno));
	if (mr)
		deregister(mr);
	buffer_close(&buffer);
}

static void row_fence(struct link *link, char *cell)
{
	struct buffer buffer = accelerator_buffer();
	struct ibv_mr *mr = registered(link, &buffer);
	double begin = seconds(), took;
	struct ibv_wc wc;
	int error;

	link_connect(link, 7);
	error = accelerator_move(&buffer, 0, 300);
	if (error) {
		snprintf(cell, CELL, "%s", error == EBUSY ? "EBUSY" : strerror(error));
	} else {
		begin = seconds();
		link_post(link, IBV_WR_RDMA_WRITE, 1, REGION_IOVA, mr->rkey);
		wc = link_wait(link);
		took = seconds() - begin;
		snprintf(cell, CELL, "%s %s the fence, %s", status_name(wc.status), took < 0.25 ? "before" : "after",
			 buffer_holds(&buffer, 1) ? "data right" : "data wrong");
	}
	deregister(mr);
	buffer_close(&buffer);
}

/* The sender's own memory: a region that is read from, and not told of by a key that travels. */
static void row_local(struct link *link, char *cell)
{
	struct buffer from = accelerator_buffer(), to = heap_buffer();
	struct ibv_mr *source = ibv_reg_dmabuf_mr(link->sender.pd, REGION_OFFSET, WRITE_BYTES, REGION_IOVA, from.fd, REGION_ACCESS);
	struct ibv_mr *mr = registered(link, &to);
	const char *first, *moved, *revoked;

	if (!source)
		die("the sender cannot register: %s", strerror(errno));
	link_connect(link, 7);
	fill(from.map + REGION_OFFSET, 1);
	first = status_name(link_write_from(link, source, REGION_IOVA, mr->rkey));
	moved = accelerator_move(&from, 0, 0) ? "EBUSY" : "moved";
	fill(from.map + REGION_OFFSET, 2);
	if (link_write_from(link, source, REGION_IOVA, mr->rkey) != IBV_WC_SUCCESS || !buffer_holds(&to, 2))
		first = "wrong";
	accelerator_revoke(&from);
	revoked = status_name(link_write_from(link, source, REGION_IOVA, mr->rkey));
	snprintf(cell, CELL, "%s, %s, then revoked: %s", first, moved, revoked);
	deregister(source);
	deregister(mr);
	buffer_close(&from);
	buffer_close(&to);
}

/* A counter at the region's beginning, before and after a move. */
static void row_atomic(struct link *link, char *cell)
{
	struct buffer buffer = accelerator_buffer();
	struct ibv_mr *mr = registered(link, &buffer);
	uint64_t before = 0, after = 0;
	enum ibv_wc_status status;
	int error;

	link_connect(link, 7);
	status = link_fetch_and_add(link, 7, REGION_IOVA, mr->rkey, &before);
	error = accelerator_move(&buffer, 0, 0);
	if (status == IBV_WC_SUCCESS)
		status = link_fetch_and_add(link, 5, REGION_IOVA, mr->rkey, &after);
	snprintf(cell, CELL, "%s, %s, then %ju and %ju, then %ju", status == IBV_WC_SUCCESS ? "success" : status_name(status),
		 error ? "EBUSY" : "moved", (uintmax_t)before, (uintmax_t)after, (uintmax_t)*(uint64_t *)(buffer.map + REGION_OFFSET));
	deregister(mr);
	buffer_close(&buffer);
}

static void row_exporters(struct link *link, char *cell)
{
	struct buffer udmabuf = udmabuf_buffer(), heap = heap_buffer();
	const char *first = data_after(link, &udmabuf);

	snprintf(cell, CELL, "udmabuf: %s, system heap: %s", first, data_after(link, &heap));
	buffer_close(&udmabuf);
	buffer_close(&heap);
}

static void row_silent_peer(struct link *link, char *cell)
{
	struct buffer buffer = accelerator_buffer();
	struct ibv_mr *mr = registered(link, &buffer);
	struct ibv_qp_attr reset = { .qp_state = IBV_QPS_RESET };
	struct ibv_wc wc;

	link_connect(link, 3);
	if (ibv_modify_qp(link->target.qp, &reset, IBV_QP_STATE))
		die("cannot reset the target");
	link_post(link, IBV_WR_RDMA_WRITE, 1, REGION_IOVA, mr->rkey);
	wc = link_wait(link);
	deregister(mr);
	snprintf(cell, CELL, "%s, connected anew: %s", status_name(wc.status), data_after(link, &buffer));
	buffer_close(&buffer);
}

/* As programs do that start without rdma-core: the library opened, and the verb looked up in it. */
static void row_looked_up(struct link *link, char *cell)
{
	struct ibv_mr *(*verb)(struct ibv_pd *, uint64_t, size_t, uint64_t, int, int);
	void *library = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
	struct buffer buffer = accelerator_buffer();
	struct ibv_mr *mr;

	*(void **)&verb = library ? dlsym(library, "ibv_reg_dmabuf_mr") : NULL;
	mr = verb ? verb(link->target.pd, REGION_OFFSET, WRITE_BYTES, REGION_IOVA, buffer.fd, REGION_ACCESS) : NULL;
	snprintf(cell, CELL, "%s, other symbols: %s", mr ? "registered" : strerror(errno),
		 library && dlsym(library, "ibv_reg_mr") && !dlsym(library, "no_such_symbol") ? "as ever" : "wrong");
	if (mr)
		deregister(mr);
	buffer_close(&buffer);
}

static int refusal(struct link *link, int fd, uint64_t offset, uint64_t length)
{
	struct ibv_mr *mr = registered_at(link, fd, offset, length);

	if (!mr)
		return errno;
	deregister(mr);
	return 0;
}

static void row_bad_input(struct link *link, char *cell)
{
	struct buffer buffer = accelerator_buffer();
	int null = dup(0), good = refusal(link, buffer.fd, REGION_OFFSET, WRITE_BYTES);
	struct { int error, expected; } refused[] = {
		{ refusal(link, -1, REGION_OFFSET, WRITE_BYTES), EBADF },
		{ refusal(link, null, REGION_OFFSET, WRITE_BYTES), EINVAL },
		{ refusal(link, buffer.fd, REGION_OFFSET, BUFFER_BYTES), EINVAL },
		{ refusal(link, buffer.fd, REGION_OFFSET, 0), EINVAL },
		{ refusal(link, buffer.fd, UINT64_MAX - 0xdff, WRITE_BYTES), EINVAL },
		{ refusal(link, buffer.fd, REGION_OFFSET + 1, WRITE_BYTES), EINVAL },
	};
	int n = snprintf(cell, CELL, "good: %d, refused:", good);

	for (unsigned int i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
		n += snprintf(cell + n, CELL - n, " %s", refused[i].error == refused[i].expected ? "yes" : strerror(refused[i].error));
	close(null);
	buffer_close(&buffer);
}

static void set_keep_mb(unsigned int megabytes)
{
	FILE *file = fopen("/sys/module/windlass_accelerator/parameters/keep_mb", "w");

	if (!file || fprintf(file, "%u", megabytes) < 0 || fclose(file))
		die("cannot set how much the accelerator keeps");
}

/* The oracle: what was found stays found when the pages it was found in are given back, and when the buffer is gone. */
static void row_oracle(struct link *link, char *cell)
{
	uint64_t before = accelerator_stat(WINDLASS_ACCELERATOR_ALL).stale_bytes, found, kept, after;
	struct buffer buffer = accelerator_buffer();
	struct ibv_mr *mr = registered(link, &buffer);

	link_connect(link, 7);
	accelerator_move(&buffer, WINDLASS_ACCELERATOR_FORCE, 0);
	link_post(link, IBV_WR_RDMA_WRITE, 1, REGION_IOVA, mr->rkey);
	link_wait(link);
	deregister(mr);
	found = accelerator_stale_bytes(&buffer);
	set_keep_mb(1);
	for (int i = 0; i < 24; i++)
		if (accelerator_move(&buffer, 0, 0))
			die("a buffer that nobody uses does not move");
	set_keep_mb(64);
	kept = accelerator_stat(buffer.fd).kept_bytes;
	after = accelerator_stale_bytes(&buffer);
	buffer_close(&buffer);
	snprintf(cell, CELL, "%ju stale, %ju KiB kept, %ju stale, %ju stale in all", (uintmax_t)found, (uintmax_t)kept / 1024, (uintmax_t)after,
		 (uintmax_t)(accelerator_stat(WINDLASS_ACCELERATOR_ALL).stale_bytes - before));
}

#define ERROR_OF(request, type, ...) accelerator_error(request, &(struct type){ __VA_ARGS__ }, sizeof(struct type))

static void row_bad_requests(struct link *link, char *cell)
{
	struct buffer buffer = accelerator_buffer(), foreign = heap_buffer();
	struct { int error, expected; } refused[] = {
		{ ERROR_OF(WINDLASS_ACCELERATOR_ALLOC, windlass_accelerator_alloc, .bytes = 0), EINVAL },
		{ ERROR_OF(WINDLASS_ACCELERATOR_ALLOC, windlass_accelerator_alloc, .bytes = 4097), EINVAL },
		{ ERROR_OF(WINDLASS_ACCELERATOR_ALLOC, windlass_accelerator_alloc, .bytes = 1ULL << 62), EINVAL },
		{ ERROR_OF(WINDLASS_ACCELERATOR_ALLOC, windlass_accelerator_alloc, .bytes = 4096, .flags = 1), EINVAL },
		{ ERROR_OF(WINDLASS_ACCELERATOR_MOVE, windlass_accelerator_move, .dmabuf = -1), EBADF },
		{ ERROR_OF(WINDLASS_ACCELERATOR_MOVE, windlass_accelerator_move, .dmabuf = foreign.fd), EINVAL },
		{ ERROR_OF(WINDLASS_ACCELERATOR_MOVE, windlass_accelerator_move, .dmabuf = buffer.fd, .flags = 2), EINVAL },
		{ ERROR_OF(WINDLASS_ACCELERATOR_REVOKE, windlass_accelerator_revoke, .dmabuf = foreign.fd), EINVAL },
		{ ERROR_OF(WINDLASS_ACCELERATOR_REVOKE, windlass_accelerator_revoke, .dmabuf = buffer.fd), 0 },
		{ ERROR_OF(WINDLASS_ACCELERATOR_REVOKE, windlass_accelerator_revoke, .dmabuf = buffer.fd), ENODEV },
		{ ERROR_OF(WINDLASS_ACCELERATOR_MOVE, windlass_accelerator_move, .dmabuf = buffer.fd), ENODEV },
		{ ERROR_OF(_IO('W', 0x4f), windlass_accelerator_move), ENOTTY },
	};
	unsigned int right = 0, count = sizeof(refused) / sizeof(refused[0]);

	(void)link;
	for (unsigned int i = 0; i < count; i++)
		right += refused[i].error == refused[i].expected;
	snprintf(cell, CELL, "%u of %u answered rightly", right, count);
	buffer_close(&buffer);
	buffer_close(&foreign);
}

#define ALL(text) { text, text, text }

const struct row rows[] = {
	{ "MOVE ×20 amid writes", row_move, {
		"20 moved, 0 EBUSY, 20 faults, writes succeed, data right, 0 stale",
		"0 moved, 20 EBUSY, 0 faults, writes succeed, data right, 0 stale",
		"0 moved, 20 EBUSY, 0 faults, writes succeed, data right, 0 stale" } },
	{ "forced MOVE amid writes", row_forced_move, {
		"1 moved, 0 EBUSY, 1 faults, writes succeed, data right, 0 stale",
		"1 moved, 0 EBUSY, 0 faults, writes succeed, data lost, 65536 stale",
		"1 moved, 0 EBUSY, 0 faults, REM_ACCESS_ERR, both ERR, again: data right, 0 stale" } },
	{ "REVOKE amid writes", row_revoke, {
		"0, REM_ACCESS_ERR, both ERR, event, 0 stale, new buffer: data right",
		"EBUSY, writes succeed, 65536 stale, new buffer: data right",
		"0, REM_ACCESS_ERR, both ERR, event, 0 stale, new buffer: data right" } },
	{ "REVOKE of an idle region", row_revoke_idle, {
		"RTS, no event, a read: REM_ACCESS_ERR, registered anew: ENODEV",
		"RTS, no event, a read: succeeds, registered anew: ENODEV",
		"RTS, no event, a read: REM_ACCESS_ERR, registered anew: ENODEV" } },
	{ "MOVE behind a fence of 300 ms", row_fence, { "writes succeed after the fence, data right", "EBUSY", "EBUSY" } },
	{ "MOVE and REVOKE of the memory sent from", row_local, {
		"writes succeed, moved, then revoked: WR_FLUSH_ERR",
		"writes succeed, EBUSY, then revoked: writes succeed",
		"writes succeed, EBUSY, then revoked: WR_FLUSH_ERR" } },
	{ "atomics around a MOVE", row_atomic, {
		"success, moved, then 0 and 7, then 12",
		"success, EBUSY, then 0 and 7, then 12",
		"success, EBUSY, then 0 and 7, then 12" } },
	{ "the kernel's own exporters", row_exporters, ALL("udmabuf: data right, system heap: data right") },
	{ "a peer that does not answer", row_silent_peer, ALL("RETRY_EXC_ERR, connected anew: data right") },
	{ "the verb looked up by dlsym", row_looked_up, ALL("registered, other symbols: as ever") },
	{ "descriptors that cannot be registered", row_bad_input, ALL("good: 0, refused: yes yes yes yes yes yes") },
	{ "requests that the accelerator refuses", row_bad_requests, ALL("12 of 12 answered rightly") },
	{ "a forced MOVE, then 24 that keep 1 MiB", row_oracle, {
		"0 stale, 1024 KiB kept, 0 stale, 0 stale in all",
		"65536 stale, 1024 KiB kept, 65536 stale, 65536 stale in all",
		"0 stale, 1024 KiB kept, 0 stale, 0 stale in all" } },
};

const int row_count = sizeof(rows) / sizeof(rows[0]);
