// SPDX-License-Identifier: Apache-2.0 OR MIT
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/dma-heap.h>
#include <linux/udmabuf.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "selftest.h"

static int device(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		die("there is no %s", path);
	return fd;
}

static int accelerator(void)
{
	static int fd = -1;

	if (fd < 0)
		fd = device("/dev/windlass_accelerator");
	return fd;
}

void *mapped(int fd, size_t bytes)
{
	void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (address == MAP_FAILED)
		die("cannot map a dma-buf");
	return address;
}

struct buffer accelerator_buffer(void)
{
	struct windlass_accelerator_alloc request = { .bytes = BUFFER_BYTES };

	if (ioctl(accelerator(), WINDLASS_ACCELERATOR_ALLOC, &request))
		die("the accelerator has no memory");
	return (struct buffer){ request.dmabuf, mapped(request.dmabuf, BUFFER_BYTES) };
}

struct buffer udmabuf_buffer(void)
{
	struct udmabuf_create request = { .flags = UDMABUF_FLAGS_CLOEXEC, .size = BUFFER_BYTES };
	int node = device("/dev/udmabuf"), fd;

	request.memfd = memfd_create("selftest", MFD_ALLOW_SEALING);
	if (ftruncate(request.memfd, BUFFER_BYTES) || fcntl(request.memfd, F_ADD_SEALS, F_SEAL_SHRINK))
		die("cannot make a memfd for udmabuf");
	fd = ioctl(node, UDMABUF_CREATE, &request);
	if (fd < 0)
		die("udmabuf does not export");
	close(request.memfd);
	close(node);
	return (struct buffer){ fd, mapped(fd, BUFFER_BYTES) };
}

struct buffer heap_buffer(void)
{
	struct dma_heap_allocation_data request = { .len = BUFFER_BYTES, .fd_flags = O_RDWR | O_CLOEXEC };
	int node = device("/dev/dma_heap/system");

	if (ioctl(node, DMA_HEAP_IOCTL_ALLOC, &request))
		die("the system heap does not export");
	close(node);
	return (struct buffer){ request.fd, mapped(request.fd, BUFFER_BYTES) };
}

void buffer_close(struct buffer *buffer)
{
	munmap(buffer->map, BUFFER_BYTES);
	close(buffer->fd);
}

int accelerator_move(struct buffer *buffer, unsigned int flags, unsigned int fence_ms)
{
	struct windlass_accelerator_move request = { .dmabuf = buffer->fd, .flags = flags, .fence_ms = fence_ms };

	return ioctl(accelerator(), WINDLASS_ACCELERATOR_MOVE, &request) ? errno : 0;
}

int accelerator_revoke(struct buffer *buffer)
{
	struct windlass_accelerator_revoke request = { .dmabuf = buffer->fd };

	return ioctl(accelerator(), WINDLASS_ACCELERATOR_REVOKE, &request) ? errno : 0;
}

struct windlass_accelerator_stat accelerator_stat(int dmabuf)
{
	struct windlass_accelerator_stat stat = { .dmabuf = dmabuf };

	if (ioctl(accelerator(), WINDLASS_ACCELERATOR_STAT, &stat))
		die("the accelerator gives no figures");
	return stat;
}

uint64_t accelerator_stale_bytes(struct buffer *buffer)
{
	return accelerator_stat(buffer->fd).stale_bytes;
}

int accelerator_error(unsigned long request, const void *arguments, size_t bytes)
{
	char copy[128];

	return ioctl(accelerator(), request, memcpy(copy, arguments, bytes)) ? errno : 0;
}

/* Each byte depends on its place, so that a packet gone astray shows, and none is zero or poison. */
static uint8_t byte_of(unsigned int value, unsigned int place)
{
	return (value + place / 64) % 127 + 1;
}

void fill(uint8_t *to, unsigned int value)
{
	for (unsigned int i = 0; i < WRITE_BYTES; i++)
		to[i] = byte_of(value, i);
}

bool buffer_holds(struct buffer *buffer, unsigned int value)
{
	for (unsigned int i = 0; i < BUFFER_BYTES; i++) {
		bool inside = i >= REGION_OFFSET && i < REGION_OFFSET + WRITE_BYTES;

		if (buffer->map[i] != (inside ? byte_of(value, i - REGION_OFFSET) : 0))
			return false;
	}
	return true;
}
