// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/accel/accel0 as the driver of Gaudi accelerators (habanalabs) has it, as far as windlass asks for it, on RAM.
 *
 * The requests are those of drm/habanalabs_accel.h: the driver's name, the hardware's DRAM, and of the memory requests ALLOC, FREE, MAP, UNMAP and
 * EXPORT_DMABUF_FD. What it exports behaves as that driver's dma-bufs do: there is no pin, the memory neither moves nor is revoked, nobody but a device that
 * can reach its peers maps it, and the device's file, which one process at a time has open, stays open until the last dma-buf is gone. What is
 * exported can be neither unmapped nor freed.
 */
#include <drm/drm.h>
#include <drm/habanalabs_accel.h>
#include <linux/dma-buf.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#define DRAM_BASE 0x20000000ull
#define DRAM_BYTES (64ull << 20)
/* What the driver deals in; that of a Gaudi 2 is larger. */
#define DRAM_PAGE_BYTES (64ull << 10)
#define DEVICE_ADDRESSES 0x1001000000000000ull

struct memory {
	struct list_head list;
	u64 handle;
	u64 address;		/* the device's; 0 while it is not mapped */
	unsigned int exports;
	unsigned int pages;
	struct page *page[];
};

/* What one open file has. There is one at a time. */
struct context {
	struct mutex lock;
	struct list_head memories;
	u64 next_handle, next_address, used_bytes;
};

struct exported {
	struct context *context;
	struct memory *memory;
	struct file *file;
	unsigned int first, pages;
};

static atomic_t opened = ATOMIC_INIT(0);

static void memory_free(struct memory *memory)
{
	for (unsigned int i = 0; i < memory->pages; i++)
		if (memory->page[i])
			__free_page(memory->page[i]);
	kvfree(memory);
}

static struct memory *find_handle(struct context *context, u64 handle)
{
	struct memory *memory;

	list_for_each_entry(memory, &context->memories, list)
		if (memory->handle == handle)
			return memory;
	return NULL;
}

static struct memory *find_address(struct context *context, u64 address)
{
	struct memory *memory;

	list_for_each_entry(memory, &context->memories, list)
		if (address && memory->address == address)
			return memory;
	return NULL;
}

/* The dma-buf */

static struct sg_table *exported_map(struct dma_buf_attachment *attachment, enum dma_data_direction direction)
{
	struct exported *exported = attachment->dmabuf->priv;
	struct scatterlist *entry;
	struct sg_table *table;
	int i, err;

	/* The memory has bus addresses only. */
	if (!attachment->peer2peer)
		return ERR_PTR(-EPERM);
	table = kzalloc(sizeof(*table), GFP_KERNEL);
	if (!table)
		return ERR_PTR(-ENOMEM);
	err = sg_alloc_table(table, exported->pages, GFP_KERNEL);
	if (err) {
		kfree(table);
		return ERR_PTR(err);
	}
	for_each_sgtable_dma_sg(table, entry, i) {
		sg_dma_address(entry) = page_to_phys(exported->memory->page[exported->first + i]);
		sg_dma_len(entry) = PAGE_SIZE;
	}
	return table;
}

static void exported_unmap(struct dma_buf_attachment *attachment, struct sg_table *table, enum dma_data_direction direction)
{
	sg_free_table(table);
	kfree(table);
}

static void exported_release(struct dma_buf *dmabuf)
{
	struct exported *exported = dmabuf->priv;

	mutex_lock(&exported->context->lock);
	exported->memory->exports--;
	mutex_unlock(&exported->context->lock);
	/* Perhaps the last: then the device is closed, and with it goes the context. */
	fput(exported->file);
	kfree(exported);
}

static const struct dma_buf_ops exported_operations = {
	.map_dma_buf = exported_map,
	.unmap_dma_buf = exported_unmap,
	.release = exported_release,
};

/* The requests; each is under the context's lock */

