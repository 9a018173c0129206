/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the self-test is made of: a link of two queue pairs, buffers of several exporters, and the rows of its table. */
#ifndef SELFTEST_H
#define SELFTEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <infiniband/verbs.h>

#include "windlass_accelerator.h"

#define WRITE_BYTES 65536
#define WINDOW 4

/* Ends the self-test: something failed that no row is about. */
void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

/* link.c: two RC queue pairs on the devices of two hosts */

struct side {
	struct ibv_context *context;
	struct ibv_pd *pd;
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
	struct ibv_qp *qp;
	union ibv_gid gid;
	int gid_index;
};

struct link {
	struct side sender, target;
	uint8_t *source;	/* WINDOW slots of WRITE_BYTES */
	struct ibv_mr *source_mr;
};

/* A region lies inside its buffer at an offset, as device memory does, and has addresses of its own. */
#define REGION_OFFSET 0x3200
#define REGION_IOVA 0x70200

void link_open(struct link *link, const char *sender, const char *target);
/* Takes both queue pairs through RESET to RTS and forgets what happened before. */
void link_connect(struct link *link, int retries);
enum ibv_qp_state side_state(struct side *side);
/* Writes (or reads) slot by slot; the value of write i fills its slot. */
void link_post(struct link *link, enum ibv_wr_opcode opcode, unsigned int value, uint64_t address, uint32_t rkey);
/* Writes WRITE_BYTES from a region of the sender's at REGION_IOVA, and waits for it. */
enum ibv_wc_status link_write_from(struct link *link, struct ibv_mr *source, uint64_t address, uint32_t rkey);
/* Adds to a word of the target and waits for it; *before is what the word was. */
enum ibv_wc_status link_fetch_and_add(struct link *link, uint64_t add, uint64_t address, uint32_t rkey, uint64_t *before);
/* The next completion of the sender. */
struct ibv_wc link_wait(struct link *link);
/* Whether the target has been told of an access error. */
bool link_access_event(struct link *link);

/* buffer.c: memory behind a dma-buf, and what it should hold */

#define BUFFER_BYTES (2 * WRITE_BYTES)

struct buffer {
	int fd;
	uint8_t *map;
};

struct buffer accelerator_buffer(void);
struct buffer udmabuf_buffer(void);
struct buffer heap_buffer(void);
void buffer_close(struct buffer *buffer);
int accelerator_move(struct buffer *buffer, unsigned int flags, unsigned int fence_ms); /* 0 or errno */
int accelerator_revoke(struct buffer *buffer);
struct windlass_accelerator_stat accelerator_stat(int dmabuf);
uint64_t accelerator_stale_bytes(struct buffer *buffer);
/* The errno of a request with these words in place of its arguments, or 0. */
int accelerator_error(unsigned long request, const void *arguments, size_t bytes);
void fill(uint8_t *to, unsigned int value);
/* Whether the region holds that value, and nothing around it was touched. */
bool buffer_holds(struct buffer *buffer, unsigned int value);
void *mapped(int fd, size_t bytes);

/* rows.c */

#define CELL 160
#define MODES 3
extern const char *const modes[MODES];

struct row {
	const char *name;
	void (*run)(struct link *link, char *cell);
	const char *expected[MODES];	/* in the order of `modes` */
};

extern const struct row rows[];
extern const int row_count;
void set_importer(const char *mode);

#endif
