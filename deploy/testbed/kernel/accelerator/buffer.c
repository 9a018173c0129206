// SPDX-License-Identifier: GPL-2.0
/*
 * A buffer: memory that is exported as a dma-buf, moves, is revoked, and remembers who wrote too late.
 *
 * Its pages of one time are a *place*. A move makes a new place, tells the importers, copies, fills the old pages with poison and keeps them;
 * a byte among them that is not poison any more was written by somebody who had no right to ("stale"). Kept places are given back to the system
 * oldest first when they exceed keep_mb, but never while an importer still maps them.
 *
 * Everything in a buffer is under its dma-buf's reservation lock. The contents of a move behind a fence are an exception: its work copies
 * without the lock, because an importer may hold it while it waits for the fence; nobody else touches the two places before the fence is over.
 */
#include <linux/dma-fence.h>
#include <linux/dma-resv.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "buffer.h"

static unsigned int keep_mb = 64;
module_param(keep_mb, uint, 0644);
MODULE_PARM_DESC(keep_mb, "of each buffer, pages given up that are kept to be watched");

struct place {
	struct list_head list;	/* in buffer.given_up, oldest first */
	unsigned int maps;	/* importers that map it */
	struct page *page[];
};

struct buffer {
	struct list_head list;	/* in buffers */
	struct dma_buf *dmabuf;
	unsigned int pages;
	struct place *place;	/* NULL once revoked */
	struct list_head given_up;
	unsigned int given_up_count;
	unsigned int pins;
	u64 moves;
	u64 stale_bytes;	/* found in places that have been given back */
};

/* Every buffer there is, and the sums of those that are gone. Taken before a reservation lock. */
static DEFINE_MUTEX(buffers_lock);
static LIST_HEAD(buffers);
static struct windlass_accelerator_stat gone;

/* Places */

static void place_free(struct place *place, unsigned int pages)
{
	for (unsigned int i = 0; i < pages; i++)
		if (place->page[i])
			__free_page(place->page[i]);
	kvfree(place);
}

static struct place *place_alloc(unsigned int pages)
{
	struct place *place = kvzalloc(struct_size(place, page, pages), GFP_KERNEL);

	if (!place)
		return NULL;
	for (unsigned int i = 0; i < pages; i++) {
		/* A buffer too large is refused, and kills nobody. */
		place->page[i] = alloc_page(GFP_HIGHUSER | __GFP_ZERO | __GFP_NORETRY | __GFP_NOWARN);
		if (!place->page[i]) {
			place_free(place, i);
			return NULL;
		}
		cond_resched();
	}
	return place;
}

static void place_poison(struct place *place, unsigned int pages)
{
	for (unsigned int i = 0; i < pages; i++) {
		void *address = kmap_local_page(place->page[i]);

		memset(address, WINDLASS_ACCELERATOR_POISON, PAGE_SIZE);
		kunmap_local(address);
	}
}

static void place_copy(struct place *to, struct place *from, unsigned int pages)
{
	for (unsigned int i = 0; i < pages; i++)
		copy_highpage(to->page[i], from->page[i]);
}

static u64 place_stale_bytes(struct place *place, unsigned int pages)
{
	u64 stale = 0;

	for (unsigned int i = 0; i < pages; i++) {
		const u8 *address = kmap_local_page(place->page[i]);

		if (memchr_inv(address, WINDLASS_ACCELERATOR_POISON, PAGE_SIZE))
			for (unsigned int j = 0; j < PAGE_SIZE; j++)
				stale += READ_ONCE(address[j]) != WINDLASS_ACCELERATOR_POISON;
		kunmap_local(address);
		cond_resched();
	}
	return stale;
}

/* Files a place among those given up, and gives the oldest back to the system. */
static void give_up(struct buffer *buffer, struct place *place)
{
	struct place *old, *next;

	list_add_tail(&place->list, &buffer->given_up);
	buffer->given_up_count++;
	list_for_each_entry_safe(old, next, &buffer->given_up, list) {
		if ((u64)buffer->given_up_count * buffer->pages <= (u64)keep_mb << (20 - PAGE_SHIFT))
			break;
		if (old->maps || old == place)
			continue;
		buffer->stale_bytes += place_stale_bytes(old, buffer->pages);
		list_del(&old->list);
		buffer->given_up_count--;
		place_free(old, buffer->pages);
	}
}

