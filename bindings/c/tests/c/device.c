/* Memory on an accelerator that moves it, and what must not be done with it. The argument is the accelerator: simulated, or one of the kernel's. */
#define _GNU_SOURCE
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/dma-heap.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { COUNT = 100000 };

static const int bad_argument = WINDLASS_ERROR_INVALID_ARGUMENT;
static const char *name = "simulated";
static int rank, size;
static windlass_comm_t comm;
static windlass_device_t device;
static float host[COUNT + 1];

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static float *allocate(size_t count)
{
    void *memory = NULL;
    OK(windlass_device_alloc(device, &memory, count * sizeof(float)));
    return memory;
}

/* Sums a vector over all ranks, by the call or started, and looks at each element. */
static void round_on(float *memory, int round, int start)
{
    windlass_op_t op = NULL;
    for (int i = 0; i < COUNT; i++)
        host[i] = (float)((i * 31 + round * 7 + rank * 131) % 1021);
    OK(windlass_device_write(memory, host, COUNT * sizeof *host));
    if (start)
        OK(windlass_all_reduce_async(memory, memory, COUNT, WINDLASS_F32, WINDLASS_SUM, comm, &op));
    else
        OK(windlass_all_reduce(memory, memory, COUNT, WINDLASS_F32, WINDLASS_SUM, comm));
    OK(windlass_wait(&op));
    memset(host, 0, sizeof host);
    OK(windlass_device_read(host, memory, COUNT * sizeof *host));
    for (int i = 0; i < COUNT; i++) {
        float sum = 0;
        for (int r = 0; r < size; r++)
            sum += (float)((i * 31 + round * 7 + r * 131) % 1021);
        if (host[i] != sum)
            FAIL("round %d, element %d is %g, not %g", round, i, host[i], sum);
    }
}

/* The accelerator moves the memory and takes it away under the operations. */
static void moves(void)
{
    float *memory = allocate(COUNT);
    windlass_movements_t movements = {.bytes = sizeof movements};
    int enough = 0, round = 0;
    for (double begin = seconds(); !enough; round++) {
        CHECK(seconds() - begin < 25);
        round_on(memory, round, round % 2);
        OK(windlass_device_movements(device, &movements));
        int32_t mine = movements.moves > 3 && movements.revokes > 1;
        OK(windlass_all_reduce(&mine, &mine, 1, WINDLASS_I32, WINDLASS_MIN, comm));
        enough = mine && round > 10;
    }
    printf("rank %d: %d rounds, %llu moves, %llu revokes, %llu replays\n", rank, round, (unsigned long long)movements.moves,
           (unsigned long long)movements.revokes, (unsigned long long)movements.replays);
    OK(windlass_mem_free(memory));
}

/* Before there is an accelerator, and what cannot be one. */
static void attaching(void)
{
    void *memory = host;
    windlass_device_t none = (windlass_device_t)host;
    REFUSED(bad_argument, "`name` is NULL", windlass_attach(comm, NULL, NULL, &none));
    CHECK(none == NULL);
    REFUSED(bad_argument, "no accelerator is called \"gpu\": it is one of simulated", windlass_attach(comm, "gpu", NULL, &none));
    REFUSED(bad_argument, "no option \"speed\"", windlass_attach(comm, "simulated", "speed=3", &none));
    REFUSED(bad_argument, "movement is \"fast\" but must be", windlass_attach(comm, "simulated", "seed=1,movement=fast", &none));
    REFUSED(bad_argument, "write name=value", windlass_attach(comm, "simulated", "seed", &none));
    REFUSED(bad_argument, "`options` is no UTF-8", windlass_attach(comm, "simulated", "\xff", &none));
    REFUSED(bad_argument, "`device` is NULL", windlass_attach(comm, "simulated", NULL, NULL));
    REFUSED(bad_argument, "`comm` is NULL", windlass_attach(NULL, "simulated", NULL, &none));
    if (access("/dev/udmabuf", F_OK) != 0)
        REFUSED(bad_argument, "/dev/udmabuf: No such file or directory", windlass_attach(comm, "udmabuf", NULL, &none));
    REFUSED(bad_argument, "`device` is NULL", windlass_device_alloc(NULL, &memory, 8));
    CHECK(memory == NULL);
    REFUSED(WINDLASS_ERROR_INVALID_HANDLE, "the device handle", windlass_device_alloc((windlass_device_t)comm, &memory, 8));
    OK(windlass_device_free(&none));
}

