/* See bench.h. */
#define _GNU_SOURCE
#include "bench.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_RANKS = BENCH_MAX_RANKS, MAX_ITERATIONS = 8192, BUFFERS = 4, PROBES = 20, PROBE_BATCH = 10 };

/* Below this an exchange of flags stays within one core's siblings. */
static const double NEAR_NS = 110.0;

/* What of its vector a rank's operand or result is: as in windlass's table. */
enum extent { NOTHING, WHOLE, WHOLE_AT_ROOT, BLOCK, BLOCKS, BLOCKS_AT_ROOT };

static const struct row {
    const char *name;
    enum extent input, output;
    int in_place;
} ROWS[] = {
    [BENCH_ALL_REDUCE] = {"all_reduce", WHOLE, WHOLE, 1},
    [BENCH_REDUCE_SCATTER] = {"reduce_scatter", BLOCKS, BLOCK, 0},
    [BENCH_ALL_GATHER] = {"all_gather", BLOCK, BLOCKS, 0},
    [BENCH_BROADCAST] = {"broadcast", WHOLE, WHOLE, 1},
    [BENCH_BARRIER] = {"barrier", NOTHING, NOTHING, 1},
    [BENCH_SEND] = {"send", WHOLE, WHOLE, 0},
    [BENCH_REDUCE] = {"reduce", WHOLE, WHOLE_AT_ROOT, 0},
    [BENCH_GATHER] = {"gather", BLOCK, BLOCKS_AT_ROOT, 0},
    [BENCH_SCATTER] = {"scatter", BLOCKS_AT_ROOT, BLOCK, 0},
    [BENCH_ALL_TO_ALL] = {"all_to_all", BLOCKS, BLOCKS, 0},
    [BENCH_SCAN] = {"scan", WHOLE, WHOLE, 1},
    [BENCH_EXSCAN] = {"exscan", WHOLE, WHOLE, 1},
    [BENCH_ALL_GATHER_V] = {"all_gather_v", BLOCK, BLOCKS, 0},
    [BENCH_REDUCE_SCATTER_V] = {"reduce_scatter_v", BLOCKS, BLOCK, 0},
    [BENCH_ALL_TO_ALL_V] = {"all_to_all_v", BLOCKS, BLOCKS, 0},
    [BENCH_GATHER_V] = {"gather_v", BLOCK, BLOCKS_AT_ROOT, 0},
    [BENCH_SCATTER_V] = {"scatter_v", BLOCKS_AT_ROOT, BLOCK, 0},
};
enum { ROW_COUNT = sizeof ROWS / sizeof ROWS[0] };

/* One flag, alone on the pair of lines that the prefetcher fetches together. */
struct cell {
    uint64_t value;
    char pad[120];
};

struct control {
    uint32_t turn; /* futex: counts the commands */
    char pad[124];
    uint64_t stop, collective, count, root, iterations, warmup, align;
    struct cell arrived[MAX_RANKS];
    struct cell probe[2];
    struct cell label; /* rank 0's finding, for the others */
    uint64_t wrong[MAX_RANKS];
    char labels[MAX_ITERATIONS + 1];
    uint64_t ticks[MAX_RANKS][MAX_ITERATIONS];
};

struct bench {
    struct control *shared;
    bench_operation operation;
    int rank, ranks, crowded;
    double ns_per_tick;
    uint64_t barriers, probes;
    float *inputs[BUFFERS], *outputs[BUFFERS];
    size_t capacity;
};

size_t bench_block(int collective, size_t count, int ranks, int from, int to) {
    size_t parts = (size_t)ranks + 1, block = (size_t)from;
    if (collective < BENCH_ALL_GATHER_V) return count;
    if (collective == BENCH_ALL_TO_ALL_V) block = (size_t)((from + to) % ranks);
    return count * (block + 1) * (block + 2) / parts - count * block * (block + 1) / parts;
}

size_t bench_control_bytes(void) { return sizeof(struct control); }

static int allowed_cpus(cpu_set_t *set) {
    CPU_ZERO(set);
    if (sched_getaffinity(0, sizeof *set, set) != 0) return 1;
    return CPU_COUNT(set);
}