/* Moves behind a fence */

struct arrival {
	struct dma_fence fence;
	spinlock_t lock;
	struct delayed_work work;
	struct place *from, *to;
	unsigned int pages;
};

static const char *arrival_name(struct dma_fence *fence)
{
	return "windlass_accelerator";
}

static const struct dma_fence_ops arrival_operations = {
	.get_driver_name = arrival_name,
	.get_timeline_name = arrival_name,
};

static void arrive(struct work_struct *work)
{
	struct arrival *arrival = container_of(to_delayed_work(work), struct arrival, work);

	place_copy(arrival->to, arrival->from, arrival->pages);
	place_poison(arrival->from, arrival->pages);
	dma_fence_signal(&arrival->fence);
	dma_fence_put(&arrival->fence);
}

static struct arrival *arrival_create(struct buffer *buffer)
{
	struct arrival *arrival = kzalloc(sizeof(*arrival), GFP_KERNEL);

	if (!arrival)
		return NULL;
	spin_lock_init(&arrival->lock);
	INIT_DELAYED_WORK(&arrival->work, arrive);
	dma_fence_init(&arrival->fence, &arrival_operations, &arrival->lock, dma_fence_context_alloc(1), 1);
	arrival->pages = buffer->pages;
	return arrival;
}

/* Waits until the contents are there. Under the reservation lock. */
static int wait_for_arrival(struct buffer *buffer)
{
	long left = dma_resv_wait_timeout(buffer->dmabuf->resv, DMA_RESV_USAGE_KERNEL, true, MAX_SCHEDULE_TIMEOUT);

	return left < 0 ? left : 0;
}

/* The exporter's side of the dma-buf */

static int buffer_attach(struct dma_buf *dmabuf, struct dma_buf_attachment *attachment)
{
	/* The memory is a device's: it has bus addresses only. */
	return attachment->peer2peer ? 0 : -EOPNOTSUPP;
}

static int buffer_pin(struct dma_buf_attachment *attachment)
{
	struct buffer *buffer = attachment->dmabuf->priv;

	if (!buffer->place)
		return -ENODEV;
	buffer->pins++;
	return 0;
}

static void buffer_unpin(struct dma_buf_attachment *attachment)
{
	struct buffer *buffer = attachment->dmabuf->priv;

	buffer->pins--;
}

static struct sg_table *buffer_map(struct dma_buf_attachment *attachment, enum dma_data_direction direction)
{
	struct buffer *buffer = attachment->dmabuf->priv;
	struct scatterlist *entry;
	struct sg_table *table;
	int i, err;

	if (!buffer->place)
		return ERR_PTR(-ENODEV);
	table = kzalloc(sizeof(*table), GFP_KERNEL);
	if (!table)
		return ERR_PTR(-ENOMEM);
	err = sg_alloc_table(table, buffer->pages, GFP_KERNEL);
	if (err) {
		kfree(table);
		return ERR_PTR(err);
	}
	for_each_sgtable_dma_sg(table, entry, i) {
		sg_dma_address(entry) = page_to_phys(buffer->place->page[i]);
		sg_dma_len(entry) = PAGE_SIZE;
	}
	buffer->place->maps++;
	/* An importer maps one place at a time, and gives it back before it maps the next. */
	attachment->priv = buffer->place;
	return table;
}

static void buffer_unmap(struct dma_buf_attachment *attachment, struct sg_table *table, enum dma_data_direction direction)
{
	struct place *place = attachment->priv;

	place->maps--;
	sg_free_table(table);
	kfree(table);
}

/* Pages that come with the one that was touched: after a move every page faults again. */
#define FAULT_AROUND 64

/* Maps the page that was touched, and those behind it as far as it goes. */
static vm_fault_t map_around(struct vm_fault *fault, struct buffer *buffer)
{
	vm_fault_t result = VM_FAULT_SIGBUS;
	unsigned long address = fault->address;

	for (pgoff_t i = fault->pgoff; i < buffer->pages && i < fault->pgoff + FAULT_AROUND && address < fault->vma->vm_end; i++) {
		vm_fault_t mapped = vmf_insert_pfn(fault->vma, address, page_to_pfn(buffer->place->page[i]));

		if (i == fault->pgoff)
			result = mapped;
		if (mapped != VM_FAULT_NOPAGE)
			break;
		address += PAGE_SIZE;
	}
	return result;
}

