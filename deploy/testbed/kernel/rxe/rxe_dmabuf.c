// SPDX-License-Identifier: GPL-2.0
/*
 * Memory regions of soft-RoCE over dma-bufs, in the three ways in which NICs import them.
 *
 *   dynamic    the buffer may move: its pages are dropped when the exporter says so, and asked for again at the next access (mlx5 with ODP)
 *   pinned     the buffer may not move, and nobody tells the NIC when it does (efa, bnxt_re, mana)
 *   revocable  the buffer may not move, and when the exporter takes it back all the same, the key dies (irdma)
 *
 * The module's parameter dmabuf_mode says which; a region keeps the mode it was registered in. dmabuf_faults counts the times that pages
 * were asked for again.
 *
 * A packet's copy holds the region's lock, and so does whoever drops its pages: when invalidation returns, nothing is copied any more.
 * The order of locks is the dma-buf's reservation lock, then the region's.
 */
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/module.h>

#include "rxe.h"

enum mode { DYNAMIC, PINNED, REVOCABLE };
static const char * const mode_names[] = { "dynamic", "pinned", "revocable" };
static int mode = DYNAMIC;

static int mode_set(const char *value, const struct kernel_param *parameter)
{
	int found = sysfs_match_string(mode_names, value);

	if (found < 0)
		return found;
	WRITE_ONCE(mode, found);
	return 0;
}

static int mode_get(char *buffer, const struct kernel_param *parameter)
{
	return sysfs_emit(buffer, "%s\n", mode_names[READ_ONCE(mode)]);
}

static const struct kernel_param_ops mode_operations = { .set = mode_set, .get = mode_get };
module_param_cb(dmabuf_mode, &mode_operations, NULL, 0644);
MODULE_PARM_DESC(dmabuf_mode, "how new regions import dma-bufs: dynamic, pinned or revocable");

static atomic_long_t faults;

static int faults_get(char *buffer, const struct kernel_param *parameter)
{
	return sysfs_emit(buffer, "%ld\n", atomic_long_read(&faults));
}

static const struct kernel_param_ops faults_operations = { .get = faults_get };
module_param_cb(dmabuf_faults, &faults_operations, NULL, 0444);
MODULE_PARM_DESC(dmabuf_faults, "times that pages of dynamic regions were asked for again");

struct rxe_dmabuf {
	struct rxe_mr *mr;
	struct mutex lock;
	struct dma_buf_attachment *attach;
	unsigned long offset;
	enum mode mode;
	bool pinned;		/* under the reservation lock */
	bool revoked;		/* under both locks, as what follows */
	struct sg_table *table;	/* NULL: mr->page_info is empty */
};

/* Fills page_info with the pages of the region. Addresses of a dma-buf for a device without an IOMMU are physical. */
static int fill_pages(struct rxe_dmabuf *dmabuf, struct sg_table *table)
{
	struct rxe_mr *mr = dmabuf->mr;
	unsigned long skip = dmabuf->offset >> PAGE_SHIFT;
	struct sg_dma_page_iter iter;
	u32 filled = 0;

	for_each_sgtable_dma_page(table, &iter, skip) {
		unsigned long pfn = PHYS_PFN(sg_page_iter_dma_address(&iter));

		if (filled == mr->nbuf)
			break;
		if (!pfn_valid(pfn))
			return -EOPNOTSUPP;
		mr->page_info[filled].page = pfn_to_page(pfn);
		mr->page_info[filled++].offset = 0;
	}
	return filled == mr->nbuf ? 0 : -EINVAL;
}

/* Asks the exporter for pages and waits until their contents are there. Under the reservation lock. */
static int map_pages(struct rxe_dmabuf *dmabuf)
{
	struct sg_table *table;
	long left;
	int err;

	if (dmabuf->revoked)
		return -ENODEV;
	if (dmabuf->table)
		return 0;
	table = dma_buf_map_attachment(dmabuf->attach, DMA_BIDIRECTIONAL);
	if (IS_ERR(table))
		return PTR_ERR(table);
	left = dma_resv_wait_timeout(dmabuf->attach->dmabuf->resv, DMA_RESV_USAGE_KERNEL, false, MAX_SCHEDULE_TIMEOUT);
	if (left < 0) {
		err = left;
		goto unmap;
	}
	mutex_lock(&dmabuf->lock);
	err = fill_pages(dmabuf, table);
	if (!err)
		dmabuf->table = table;
	mutex_unlock(&dmabuf->lock);
	if (!err)
		return 0;
unmap:
	dma_buf_unmap_attachment(dmabuf->attach, table, DMA_BIDIRECTIONAL);
	return err;
}

/* Drops the pages: afterwards no packet touches them. Under the reservation lock. */
static void drop_pages(struct rxe_dmabuf *dmabuf, bool revoke)
{
	struct rxe_mr *mr = dmabuf->mr;
	struct sg_table *table;

	mutex_lock(&dmabuf->lock);
	table = dmabuf->table;
	dmabuf->table = NULL;
	dmabuf->revoked |= revoke;
	memset(mr->page_info, 0, mr->nbuf * sizeof(*mr->page_info));
	mutex_unlock(&dmabuf->lock);
	if (table)
		dma_buf_unmap_attachment(dmabuf->attach, table, DMA_BIDIRECTIONAL);
	if (revoke && dmabuf->pinned) {
		dmabuf->pinned = false;
		dma_buf_unpin(dmabuf->attach);
	}
}

static void dynamic_invalidate(struct dma_buf_attachment *attach)
{
	drop_pages(attach->importer_priv, false);
}

static void revocable_invalidate(struct dma_buf_attachment *attach)
{
	drop_pages(attach->importer_priv, true);
}