static void wrong_memory(void)
{
    float *memory = allocate(COUNT), *freed = allocate(COUNT);
    void *too_large = host;
    const size_t bytes = COUNT * sizeof(float);
    REFUSED(bad_argument, "`memory` is NULL", windlass_device_alloc(device, NULL, 8));
    REFUSED(WINDLASS_ERROR_SYSTEM, "free buffers", windlass_device_alloc(device, &too_large, SIZE_MAX));
    CHECK(too_large == NULL);

    REFUSED(bad_argument, "`from` is NULL", windlass_device_write(memory, NULL, 8));
    REFUSED(bad_argument, "`to` is NULL", windlass_device_read(NULL, memory, 8));
    REFUSED(bad_argument, "400004 bytes from byte 0 on, of 400000", windlass_device_write(memory, host, bytes + 4));
    REFUSED(bad_argument, "beyond the device buffer", windlass_device_read(host, memory + 1, bytes));
    REFUSED(bad_argument, "what memory can hold", windlass_device_read(host, memory, SIZE_MAX));
    REFUSED(bad_argument, "is no device memory", windlass_device_write(host, host, 8));
    REFUSED(bad_argument, "is no device memory", windlass_device_read(host, host, 8));
    REFUSED(bad_argument, "is no device memory", windlass_device_read(host, memory + COUNT, 8));
    REFUSED(bad_argument, "is no device memory", windlass_device_read(host, NULL, 8));
    OK(windlass_device_write(NULL, NULL, 0));

    /* In part, at either end. */
    float five[5] = {1, 2, 3, 4, 5}, back[5] = {0};
    OK(windlass_device_write(memory + COUNT - 5, five, sizeof five));
    OK(windlass_all_reduce(memory + COUNT - 5, memory, 5, WINDLASS_F32, WINDLASS_SUM, comm));
    OK(windlass_device_read(back, memory, sizeof back));
    for (int i = 0; i < 5; i++)
        CHECK(back[i] == five[i] * (float)size);

    const char *beyond = "beyond the device buffer", *none = "it was freed, or is another job's";
    windlass_op_t op = NULL;
    REFUSED(bad_argument, beyond, windlass_all_reduce(memory, memory, COUNT + 1, WINDLASS_F32, WINDLASS_SUM, comm));
    REFUSED(bad_argument, beyond, windlass_broadcast_async(memory + 1, COUNT, WINDLASS_F32, 0, comm, &op));
    CHECK(op == NULL);
    REFUSED(bad_argument, "no multiple of 4", windlass_broadcast((char *)memory + 2, 4, WINDLASS_F32, 0, comm));
    REFUSED(bad_argument, "overlaps", windlass_all_reduce(memory, memory + 1, 8, WINDLASS_F32, WINDLASS_SUM, comm));
    REFUSED(bad_argument, beyond, windlass_send(memory + 1, COUNT, WINDLASS_F32, 1 - rank, 0, comm));
    REFUSED(bad_argument, "scaled_sum", windlass_all_reduce_scaled(memory, memory, 8, WINDLASS_F32, 2, comm));
    REFUSED(bad_argument, "is device memory", windlass_mem_register(comm, memory, 64));
    REFUSED(bad_argument, "not given out", windlass_mem_deregister(memory));
    REFUSED(bad_argument, "not given out", windlass_mem_free(memory + 1));

    OK(windlass_mem_free(freed));
    REFUSED(bad_argument, "not given out", windlass_mem_free(freed));
    REFUSED(bad_argument, "is no device memory", windlass_device_write(freed, host, 8));
    REFUSED(bad_argument, none, windlass_all_reduce(freed, freed, 8, WINDLASS_F32, WINDLASS_SUM, comm));
    REFUSED(bad_argument, none, windlass_recv_async(freed, 8, WINDLASS_F32, 1 - rank, 0, comm, &op));
    windlass_member_t members[] = {{memory, 8}, {freed, 8}};
    windlass_list_t list = {.members = members, .count = 2};
    windlass_request_t sum = {.bytes = sizeof sum, .collective = WINDLASS_ALL_REDUCE, .data_type = WINDLASS_F32, .op = WINDLASS_SUM,
                              .count = 16, .input_list = &list, .output_list = &list};
    REFUSED(bad_argument, none, windlass_perform(&sum, comm));

    /* Freed while it is in use: it goes when the operation has ended. */
    OK(windlass_all_reduce_async(memory, memory, COUNT, WINDLASS_F32, WINDLASS_MAX, comm, &op));
    OK(windlass_mem_free(memory));
    REFUSED(bad_argument, "is no device memory", windlass_device_read(host, memory, 8));
    OK(windlass_wait(&op));

    windlass_movements_t movements = {.bytes = 3};
    REFUSED(bad_argument, "`bytes` is 3", windlass_device_movements(device, &movements));
    REFUSED(bad_argument, "`movements` is NULL", windlass_device_movements(device, NULL));
}

