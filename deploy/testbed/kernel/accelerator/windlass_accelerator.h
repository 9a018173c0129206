/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * /dev/windlass_accelerator: a device whose memory is exported as dma-bufs and moves, or is revoked, when a program says so.
 *
 * A buffer is named by a descriptor of its dma-buf, so whoever holds one may move it, and it lives as long as a descriptor, a mapping or a
 * registration does. The CPU maps it by mmap of the descriptor; after a revoke, touching that mapping raises SIGBUS.
 */
#ifndef WINDLASS_ACCELERATOR_H
#define WINDLASS_ACCELERATOR_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Pages that a buffer gives up are filled with this byte, and looked through for others later. */
#define WINDLASS_ACCELERATOR_POISON 0xa5

struct windlass_accelerator_alloc {
	__u64 bytes;		/* a multiple of the page size, more than 0 */
	__s32 dmabuf;		/* out: close-on-exec */
	__u32 flags;		/* 0 */
};

/* Move although an importer has pinned the buffer: what a device does that breaks its promise. */
#define WINDLASS_ACCELERATOR_FORCE 1u

/*
 * Gives the buffer new pages with the contents of the old ones. EBUSY: an importer has pinned it, and FORCE is not set. ENODEV: it is revoked.
 * With fence_ms, the contents arrive only after that time, behind a fence that importers must wait for.
 */
struct windlass_accelerator_move {
	__s32 dmabuf;
	__u32 flags;
	__u32 fence_ms;
	__u32 reserved;		/* 0 */
};

/*
 * Takes the memory away for good, whatever importers think of it. EBUSY: done, but an importer has not let go and still reaches the old pages.
 * ENODEV: it was revoked before.
 */
struct windlass_accelerator_revoke {
	__s32 dmabuf;
	__u32 flags;		/* 0 */
};

#define WINDLASS_ACCELERATOR_ALL (-1)

struct windlass_accelerator_stat {
	__s32 dmabuf;		/* in: a buffer, or ALL: the sums over every buffer since the module was loaded */
	__u32 revoked;		/* from here on out: revoked buffers */
	__u64 bytes;
	__u64 moves;
	__u64 maps;		/* importers' mappings, old pages' included */
	__u64 pins;
	__u64 kept_bytes;	/* pages given up that are watched */
	__u64 stale_bytes;	/* bytes written into pages after they were given up */
};

#define WINDLASS_ACCELERATOR_ALLOC	_IOWR('W', 0x40, struct windlass_accelerator_alloc)
#define WINDLASS_ACCELERATOR_MOVE	_IOW('W', 0x41, struct windlass_accelerator_move)
#define WINDLASS_ACCELERATOR_REVOKE	_IOW('W', 0x42, struct windlass_accelerator_revoke)
#define WINDLASS_ACCELERATOR_STAT	_IOWR('W', 0x43, struct windlass_accelerator_stat)

#endif