static int do_alloc(struct context *context, union hl_mem_args *args)
{
	u64 bytes = round_up(args->in.alloc.mem_size, DRAM_PAGE_BYTES);
	struct memory *memory;

	if (!args->in.alloc.mem_size || bytes < args->in.alloc.mem_size)
		return -EINVAL;
	if (bytes > DRAM_BYTES - context->used_bytes)
		return -ENOMEM;
	memory = kvzalloc(struct_size(memory, page, bytes >> PAGE_SHIFT), GFP_KERNEL);
	if (!memory)
		return -ENOMEM;
	memory->pages = bytes >> PAGE_SHIFT;
	for (unsigned int i = 0; i < memory->pages; i++) {
		memory->page[i] = alloc_page(GFP_HIGHUSER | __GFP_ZERO | __GFP_NORETRY | __GFP_NOWARN);
		if (!memory->page[i]) {
			memory_free(memory);
			return -ENOMEM;
		}
	}
	memory->handle = ++context->next_handle;
	list_add(&memory->list, &context->memories);
	context->used_bytes += bytes;
	memset(args, 0, sizeof(*args));
	args->out.handle = memory->handle;
	return 0;
}

static int do_free(struct context *context, union hl_mem_args *args)
{
	struct memory *memory = find_handle(context, args->in.free.handle);

	if (!memory)
		return -EINVAL;
	if (memory->exports || memory->address)
		return -EBUSY;
	list_del(&memory->list);
	context->used_bytes -= (u64)memory->pages << PAGE_SHIFT;
	memory_free(memory);
	return 0;
}

static int do_map(struct context *context, union hl_mem_args *args)
{
	struct memory *memory = find_handle(context, args->in.map_device.handle);

	/* Memory of the host's is not mapped here. */
	if (!memory || memory->address || args->in.flags & HL_MEM_USERPTR)
		return -EINVAL;
	memory->address = DEVICE_ADDRESSES + context->next_address;
	context->next_address += (u64)memory->pages << PAGE_SHIFT;
	memset(args, 0, sizeof(*args));
	args->out.device_virt_addr = memory->address;
	return 0;
}

static int do_unmap(struct context *context, union hl_mem_args *args)
{
	struct memory *memory = find_address(context, args->in.unmap.device_virt_addr);

	if (!memory || memory->exports)
		return -EINVAL;
	memory->address = 0;
	return 0;
}

static int do_export(struct file *file, struct context *context, union hl_mem_args *args)
{
	u64 bytes = args->in.export_dmabuf_fd.mem_size, offset = args->in.export_dmabuf_fd.offset;
	struct memory *memory = find_address(context, args->in.export_dmabuf_fd.addr);
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct exported *exported;
	struct dma_buf *dmabuf;
	int fd;

	if (!memory || !bytes || !PAGE_ALIGNED(bytes) || !PAGE_ALIGNED(offset))
		return -EINVAL;
	if (offset + bytes < bytes || offset + bytes > (u64)memory->pages << PAGE_SHIFT)
		return -EINVAL;
	exported = kzalloc(sizeof(*exported), GFP_KERNEL);
	if (!exported)
		return -ENOMEM;
	*exported = (struct exported){ context, memory, file, offset >> PAGE_SHIFT, bytes >> PAGE_SHIFT };
	info.ops = &exported_operations;
	info.size = bytes;
	info.flags = args->in.flags;
	info.priv = exported;
	fd = get_unused_fd_flags(args->in.flags);
	if (fd < 0) {
		kfree(exported);
		return fd;
	}
	dmabuf = dma_buf_export(&info);
	if (IS_ERR(dmabuf)) {
		put_unused_fd(fd);
		kfree(exported);
		return PTR_ERR(dmabuf);
	}
	get_file(file);
	memory->exports++;
	memset(args, 0, sizeof(*args));
	args->out.fd = fd;
	dma_buf_fd_install(dmabuf, fd);
	return 0;
}