/* Another job of the same process has an accelerator and memory of its own. Here it loses what is taken away. */
static void another_job(void)
{
    windlass_unique_id_t id;
    windlass_comm_t alone = NULL;
    windlass_device_t other = NULL, again = NULL;
    void *theirs = NULL;
    float *ours = allocate(8);
    OK(windlass_unique_id(&id));
    OK(windlass_init_rank(&alone, 1, id, 0));
    OK(windlass_attach(alone, "simulated", "movement=revocable,moves_per_second=0,revokes_per_second=100,lost_share=1", &other));
    REFUSED(bad_argument, "is not the one this rank uses", windlass_attach(alone, "simulated", NULL, &again));
    OK(windlass_attach(alone, NULL, NULL, &again));
    OK(windlass_device_free(&again));
    OK(windlass_device_alloc(other, &theirs, 1 << 20));
    CHECK(theirs != (void *)ours);
    REFUSED(bad_argument, "another job's", windlass_all_reduce(theirs, theirs, 8, WINDLASS_F32, WINDLASS_SUM, comm));
    REFUSED(bad_argument, "another job's", windlass_all_reduce(ours, ours, 8, WINDLASS_F32, WINDLASS_SUM, alone));
    int result = WINDLASS_SUCCESS;
    for (double begin = seconds(); result == WINDLASS_SUCCESS && seconds() - begin < 20;)
        result = windlass_device_read(host, theirs, sizeof host);
    if (result != WINDLASS_ERROR_REGION_REVOKED)
        FAIL("lost contents: %d %s", result, windlass_last_error());
    CHECK(strstr(windlass_last_error(), "allocate new memory") != NULL);
    REFUSED(WINDLASS_ERROR_REGION_REVOKED, "revoked", windlass_all_reduce(theirs, theirs, 8, WINDLASS_F32, WINDLASS_SUM, alone));
    /* The job lives as long as its memory. */
    OK(windlass_comm_free(&alone));
    OK(windlass_mem_free(theirs));
    OK(windlass_device_free(&other));
    OK(windlass_mem_free(ours));
}

static void refuse_adoption(int descriptor, uint64_t offset, size_t bytes, const char *words)
{
    void *memory = host;
    REFUSED(bad_argument, words, windlass_device_adopt(device, &memory, descriptor, offset, bytes));
    CHECK(memory == NULL);
}