static vm_fault_t buffer_fault(struct vm_fault *fault)
{
	struct buffer *buffer = fault->vma->vm_private_data;
	vm_fault_t result = VM_FAULT_SIGBUS;

	if (dma_resv_lock_interruptible(buffer->dmabuf->resv, NULL))
		return VM_FAULT_NOPAGE;
	if (wait_for_arrival(buffer))
		result = VM_FAULT_NOPAGE;
	else if (buffer->place && fault->pgoff < buffer->pages)
		result = map_around(fault, buffer);
	dma_resv_unlock(buffer->dmabuf->resv);
	return result;
}

static const struct vm_operations_struct buffer_vm_operations = {
	.fault = buffer_fault,
};

static int buffer_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP | VM_IO);
	vma->vm_ops = &buffer_vm_operations;
	vma->vm_private_data = dmabuf->priv;
	return 0;
}

/* The last descriptor, mapping and attachment are gone. */
static void buffer_release(struct dma_buf *dmabuf)
{
	struct buffer *buffer = dmabuf->priv;
	struct place *place, *next;

	dma_resv_wait_timeout(dmabuf->resv, DMA_RESV_USAGE_KERNEL, false, MAX_SCHEDULE_TIMEOUT);
	mutex_lock(&buffers_lock);
	list_del(&buffer->list);
	gone.revoked += !buffer->place;
	gone.moves += buffer->moves;
	gone.stale_bytes += buffer->stale_bytes;
	list_for_each_entry_safe(place, next, &buffer->given_up, list) {
		gone.stale_bytes += place_stale_bytes(place, buffer->pages);
		place_free(place, buffer->pages);
	}
	mutex_unlock(&buffers_lock);
	if (buffer->place)
		place_free(buffer->place, buffer->pages);
	kfree(buffer);
}

static const struct dma_buf_ops buffer_operations = {
	.attach = buffer_attach,
	.pin = buffer_pin,
	.unpin = buffer_unpin,
	.map_dma_buf = buffer_map,
	.unmap_dma_buf = buffer_unmap,
	.mmap = buffer_mmap,
	.release = buffer_release,
};

/* What the device node asks for */

bool buffer_is(struct dma_buf *dmabuf)
{
	return dmabuf->ops == &buffer_operations;
}

struct dma_buf *buffer_create(u64 bytes)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct buffer *buffer;

	if (!bytes || !PAGE_ALIGNED(bytes) || bytes > (u64)totalram_pages() << PAGE_SHIFT)
		return ERR_PTR(-EINVAL);
	buffer = kzalloc(sizeof(*buffer), GFP_KERNEL);
	if (!buffer)
		return ERR_PTR(-ENOMEM);
	INIT_LIST_HEAD(&buffer->given_up);
	buffer->pages = bytes >> PAGE_SHIFT;
	buffer->place = place_alloc(buffer->pages);
	if (!buffer->place) {
		kfree(buffer);
		return ERR_PTR(-ENOMEM);
	}
	info.ops = &buffer_operations;
	info.size = bytes;
	info.flags = O_RDWR;
	info.priv = buffer;
	buffer->dmabuf = dma_buf_export(&info);
	if (IS_ERR(buffer->dmabuf)) {
		struct dma_buf *err = buffer->dmabuf;

		place_free(buffer->place, buffer->pages);
		kfree(buffer);
		return err;
	}
	mutex_lock(&buffers_lock);
	list_add(&buffer->list, &buffers);
	mutex_unlock(&buffers_lock);
	return buffer->dmabuf;
}

/* Tells the CPU's mappings and the importers that the place is left, and waits for what they have under way. */
static void leave_place(struct buffer *buffer)
{
	struct dma_buf *dmabuf = buffer->dmabuf;

	unmap_mapping_range(dmabuf->file->f_mapping, 0, 0, 1);
	dma_buf_invalidate_mappings(dmabuf);
	dma_resv_wait_timeout(dmabuf->resv, DMA_RESV_USAGE_BOOKKEEP, false, MAX_SCHEDULE_TIMEOUT);
}

