// SPDX-License-Identifier: GPL-2.0
/* The device node: decodes the requests of windlass_accelerator.h. */
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "buffer.h"

/* The dma-buf behind a descriptor, with a reference; EINVAL when it is another exporter's. */
static struct dma_buf *buffer_of(int fd)
{
	struct dma_buf *dmabuf = dma_buf_get(fd);

	if (IS_ERR(dmabuf) || buffer_is(dmabuf))
		return dmabuf;
	dma_buf_put(dmabuf);
	return ERR_PTR(-EINVAL);
}

static int do_alloc(void __user *user)
{
	struct windlass_accelerator_alloc request;
	struct dma_buf *dmabuf;
	int fd;

	if (copy_from_user(&request, user, sizeof(request)))
		return -EFAULT;
	if (request.flags)
		return -EINVAL;
	dmabuf = buffer_create(request.bytes);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0) {
		dma_buf_put(dmabuf);
		return fd;
	}
	request.dmabuf = fd;
	if (copy_to_user(user, &request, sizeof(request))) {
		put_unused_fd(fd);
		dma_buf_put(dmabuf);
		return -EFAULT;
	}
	dma_buf_fd_install(dmabuf, fd);
	return 0;
}

static int do_move(void __user *user)
{
	struct windlass_accelerator_move request;
	struct dma_buf *dmabuf;
	int err;

	if (copy_from_user(&request, user, sizeof(request)))
		return -EFAULT;
	if (request.flags & ~WINDLASS_ACCELERATOR_FORCE || request.reserved)
		return -EINVAL;
	dmabuf = buffer_of(request.dmabuf);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	err = buffer_move(dmabuf, request.flags & WINDLASS_ACCELERATOR_FORCE, request.fence_ms);
	dma_buf_put(dmabuf);
	return err;
}

static int do_revoke(void __user *user)
{
	struct windlass_accelerator_revoke request;
	struct dma_buf *dmabuf;
	int err;

	if (copy_from_user(&request, user, sizeof(request)))
		return -EFAULT;
	if (request.flags)
		return -EINVAL;
	dmabuf = buffer_of(request.dmabuf);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	err = buffer_revoke(dmabuf);
	dma_buf_put(dmabuf);
	return err;
}

static int do_stat(void __user *user)
{
	struct windlass_accelerator_stat request, stat = {};
	struct dma_buf *dmabuf;

	if (copy_from_user(&request, user, sizeof(request)))
		return -EFAULT;
	stat.dmabuf = request.dmabuf;
	if (request.dmabuf == WINDLASS_ACCELERATOR_ALL) {
		buffer_stat_all(&stat);
	} else {
		dmabuf = buffer_of(request.dmabuf);
		if (IS_ERR(dmabuf))
			return PTR_ERR(dmabuf);
		buffer_stat(dmabuf, &stat);
		dma_buf_put(dmabuf);
	}
	return copy_to_user(user, &stat, sizeof(stat)) ? -EFAULT : 0;
}

static long device_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	void __user *user = (void __user *)argument;

	switch (command) {
	case WINDLASS_ACCELERATOR_ALLOC:
		return do_alloc(user);
	case WINDLASS_ACCELERATOR_MOVE:
		return do_move(user);
	case WINDLASS_ACCELERATOR_REVOKE:
		return do_revoke(user);
	case WINDLASS_ACCELERATOR_STAT:
		return do_stat(user);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations device_operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = device_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "windlass_accelerator",
	.fops = &device_operations,
	.mode = 0666,
};

module_misc_device(device);

MODULE_DESCRIPTION("An accelerator whose memory moves");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");
