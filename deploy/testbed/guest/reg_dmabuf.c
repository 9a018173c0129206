// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * ibv_reg_dmabuf_mr for soft-RoCE. Its provider in rdma-core has none, so the library's own function answers EOPNOTSUPP; this one asks the
 * kernel by the same ioctl as the providers that have. Every program in the virtual machine has it by /etc/ld.so.preload, so a program calls
 * the plain verb, as it does on real NICs. Programs that look the verb up by dlsym are given this one, too.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include <infiniband/verbs.h>
#include <rdma/ib_user_ioctl_cmds.h>
#include <rdma/ib_user_ioctl_verbs.h>
#include <rdma/rdma_user_ioctl_cmds.h>

#define EXPORT __attribute__((visibility("default")))

/*
 * The library keeps its own fields behind an ibv_mr: its kind first, which tells ibv_dereg_mr that no memory of the process is registered.
 * The provider frees the whole with free().
 */
struct registered {
	struct ibv_mr mr;
	int kind;
	int access;
	char room[64];
};
#define KIND_DMABUF 3

static struct ib_uverbs_attr attribute(uint16_t id, uint16_t length, uint64_t data)
{
	return (struct ib_uverbs_attr){ .attr_id = id, .len = length, .flags = UVERBS_ATTR_F_MANDATORY, .data = data };
}

EXPORT struct ibv_mr *ibv_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t length, uint64_t iova, int fd, int access)
{
	struct {
		struct ib_uverbs_ioctl_hdr header;
		struct ib_uverbs_attr attributes[9];
	} request = {
		.header = {
			.length = sizeof(request),
			.object_id = UVERBS_OBJECT_MR,
			.method_id = UVERBS_METHOD_REG_DMABUF_MR,
			.num_attrs = 9,
			.driver_id = RDMA_DRIVER_RXE,
		},
	};
	struct registered *registered = calloc(1, sizeof(*registered));

	if (!registered)
		return NULL;
	request.attributes[0] = attribute(UVERBS_ATTR_REG_DMABUF_MR_HANDLE, 0, 0);
	request.attributes[1] = attribute(UVERBS_ATTR_REG_DMABUF_MR_PD_HANDLE, 0, pd->handle);
	request.attributes[2] = attribute(UVERBS_ATTR_REG_DMABUF_MR_OFFSET, 8, offset);
	request.attributes[3] = attribute(UVERBS_ATTR_REG_DMABUF_MR_LENGTH, 8, length);
	request.attributes[4] = attribute(UVERBS_ATTR_REG_DMABUF_MR_IOVA, 8, iova);
	request.attributes[5] = attribute(UVERBS_ATTR_REG_DMABUF_MR_FD, 4, (uint32_t)fd);
	request.attributes[6] = attribute(UVERBS_ATTR_REG_DMABUF_MR_ACCESS_FLAGS, 4, (uint32_t)access);
	request.attributes[7] = attribute(UVERBS_ATTR_REG_DMABUF_MR_RESP_LKEY, 4, (uintptr_t)&registered->mr.lkey);
	request.attributes[8] = attribute(UVERBS_ATTR_REG_DMABUF_MR_RESP_RKEY, 4, (uintptr_t)&registered->mr.rkey);
	if (ioctl(pd->context->cmd_fd, RDMA_VERBS_IOCTL, &request)) {
		int error = errno;

		free(registered);
		errno = error;
		return NULL;
	}
	registered->mr.context = pd->context;
	registered->mr.pd = pd;
	registered->mr.length = length;
	registered->mr.handle = request.attributes[0].data;
	registered->kind = KIND_DMABUF;
	registered->access = access;
	return &registered->mr;
}

EXPORT void *dlsym(void *restrict handle, const char *restrict name)
{
	static void *(*next)(void *restrict, const char *restrict);

	if (strcmp(name, "ibv_reg_dmabuf_mr") == 0)
		return (void *)ibv_reg_dmabuf_mr;
	if (!next)
		next = (void *(*)(void *restrict, const char *restrict))dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.2.5");
	/* A tail call: for RTLD_NEXT and RTLD_DEFAULT the address returned to says who asks. */
	return next(handle, name);
}