static int move_locked(struct buffer *buffer, bool force, struct place *place, struct arrival *arrival, unsigned int fence_ms)
{
	struct place *left = buffer->place;
	int err = wait_for_arrival(buffer);

	if (err)
		return err;
	if (!left)
		return -ENODEV;
	if (buffer->pins && !force)
		return -EBUSY;
	if (arrival) {
		err = dma_resv_reserve_fences(buffer->dmabuf->resv, 1);
		if (err)
			return err;
	}
	leave_place(buffer);
	buffer->place = place;
	buffer->moves++;
	if (arrival) {
		/* Who does not wait for the fence finds poison. */
		place_poison(place, buffer->pages);
		arrival->from = left;
		arrival->to = place;
		dma_resv_add_fence(buffer->dmabuf->resv, &arrival->fence, DMA_RESV_USAGE_KERNEL);
		dma_fence_get(&arrival->fence);
		schedule_delayed_work(&arrival->work, msecs_to_jiffies(fence_ms));
	} else {
		place_copy(place, left, buffer->pages);
		place_poison(left, buffer->pages);
	}
	give_up(buffer, left);
	return 0;
}

int buffer_move(struct dma_buf *dmabuf, bool force, unsigned int fence_ms)
{
	struct buffer *buffer = dmabuf->priv;
	struct place *place = place_alloc(buffer->pages);
	struct arrival *arrival = fence_ms ? arrival_create(buffer) : NULL;
	int err = -ENOMEM;

	if (place && (arrival || !fence_ms)) {
		err = dma_resv_lock_interruptible(dmabuf->resv, NULL);
		if (!err) {
			err = move_locked(buffer, force, place, arrival, fence_ms);
			dma_resv_unlock(dmabuf->resv);
		}
	}
	if (arrival) {
		if (err)
			dma_fence_signal(&arrival->fence);
		dma_fence_put(&arrival->fence);
	}
	if (err && place)
		place_free(place, buffer->pages);
	return err;
}

int buffer_revoke(struct dma_buf *dmabuf)
{
	struct buffer *buffer = dmabuf->priv;
	struct place *left;
	int err = dma_resv_lock_interruptible(dmabuf->resv, NULL);

	if (err)
		return err;
	left = buffer->place;
	err = left ? wait_for_arrival(buffer) : -ENODEV;
	if (!err) {
		/* First, so that nobody maps it again. */
		buffer->place = NULL;
		leave_place(buffer);
		place_poison(left, buffer->pages);
		give_up(buffer, left);
		err = left->maps ? -EBUSY : 0;
	}
	dma_resv_unlock(dmabuf->resv);
	return err;
}

void buffer_stat(struct dma_buf *dmabuf, struct windlass_accelerator_stat *stat)
{
	struct buffer *buffer = dmabuf->priv;
	struct place *place;

	dma_resv_lock(dmabuf->resv, NULL);
	/* A place whose contents are still to be copied is no evidence. */
	dma_resv_wait_timeout(dmabuf->resv, DMA_RESV_USAGE_KERNEL, false, MAX_SCHEDULE_TIMEOUT);
	stat->revoked += !buffer->place;
	stat->bytes += dmabuf->size;
	stat->moves += buffer->moves;
	stat->pins += buffer->pins;
	stat->maps += buffer->place ? buffer->place->maps : 0;
	stat->kept_bytes += (u64)buffer->given_up_count * dmabuf->size;
	stat->stale_bytes += buffer->stale_bytes;
	list_for_each_entry(place, &buffer->given_up, list) {
		stat->maps += place->maps;
		stat->stale_bytes += place_stale_bytes(place, buffer->pages);
	}
	dma_resv_unlock(dmabuf->resv);
}

void buffer_stat_all(struct windlass_accelerator_stat *stat)
{
	struct buffer *buffer;

	mutex_lock(&buffers_lock);
	stat->revoked = gone.revoked;
	stat->moves = gone.moves;
	stat->stale_bytes = gone.stale_bytes;
	list_for_each_entry(buffer, &buffers, list)
		buffer_stat(buffer->dmabuf, stat);
	mutex_unlock(&buffers_lock);
}
