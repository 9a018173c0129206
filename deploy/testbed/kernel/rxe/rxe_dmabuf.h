/* SPDX-License-Identifier: GPL-2.0 */
#ifndef RXE_DMABUF_H
#define RXE_DMABUF_H

struct rxe_mr;

struct ib_mr *rxe_reg_user_mr_dmabuf(struct ib_pd *pd, u64 offset, u64 length, u64 iova, int fd, int access,
				     struct ib_dmah *dmah, struct uverbs_attr_bundle *attrs);

/* Every access to the pages of a region with mr->dmabuf stands between these two. An error means that there are no pages: the key is dead. */
int rxe_dmabuf_begin(struct rxe_mr *mr);
void rxe_dmabuf_end(struct rxe_mr *mr);

/* Lets go of the dma-buf, if the region has one. */
void rxe_dmabuf_release(struct rxe_mr *mr);

#endif
