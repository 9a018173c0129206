// SPDX-License-Identifier: Apache-2.0 OR MIT
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "selftest.h"

static void side_open(struct side *side, const char *name)
{
	struct ibv_qp_init_attr attributes = { .qp_type = IBV_QPT_RC };
	struct ibv_device **devices = ibv_get_device_list(NULL);

	for (int i = 0; devices && devices[i]; i++)
		if (strcmp(ibv_get_device_name(devices[i]), name) == 0)
			side->context = ibv_open_device(devices[i]);
	if (!side->context)
		die("there is no RDMA device %s", name);
	ibv_free_device_list(devices);

	/* The GID that is made of the address: the one of RoCE v2 over IPv4. */
	side->gid_index = -1;
	for (int i = 0; i < 8 && side->gid_index < 0; i++)
		if (ibv_query_gid(side->context, 1, i, &side->gid) == 0 && side->gid.raw[10] == 0xff && side->gid.raw[11] == 0xff)
			side->gid_index = i;
	if (side->gid_index < 0)
		die("%s has no GID of its IPv4 address", name);

	side->pd = ibv_alloc_pd(side->context);
	side->channel = ibv_create_comp_channel(side->context);
	side->cq = side->channel ? ibv_create_cq(side->context, 4 * WINDOW, NULL, side->channel, 0) : NULL;
	attributes.send_cq = attributes.recv_cq = side->cq;
	attributes.cap = (struct ibv_qp_cap){ .max_send_wr = 2 * WINDOW, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 };
	side->qp = side->pd && side->cq ? ibv_create_qp(side->pd, &attributes) : NULL;
	if (!side->qp)
		die("cannot create a queue pair on %s", name);
	if (fcntl(side->context->async_fd, F_SETFL, O_NONBLOCK) || fcntl(side->channel->fd, F_SETFL, O_NONBLOCK))
		die("cannot make the events of %s non-blocking", name);
}

static void modify(struct side *side, struct ibv_qp_attr attributes, int mask)
{
	int error = ibv_modify_qp(side->qp, &attributes, mask | IBV_QP_STATE);

	if (error)
		die("cannot take a queue pair to state %d: %s", attributes.qp_state, strerror(error));
}

static void side_drain(struct side *side)
{
	struct ibv_async_event event;
	struct ibv_cq *cq;
	struct ibv_wc wc;
	void *context;

	while (ibv_poll_cq(side->cq, 1, &wc) > 0)
		;
	while (ibv_get_cq_event(side->channel, &cq, &context) == 0)
		ibv_ack_cq_events(cq, 1);
	while (ibv_get_async_event(side->context, &event) == 0)
		ibv_ack_async_event(&event);
}