/* Before anybody pinned this process: afterwards the answer would be 1. */
static int cpus_at_start(void) {
    static int cpus = 0;
    cpu_set_t allowed;
    if (cpus == 0) cpus = allowed_cpus(&allowed);
    return cpus;
}

void bench_pin(int rank, int ranks) {
    cpu_set_t allowed, one;
    int cpus = cpus_at_start();
    if (rank < 0 || (cpus < ranks && ranks % cpus != 0)) return;
    (void)allowed_cpus(&allowed);
    int seen = 0, number = cpus < ranks ? rank * cpus / ranks : rank;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || seen++ != number) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        (void)sched_setaffinity(0, sizeof one, &one);
        return;
    }
}

/* clock_gettime costs up to 75 ns under a hypervisor; an operation at 8 bytes may cost less. */
static inline uint64_t ticks_now(void) {
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t value;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(value));
    return value;
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
#endif
}

static uint64_t raw_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_RAW, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static double calibrate(void) {
    uint64_t ns = raw_ns(), ticks = ticks_now();
    while (raw_ns() - ns < 20000000u) {
    }
    ticks = ticks_now() - ticks;
    return (double)(raw_ns() - ns) / (double)ticks;
}

/* Yields in the end even with a core per rank: a peer may have threads of its own that need one. */
static void wait_for(const struct bench *b, const uint64_t *flag, uint64_t value) {
    int spins = b->crowded ? 0 : 200;
    while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) < value) {
        if (spins-- <= 0) {
            sched_yield();
            continue;
        }
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("isb");
#endif
    }
}

static void barrier(struct bench *b) {
    uint64_t turn = ++b->barriers;
    __atomic_store_n(&b->shared->arrived[b->rank].value, turn, __ATOMIC_RELEASE);
    for (int other = 0; other < b->ranks; other++) wait_for(b, &b->shared->arrived[other].value, turn);
}