static int do_memory(struct file *file, void __user *user)
{
	struct context *context = file->private_data;
	union hl_mem_args args;
	int err;

	if (copy_from_user(&args, user, sizeof(args)))
		return -EFAULT;
	mutex_lock(&context->lock);
	switch (args.in.op) {
	case HL_MEM_OP_ALLOC:
		err = do_alloc(context, &args);
		break;
	case HL_MEM_OP_FREE:
		err = do_free(context, &args);
		break;
	case HL_MEM_OP_MAP:
		err = do_map(context, &args);
		break;
	case HL_MEM_OP_UNMAP:
		err = do_unmap(context, &args);
		break;
	case HL_MEM_OP_EXPORT_DMABUF_FD:
		err = do_export(file, context, &args);
		break;
	default:
		err = -EINVAL;
	}
	mutex_unlock(&context->lock);
	if (!err && copy_to_user(user, &args, sizeof(args)))
		err = -EFAULT;
	return err;
}

static int do_info(void __user *user)
{
	struct hl_info_hw_ip_info hardware = {
		.dram_base_address = DRAM_BASE,
		.dram_size = DRAM_BYTES,
		.dram_enabled = 1,
		.dram_page_size = DRAM_PAGE_BYTES,
		.device_mem_alloc_default_page_size = DRAM_PAGE_BYTES,
	};
	struct hl_info_args args;

	if (copy_from_user(&args, user, sizeof(args)))
		return -EFAULT;
	if (args.op != HL_INFO_HW_IP_INFO || !args.return_size)
		return -EINVAL;
	return copy_to_user(u64_to_user_ptr(args.return_pointer), &hardware,
			    min_t(size_t, args.return_size, sizeof(hardware))) ? -EFAULT : 0;
}

static int do_version(void __user *user)
{
	static const char name[] = "habanalabs";
	struct drm_version version;
	size_t bytes = sizeof(name) - 1;

	if (copy_from_user(&version, user, sizeof(version)))
		return -EFAULT;
	if (copy_to_user(version.name, name, min_t(size_t, version.name_len, bytes)))
		return -EFAULT;
	version.version_major = 1;
	version.version_minor = 0;
	version.version_patchlevel = 0;
	version.name_len = bytes;
	version.date_len = 0;
	version.desc_len = 0;
	return copy_to_user(user, &version, sizeof(version)) ? -EFAULT : 0;
}

static long device_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	void __user *user = (void __user *)argument;

	switch (command) {
	case DRM_IOCTL_VERSION:
		return do_version(user);
	case DRM_IOCTL_HL_INFO:
		return do_info(user);
	case DRM_IOCTL_HL_MEMORY:
		return do_memory(file, user);
	default:
		return -ENOTTY;
	}
}

static int device_open(struct inode *inode, struct file *file)
{
	struct context *context;

	if (atomic_cmpxchg(&opened, 0, 1))
		return -EBUSY;
	context = kzalloc(sizeof(*context), GFP_KERNEL);
	if (!context) {
		atomic_set(&opened, 0);
		return -ENOMEM;
	}
	mutex_init(&context->lock);
	INIT_LIST_HEAD(&context->memories);
	file->private_data = context;
	return 0;
}

/* No dma-buf is left: each holds the file. */
static int device_release(struct inode *inode, struct file *file)
{
	struct context *context = file->private_data;
	struct memory *memory, *next;

	list_for_each_entry_safe(memory, next, &context->memories, list)
		memory_free(memory);
	kfree(context);
	atomic_set(&opened, 0);
	return 0;
}

static const struct file_operations device_operations = {
	.owner = THIS_MODULE,
	.open = device_open,
	.release = device_release,
	.unlocked_ioctl = device_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "habanalabs_standin",
	.nodename = "accel/accel0",
	.fops = &device_operations,
	.mode = 0666,
};

module_misc_device(device);

MODULE_DESCRIPTION("A stand-in for a Gaudi: its driver's requests for memory, on RAM");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");