static const struct dma_buf_attach_ops attach_operations[] = {
	[DYNAMIC] = { .allow_peer2peer = true, .invalidate_mappings = dynamic_invalidate },
	[PINNED] = { .allow_peer2peer = true },
	[REVOCABLE] = { .allow_peer2peer = true, .invalidate_mappings = revocable_invalidate },
};

int rxe_dmabuf_begin(struct rxe_mr *mr)
{
	struct rxe_dmabuf *dmabuf = mr->dmabuf;
	struct dma_resv *resv = dmabuf->attach->dmabuf->resv;
	int err;

	mutex_lock(&dmabuf->lock);
	if (dmabuf->table)
		return 0;
	err = dmabuf->revoked ? -ENODEV : 0;
	mutex_unlock(&dmabuf->lock);
	if (err)
		return err;

	dma_resv_lock(resv, NULL);
	atomic_long_inc(&faults);
	err = map_pages(dmabuf);
	/* Before the reservation lock is given back, so that the pages cannot go in between. */
	if (!err)
		mutex_lock(&dmabuf->lock);
	dma_resv_unlock(resv);
	return err;
}

void rxe_dmabuf_end(struct rxe_mr *mr)
{
	mutex_unlock(&mr->dmabuf->lock);
}

void rxe_dmabuf_release(struct rxe_mr *mr)
{
	struct rxe_dmabuf *dmabuf = mr->dmabuf;
	struct dma_buf *buffer;

	if (!dmabuf)
		return;
	buffer = dmabuf->attach->dmabuf;
	dma_resv_lock(buffer->resv, NULL);
	drop_pages(dmabuf, true);
	dma_resv_unlock(buffer->resv);
	dma_buf_detach(buffer, dmabuf->attach);
	dma_buf_put(buffer);
	kfree(dmabuf);
	mr->dmabuf = NULL;
}

/* Attaches to the dma-buf, pins it if the mode says so, and asks for the pages. On failure rxe_dmabuf_release undoes what was done. */
static int attach(struct rxe_mr *mr, u64 offset, u64 length, int fd)
{
	struct device *dev = &mr->ibmr.device->dev;
	struct dma_buf *buffer = dma_buf_get(fd);
	struct rxe_dmabuf *dmabuf;
	u64 end;
	int err;

	if (IS_ERR(buffer))
		return PTR_ERR(buffer);
	err = -EINVAL;
	if (!length || check_add_overflow(offset, length, &end) || end > buffer->size)
		goto put;
	err = -ENOMEM;
	mr->nbuf = PHYS_PFN(PAGE_ALIGN(end)) - PHYS_PFN(offset);
	mr->num_buf = mr->max_allowed_buf = mr->nbuf;
	mr->page_info = kcalloc(mr->nbuf, sizeof(*mr->page_info), GFP_KERNEL | __GFP_NOWARN);
	dmabuf = kzalloc(sizeof(*dmabuf), GFP_KERNEL);
	if (!mr->page_info || !dmabuf)
		goto free;

	dmabuf->mr = mr;
	mutex_init(&dmabuf->lock);
	dmabuf->offset = offset;
	dmabuf->mode = READ_ONCE(mode);
	/* soft-RoCE has no device that does DMA; exporters that map for one are given the RDMA device itself. */
	err = dma_coerce_mask_and_coherent(dev, DMA_BIT_MASK(64));
	if (err)
		goto free;
	dmabuf->attach = dma_buf_dynamic_attach(buffer, dev, &attach_operations[dmabuf->mode], dmabuf);
	if (IS_ERR(dmabuf->attach)) {
		err = PTR_ERR(dmabuf->attach);
		goto free;
	}
	mr->dmabuf = dmabuf;

	dma_resv_lock(buffer->resv, NULL);
	if (dmabuf->mode != DYNAMIC) {
		err = dma_buf_pin(dmabuf->attach);
		dmabuf->pinned = !err;
	}
	if (!err)
		err = map_pages(dmabuf);
	dma_resv_unlock(buffer->resv);
	return err;

free:
	kfree(dmabuf);	/* page_info goes with the region */
put:
	dma_buf_put(buffer);
	return err;
}

struct ib_mr *rxe_reg_user_mr_dmabuf(struct ib_pd *ibpd, u64 offset, u64 length, u64 iova, int fd, int access,
				     struct ib_dmah *dmah, struct uverbs_attr_bundle *attrs)
{
	struct rxe_dev *rxe = to_rdev(ibpd->device);
	struct rxe_mr *mr;
	int err;

	if (dmah || access & ~RXE_ACCESS_SUPPORTED_MR)
		return ERR_PTR(-EOPNOTSUPP);
	mr = kzalloc(sizeof(*mr), GFP_KERNEL);
	if (!mr)
		return ERR_PTR(-ENOMEM);
	err = rxe_add_to_pool(&rxe->mr_pool, mr);
	if (err) {
		kfree(mr);
		return ERR_PTR(err);
	}
	rxe_get(to_rpd(ibpd));
	mr->ibmr.pd = ibpd;
	mr->ibmr.device = ibpd->device;
	rxe_mr_init(access, mr);
	mr->ibmr.type = IB_MR_TYPE_USER;
	mr->ibmr.iova = iova;
	mr->ibmr.length = length;
	err = attach(mr, offset, length, fd);
	if (err) {
		rxe_cleanup(mr);
		kfree(mr);
		return ERR_PTR(err);
	}
	mr->state = RXE_MR_STATE_VALID;
	rxe_finalize(mr);
	return &mr->ibmr;
}

MODULE_IMPORT_NS("DMA_BUF");