static int by_value(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* 'n' when ranks 0 and 1 are near each other, 'f' when far, 'u' when that says nothing. */
static char probe(struct bench *b) {
    if (b->ranks < 2 || b->crowded) return 'u';
    uint64_t round = ++b->probes;
    if (b->rank < 2) {
        double batch[PROBES];
        struct cell *flags = b->shared->probe;
        uint64_t turn = (round - 1) * PROBES * PROBE_BATCH;
        for (int i = 0; i < PROBES; i++) {
            uint64_t start = ticks_now();
            for (int k = 0; k < PROBE_BATCH; k++) {
                __atomic_store_n(&flags[b->rank].value, ++turn, __ATOMIC_RELEASE);
                wait_for(b, &flags[1 - b->rank].value, turn);
            }
            batch[i] = (double)(ticks_now() - start) * b->ns_per_tick / PROBE_BATCH;
        }
        qsort(batch, PROBES, sizeof batch[0], by_value);
        if (b->rank == 0) {
            uint64_t near = batch[PROBES / 2] < NEAR_NS;
            __atomic_store_n(&b->shared->label.value, round * 2 + near, __ATOMIC_RELEASE);
        }
    }
    wait_for(b, &b->shared->label.value, round * 2);
    return (b->shared->label.value & 1) ? 'n' : 'f';
}

/* Small integers: their sum over the ranks is exact in any order. Blocks for different ranks differ. */
static inline float element(size_t index, uint32_t block, uint64_t iteration) {
    return (float)(((uint32_t)index * 7u + (uint32_t)iteration * 13u + block * 29u) % 64u + 1u);
}

static int blocks_of(enum extent extent, const struct bench *b) {
    int root = b->rank == (int)b->shared->root;
    switch (extent) {
        case NOTHING: return 0;
        case WHOLE:
        case BLOCK: return 1;
        case WHOLE_AT_ROOT: return root;
        case BLOCKS: return b->ranks;
        case BLOCKS_AT_ROOT: return root ? b->ranks : 0;
    }
    return 0;
}

/* The elements of a block of this rank's operand or result, which may be the only one: then it is the rank's own. */
static size_t length_of(enum extent extent, int block, const struct bench *b) {
    int alone = extent == BLOCK;
    return bench_block((int)b->shared->collective, b->shared->count, b->ranks, alone ? b->rank : block, b->rank);
}

/* Every rank's values are its number, from 1, times those of the element. */
static void fill(float *values, enum extent extent, const struct bench *b, uint64_t iteration) {
    for (int block = 0; block < blocks_of(extent, b); block++) {
        size_t length = length_of(extent, block, b);
        for (size_t i = 0; i < length; i++) *values++ = element(i, (uint32_t)block, iteration) * (float)(b->rank + 1);
    }
}

/* By what the elements of a block of this rank's result are multiplied: the sum of the numbers of those who are in it. */
static float weight(const struct bench *b, int block) {
    int all = b->ranks * (b->ranks + 1) / 2, rank = b->rank;
    switch (b->shared->collective) {
        case BENCH_ALL_GATHER:
        case BENCH_GATHER:
        case BENCH_ALL_TO_ALL:
        case BENCH_ALL_GATHER_V:
        case BENCH_GATHER_V:
        case BENCH_ALL_TO_ALL_V: return (float)(block + 1);
        case BENCH_BROADCAST:
        case BENCH_SCATTER:
        case BENCH_SCATTER_V: return (float)(b->shared->root + 1);
        case BENCH_SEND: return 1.0f;
        case BENCH_SCAN: return (float)((rank + 1) * (rank + 2) / 2);
        /* Rank 0's memory is as it was. */
        case BENCH_EXSCAN: return rank == 0 ? 1.0f : (float)(rank * (rank + 1) / 2);
        default: return (float)all;
    }
}

static uint64_t count_wrong(const float *values, const struct bench *b, uint64_t iteration) {
    const struct row *row = &ROWS[b->shared->collective];
    uint32_t wrong = 0;
    if (b->shared->collective == BENCH_SEND && b->rank > 1) return 0;
    /* Where each rank gets one block of several, it is the one of its number. */
    int scattered = row->output == BLOCK || (row->input == BLOCKS && row->output == BLOCKS);
    uint32_t source = scattered ? (uint32_t)b->rank : 0;
    for (int block = 0; block < blocks_of(row->output, b); block++) {
        float factor = weight(b, block);
        size_t length = length_of(row->output, block, b);
        for (size_t i = 0; i < length; i++) wrong += *values++ != element(i, source, iteration) * factor;
    }
    return wrong;
}

static int reserve(struct bench *b) {
    const struct row *row = &ROWS[b->shared->collective];
    int blocks = row->input == BLOCK || row->output == BLOCK || row->input == BLOCKS ? b->ranks : 1;
    size_t bytes = (b->shared->count * (size_t)blocks + 1) * sizeof(float);
    if (bytes <= b->capacity) return 0;
    for (int i = 0; i < 2 * BUFFERS; i++) {
        float **buffer = i < BUFFERS ? &b->inputs[i] : &b->outputs[i - BUFFERS];
        void *memory = NULL;
        free(*buffer);
        *buffer = NULL;
        if (posix_memalign(&memory, 4096, bytes) != 0) return -1;
        *buffer = (float *)memory;
    }
    b->capacity = bytes;
    return 0;
}

/* How many operations share one probe: about half a millisecond's worth. */
static uint64_t probe_stride(uint64_t bytes) {
    if (bytes <= 4096) return 256;
    return bytes <= 256 * 1024 ? 16 : 1;
}

static void relabel(char *labels, uint64_t from, uint64_t to, char before, char after) {
    for (uint64_t i = from; i < to; i++) labels[i] = before == after ? before : 'u';
}

static void run(struct bench *b) {
    struct control *shared = b->shared;
    const struct row *row = &ROWS[shared->collective];
    int collective = (int)shared->collective, root = (int)shared->root;
    size_t count = shared->count;
    uint64_t warmup = shared->warmup, iterations = shared->iterations, wrong = 0, batch = 0;
    uint64_t stride = probe_stride(count * sizeof(float));
    char before = 'u';
    for (uint64_t i = 0; i < warmup + iterations; i++) {
        float *input = b->inputs[i % BUFFERS];
        float *output = row->in_place ? input : b->outputs[i % BUFFERS];
        fill(input, row->input, b, i);
        if (i >= warmup && (i - warmup) % stride == 0) {
            char now = probe(b);
            if (b->rank == 0) relabel(shared->labels, batch, i - warmup, before, now);
            before = now;
            batch = i - warmup;
        }
        if (shared->align) barrier(b);
        uint64_t start = ticks_now();
        b->operation(collective, root, input, output, count);
        uint64_t ticks = ticks_now() - start;
        if (i >= warmup) shared->ticks[b->rank][i - warmup] = ticks;
        wrong += count_wrong(output, b, i);
    }
    char after = probe(b);
    if (b->rank == 0) relabel(shared->labels, batch, iterations, before, after);
    shared->wrong[b->rank] = wrong;
    barrier(b);
}

static void answer(const struct bench *b) {
    const struct control *shared = b->shared;
    uint64_t wrong = 0;
    for (int rank = 0; rank < b->ranks; rank++) wrong += shared->wrong[rank];
    double share = shared->collective == BENCH_SEND ? 0.5 : 1.0;
    printf("{\"count\":%llu,\"wrong\":%llu,\"labels\":\"%.*s\",\"ns\":[", (unsigned long long)shared->count,
           (unsigned long long)wrong, (int)shared->iterations, shared->labels);
    for (uint64_t i = 0; i < shared->iterations; i++) {
        uint64_t slowest = 0;
        for (int rank = 0; rank < b->ranks; rank++)
            if (shared->ticks[rank][i] > slowest) slowest = shared->ticks[rank][i];
        printf("%s%.0f", i ? "," : "", (double)slowest * b->ns_per_tick * share);
    }
    printf("]}\n");
    fflush(stdout);
}

static int row_of(const char *name) {
    int row = 0;
    while (row < ROW_COUNT && strcmp(ROWS[row].name, name) != 0) row++;
    return row;
}

/* Rank 0: reads a command and publishes it. Returns 0 when there is none any more. */
static int next_command(struct bench *b, uint32_t turn) {
    struct control *shared = b->shared;
    char line[256], name[32];
    unsigned long long count = 0, root = 0, iterations = 0, warmup = 0, align = 0;
    int row = ROW_COUNT;
    if (fgets(line, sizeof line, stdin) != NULL &&
        sscanf(line, "run %31s %llu %llu %llu %llu %llu", name, &count, &root, &iterations, &warmup, &align) == 6)
        row = row_of(name);
    int stop = row == ROW_COUNT || iterations > MAX_ITERATIONS || root >= (unsigned long long)b->ranks;
    shared->stop = (uint64_t)stop;
    shared->collective = (uint64_t)row;
    shared->count = count;
    shared->root = root;
    shared->iterations = iterations;
    shared->warmup = warmup;
    shared->align = align;
    __atomic_store_n(&shared->turn, turn, __ATOMIC_RELEASE);
    syscall(SYS_futex, &shared->turn, FUTEX_WAKE, MAX_RANKS, NULL, NULL, 0);
    return !stop;
}

/* The others sleep in the kernel: a rank that spins here would spoil what is measured in between. */
static int await_command(struct bench *b, uint32_t turn) {
    struct control *shared = b->shared;
    while (__atomic_load_n(&shared->turn, __ATOMIC_ACQUIRE) != turn)
        syscall(SYS_futex, &shared->turn, FUTEX_WAIT, turn - 1, NULL, NULL, 0);
    return !shared->stop;
}

int bench_serve(const char *control, int rank, int ranks, const char *version, bench_operation operation) {
    struct bench b = {.operation = operation, .rank = rank, .ranks = ranks};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int file = open(control, O_RDWR | O_CLOEXEC);
    if (file < 0 || ranks > MAX_RANKS) return 1;
    b.shared = (struct control *)mmap(NULL, sizeof *b.shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (b.shared == MAP_FAILED) return 1;
    b.crowded = cpus_at_start() < ranks;
    b.ns_per_tick = calibrate();
    if (rank == 0) {
        printf("{\"ready\":true,\"ranks\":%d,\"version\":\"%s\"}\n", ranks, version);
        fflush(stdout);
    }
    for (uint32_t turn = 1; rank == 0 ? next_command(&b, turn) : await_command(&b, turn); turn++) {
        if (reserve(&b) != 0) return 1;
        run(&b);
        if (rank == 0) answer(&b);
    }
    return 0;
}
