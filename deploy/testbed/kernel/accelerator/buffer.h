/* SPDX-License-Identifier: GPL-2.0 */
#ifndef WINDLASS_ACCELERATOR_BUFFER_H
#define WINDLASS_ACCELERATOR_BUFFER_H

#include <linux/dma-buf.h>

#include "windlass_accelerator.h"

/* Returns a new buffer of that many bytes, to be installed as a descriptor, or an ERR_PTR. */
struct dma_buf *buffer_create(u64 bytes);

/* Whether the dma-buf is one of ours. */
bool buffer_is(struct dma_buf *dmabuf);

int buffer_move(struct dma_buf *dmabuf, bool force, unsigned int fence_ms);
int buffer_revoke(struct dma_buf *dmabuf);
void buffer_stat(struct dma_buf *dmabuf, struct windlass_accelerator_stat *stat);
void buffer_stat_all(struct windlass_accelerator_stat *stat);

#endif