static void adopting(void)
{
    int pipes[2], file = memfd_create("no dma-buf", MFD_CLOEXEC);
    CHECK(pipe(pipes) == 0 && file >= 0 && ftruncate(file, 1 << 20) == 0);
    /* A number that nobody else is given soon. */
    int closed = fcntl(pipes[1], F_DUPFD, 900);
    CHECK(closed >= 900 && close(closed) == 0 && close(pipes[1]) == 0);
    refuse_adoption(-1, 0, 8, "it is not open");
    refuse_adoption(INT32_MAX, 0, 8, "it is not open");
    refuse_adoption(closed, 0, 8, "it is not open");
    refuse_adoption(pipes[0], 0, 8, "it is no dma-buf: export the memory as one");
    refuse_adoption(file, 4096, 8, "it is no dma-buf");
    refuse_adoption(file, 0, SIZE_MAX, "larger than memory");
    REFUSED(bad_argument, "`memory` is NULL", windlass_device_adopt(device, NULL, file, 0, 8));
    /* It is the caller's still. */
    CHECK(fcntl(file, F_GETFD) >= 0);
    close(file);
    close(pipes[0]);

    int heap = open("/dev/dma_heap/system", O_RDWR | O_CLOEXEC);
    if (heap < 0 || strcmp(name, "simulated") == 0) {
        printf("skipped: adopting a dma-buf, because there is no /dev/dma_heap/system here\n");
        if (heap >= 0)
            close(heap);
        return;
    }
    struct dma_heap_allocation_data buffer = {.len = 1 << 20, .fd_flags = O_RDWR | O_CLOEXEC};
    CHECK(ioctl(heap, DMA_HEAP_IOCTL_ALLOC, &buffer) == 0);
    void *memory = NULL, *odd = NULL;
    refuse_adoption((int)buffer.fd, (1 << 20) - 4, 8, "it is too short: 1048580 bytes are needed, 1048576 are there");
    refuse_adoption((int)buffer.fd, UINT64_MAX - 4, 8, "too short");
    OK(windlass_device_adopt(device, &memory, (int)buffer.fd, 4096 + 20, COUNT * sizeof(float)));
    OK(windlass_device_adopt(device, &odd, (int)buffer.fd, 600001, 64));
    unsigned char *seen = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, (int)buffer.fd, 0);
    CHECK(seen != MAP_FAILED && close((int)buffer.fd) == 0 && close(heap) == 0);
    for (int round = 0; round < 4; round++)
        round_on(memory, round, round % 2);
    /* It is that memory, and no copy of it. */
    CHECK(memcmp(seen + 4096 + 20, host, COUNT * sizeof *host) == 0);
    unsigned char bytes[64];
    REFUSED(bad_argument, "lies at 0x927c1, which is no multiple of 4", windlass_all_reduce(odd, odd, 4, WINDLASS_F32, WINDLASS_MAX, comm));
    memset(bytes, rank + 1, sizeof bytes);
    OK(windlass_device_write(odd, bytes, sizeof bytes));
    OK(windlass_all_reduce(odd, odd, 64, WINDLASS_U8, WINDLASS_MAX, comm));
    CHECK(seen[600001] == size && seen[600064] == size);
    OK(windlass_mem_free(memory));
    OK(windlass_mem_free(odd));
    CHECK(seen[600001] == size && munmap(seen, 1 << 20) == 0);
    printf("rank %d: memory of another exporter was adopted\n", rank);
}

static void *hammer(void *argument)
{
    char bytes[64] = {0};
    /* Freed memory keeps its descriptors until the peer has let go of it, and there may be 1024. */
    for (int i = 0; i < 50; i++) {
        void *mine = NULL;
        OK(windlass_device_alloc(device, &mine, sizeof bytes));
        OK(windlass_device_write(mine, bytes, sizeof bytes));
        windlass_result_t result = windlass_device_read(bytes, argument, sizeof bytes);
        CHECK(result == WINDLASS_SUCCESS || strstr(windlass_last_error(), "is no device memory") != NULL);
        OK(windlass_mem_free(mine));
    }
    return NULL;
}