static void side_connect(struct side *side, struct side *peer, int retries)
{
	modify(side, (struct ibv_qp_attr){ .qp_state = IBV_QPS_INIT, .port_num = 1,
		.qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC },
		IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
	modify(side, (struct ibv_qp_attr){ .qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_4096, .dest_qp_num = peer->qp->qp_num,
		.max_dest_rd_atomic = 4, .min_rnr_timer = 12,
		.ah_attr = { .is_global = 1, .port_num = 1, .grh = { .dgid = peer->gid, .sgid_index = side->gid_index, .hop_limit = 4 } } },
		IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
	modify(side, (struct ibv_qp_attr){ .qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = retries, .rnr_retry = 7, .max_rd_atomic = 4 },
		IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
}

void link_connect(struct link *link, int retries)
{
	modify(&link->sender, (struct ibv_qp_attr){ .qp_state = IBV_QPS_RESET }, 0);
	modify(&link->target, (struct ibv_qp_attr){ .qp_state = IBV_QPS_RESET }, 0);
	side_drain(&link->sender);
	side_drain(&link->target);
	side_connect(&link->target, &link->sender, retries);
	side_connect(&link->sender, &link->target, retries);
}

void link_open(struct link *link, const char *sender, const char *target)
{
	side_open(&link->sender, sender);
	side_open(&link->target, target);
	link->source = aligned_alloc(4096, WINDOW * WRITE_BYTES);
	link->source_mr = ibv_reg_mr(link->sender.pd, link->source, WINDOW * WRITE_BYTES, IBV_ACCESS_LOCAL_WRITE);
	if (!link->source_mr)
		die("cannot register host memory");
}

enum ibv_qp_state side_state(struct side *side)
{
	struct ibv_qp_init_attr init;
	struct ibv_qp_attr attributes;

	if (ibv_query_qp(side->qp, &attributes, IBV_QP_STATE, &init))
		die("cannot ask a queue pair for its state");
	return attributes.qp_state;
}

void link_post(struct link *link, enum ibv_wr_opcode opcode, unsigned int value, uint64_t address, uint32_t rkey)
{
	uint8_t *slot = link->source + value % WINDOW * WRITE_BYTES;
	struct ibv_sge sge = { .addr = (uintptr_t)slot, .length = WRITE_BYTES, .lkey = link->source_mr->lkey };
	struct ibv_send_wr request = {
		.wr_id = value, .sg_list = &sge, .num_sge = 1, .opcode = opcode, .send_flags = IBV_SEND_SIGNALED,
		.wr.rdma = { .remote_addr = address, .rkey = rkey },
	}, *bad;

	if (opcode == IBV_WR_RDMA_WRITE)
		fill(slot, value);
	if (ibv_post_send(link->sender.qp, &request, &bad))
		die("cannot post a write");
}

/* soft-RoCE reports the error first and changes the state of the queue pair then; a reset in between would be undone. */
static void side_wait_for_error(struct side *side)
{
	for (int ms = 0; ms < 2000 && side_state(side) != IBV_QPS_ERR; ms++)
		usleep(1000);
}

struct ibv_wc link_wait(struct link *link)
{
	struct pollfd readable = { .fd = link->sender.channel->fd, .events = POLLIN };
	struct ibv_wc wc;
	struct ibv_cq *cq;
	void *context;

	for (;;) {
		if (ibv_req_notify_cq(link->sender.cq, 0))
			die("cannot ask for notice of completions");
		/* After asking, so that none falls between. */
		if (ibv_poll_cq(link->sender.cq, 1, &wc) == 1)
			break;
		if (poll(&readable, 1, 30000) != 1)
			die("no completion in 30 s");
		if (ibv_get_cq_event(link->sender.channel, &cq, &context) == 0)
			ibv_ack_cq_events(cq, 1);
	}
	if (wc.status != IBV_WC_SUCCESS)
		side_wait_for_error(&link->sender);
	if (wc.status == IBV_WC_REM_ACCESS_ERR)
		side_wait_for_error(&link->target);
	return wc;
}

enum ibv_wc_status link_write_from(struct link *link, struct ibv_mr *source, uint64_t address, uint32_t rkey)
{
	struct ibv_sge sge = { .addr = REGION_IOVA, .length = WRITE_BYTES, .lkey = source->lkey };
	struct ibv_send_wr request = {
		.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_RDMA_WRITE, .send_flags = IBV_SEND_SIGNALED,
		.wr.rdma = { .remote_addr = address, .rkey = rkey },
	}, *bad;

	if (ibv_post_send(link->sender.qp, &request, &bad))
		die("cannot post a write");
	return link_wait(link).status;
}

enum ibv_wc_status link_fetch_and_add(struct link *link, uint64_t add, uint64_t address, uint32_t rkey, uint64_t *before)
{
	struct ibv_sge sge = { .addr = (uintptr_t)link->source, .length = sizeof(*before), .lkey = link->source_mr->lkey };
	struct ibv_send_wr request = {
		.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_ATOMIC_FETCH_AND_ADD, .send_flags = IBV_SEND_SIGNALED,
		.wr.atomic = { .remote_addr = address, .rkey = rkey, .compare_add = add },
	}, *bad;
	enum ibv_wc_status status;

	if (ibv_post_send(link->sender.qp, &request, &bad))
		die("cannot post an atomic");
	status = link_wait(link).status;
	memcpy(before, link->source, sizeof(*before));
	return status;
}

bool link_access_event(struct link *link)
{
	struct pollfd readable = { .fd = link->target.context->async_fd, .events = POLLIN };
	struct ibv_async_event event;
	bool seen = false;

	while (!seen && poll(&readable, 1, 1000) == 1 && ibv_get_async_event(link->target.context, &event) == 0) {
		seen = event.event_type == IBV_EVENT_QP_ACCESS_ERR;
		ibv_ack_async_event(&event);
	}
	return seen;
}