/* Many threads make and free memory; what they all read is freed under them. */
static void threads(void)
{
    pthread_t started[4];
    float *shared = allocate(64);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&started[i], NULL, hammer, shared) == 0);
    OK(windlass_device_write(shared, host, 64 * sizeof *host));
    OK(windlass_mem_free(shared));
    for (int i = 0; i < 4; i++)
        CHECK(pthread_join(started[i], NULL) == 0);
}

static void forked(void)
{
    float *memory = allocate(8);
    pid_t child = fork();
    if (child == 0) {
        const int code = WINDLASS_ERROR_FORKED;
        void *more = NULL;
        windlass_device_t other = NULL;
        windlass_movements_t movements = {.bytes = sizeof movements};
        REFUSED(code, "forked", windlass_attach(comm, "simulated", NULL, &other));
        REFUSED(code, "forked", windlass_device_alloc(device, &more, 8));
        REFUSED(code, "forked", windlass_device_adopt(device, &more, 0, 0, 8));
        REFUSED(code, "forked", windlass_device_write(memory, host, 8));
        REFUSED(code, "forked", windlass_device_read(host, memory, 8));
        REFUSED(code, "forked", windlass_device_movements(device, &movements));
        REFUSED(code, "forked", windlass_mem_free(memory));
        REFUSED(code, "forked", windlass_device_free(&(windlass_device_t){device}));
        _exit(0);
    }
    int status = 1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    OK(windlass_mem_free(memory));
}

int main(int count, char **arguments)
{
    OK(windlass_init(&comm));
    OK(windlass_comm_rank(comm, &rank));
    OK(windlass_comm_size(comm, &size));
    CHECK(size == 2);
    if (count > 1)
        name = arguments[1];
    int moving = strcmp(name, "simulated") == 0 || strcmp(name, "testbed") == 0;
    char options[200];
    snprintf(options, sizeof options, "seed=%d,replacement_time=0,%s", rank,
             !moving ? "" : strcmp(name, "testbed") == 0 ? "moves_per_second=10,revokes_per_second=3" : "moves_per_second=200,revokes_per_second=50");
    attaching();
    OK(windlass_attach(comm, name, options, &device));
    if (moving)
        moves();
    wrong_memory();
    another_job();
    adopting();
    threads();
    forked();

    /* Without its communicators the memory is there still, and some is there when the process ends. */
    float *left = allocate(COUNT), *lost = allocate(8);
    round_on(left, 99, 0);
    windlass_comm_t copy = comm;
    OK(windlass_comm_finalize(comm));
    REFUSED(bad_argument, "finalized", windlass_all_reduce(left, left, 8, WINDLASS_F32, WINDLASS_SUM, comm));
    OK(windlass_comm_free(&comm));
    REFUSED(WINDLASS_ERROR_INVALID_HANDLE, "windlass_attach", windlass_attach(copy, "simulated", NULL, &(windlass_device_t){NULL}));
    OK(windlass_device_read(host, left, COUNT * sizeof *host));
    windlass_device_t stale = device;
    OK(windlass_device_free(&device));
    void *none = NULL;
    REFUSED(WINDLASS_ERROR_INVALID_HANDLE, "the device handle", windlass_device_alloc(stale, &none, 8));
    REFUSED(WINDLASS_ERROR_INVALID_HANDLE, "the device handle", windlass_device_free(&stale));
    OK(windlass_device_write(left, host, COUNT * sizeof *host));
    OK(windlass_mem_free(left));
    CHECK(lost != NULL);
    printf("rank %d: device memory was right, and what was wrong was refused\n", rank);
    return 0;
}
