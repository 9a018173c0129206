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

enum { MAX_RANKS = 128, MAX_ITERATIONS = 8192, BUFFERS = 3, PROBES = 20, PROBE_BATCH = 10 };

/* Below this an exchange of flags stays within one core's siblings. */
static const double NEAR_NS = 110.0;

/* One flag, alone on the pair of lines that the prefetcher fetches together. */
struct cell {
    uint64_t value;
    char pad[120];
};

struct control {
    uint32_t turn; /* futex: counts the commands */
    char pad[124];
    uint64_t stop, bytes, iterations, warmup, align;
    struct cell arrived[MAX_RANKS];
    struct cell probe[2];
    struct cell label; /* rank 0's finding, for the others */
    uint64_t wrong[MAX_RANKS];
    char labels[MAX_ITERATIONS + 1];
    uint64_t ticks[MAX_RANKS][MAX_ITERATIONS];
};

struct bench {
    struct control *shared;
    bench_all_reduce reduce;
    int rank, ranks, crowded;
    double ns_per_tick;
    uint64_t barriers, probes;
    float *buffers[BUFFERS];
    size_t capacity;
};

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
    if (rank < 0 || cpus_at_start() < ranks) return;
    (void)allowed_cpus(&allowed);
    int seen = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || seen++ != rank) continue;
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

/* Small integers: their sum over the ranks is exact in any order. */
static inline float element(size_t index, uint64_t iteration) {
    return (float)(((uint32_t)index * 7u + (uint32_t)iteration * 13u) % 64u + 1u);
}

static void fill(float *values, size_t count, int rank, uint64_t iteration) {
    for (size_t i = 0; i < count; i++) values[i] = element(i, iteration) * (float)(rank + 1);
}

static uint64_t count_wrong(const float *values, size_t count, int ranks, uint64_t iteration) {
    float weight = (float)ranks * (float)(ranks + 1) / 2.0f;
    uint32_t wrong = 0;
    for (size_t i = 0; i < count; i++) wrong += values[i] != element(i, iteration) * weight;
    return wrong;
}

static int reserve(struct bench *b, size_t bytes) {
    if (bytes <= b->capacity) return 0;
    for (int i = 0; i < BUFFERS; i++) {
        void *memory = NULL;
        free(b->buffers[i]);
        b->buffers[i] = NULL;
        if (posix_memalign(&memory, 4096, bytes) != 0) return -1;
        b->buffers[i] = (float *)memory;
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
    size_t count = shared->bytes / sizeof(float);
    uint64_t warmup = shared->warmup, iterations = shared->iterations, wrong = 0, batch = 0;
    uint64_t stride = probe_stride(shared->bytes);
    char before = 'u';
    for (uint64_t i = 0; i < warmup + iterations; i++) {
        float *values = b->buffers[i % BUFFERS];
        fill(values, count, b->rank, i);
        if (i >= warmup && (i - warmup) % stride == 0) {
            char now = probe(b);
            if (b->rank == 0) relabel(shared->labels, batch, i - warmup, before, now);
            before = now;
            batch = i - warmup;
        }
        if (shared->align) barrier(b);
        uint64_t start = ticks_now();
        b->reduce(values, count);
        uint64_t ticks = ticks_now() - start;
        if (i >= warmup) shared->ticks[b->rank][i - warmup] = ticks;
        wrong += count_wrong(values, count, b->ranks, i);
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
    printf("{\"bytes\":%llu,\"wrong\":%llu,\"labels\":\"%.*s\",\"ns\":[", (unsigned long long)shared->bytes,
           (unsigned long long)wrong, (int)shared->iterations, shared->labels);
    for (uint64_t i = 0; i < shared->iterations; i++) {
        uint64_t slowest = 0;
        for (int rank = 0; rank < b->ranks; rank++)
            if (shared->ticks[rank][i] > slowest) slowest = shared->ticks[rank][i];
        printf("%s%.0f", i ? "," : "", (double)slowest * b->ns_per_tick);
    }
    printf("]}\n");
    fflush(stdout);
}

/* Rank 0: reads a command and publishes it. Returns 0 when there is none any more. */
static int next_command(struct bench *b, uint32_t turn) {
    struct control *shared = b->shared;
    char line[256];
    unsigned long long bytes = 0, iterations = 0, warmup = 0, align = 0;
    int stop = fgets(line, sizeof line, stdin) == NULL ||
               sscanf(line, "run %llu %llu %llu %llu", &bytes, &iterations, &warmup, &align) != 4 ||
               iterations > MAX_ITERATIONS;
    shared->stop = (uint64_t)stop;
    shared->bytes = bytes;
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

int bench_serve(const char *control, int rank, int ranks, const char *version, bench_all_reduce reduce) {
    struct bench b = {.reduce = reduce, .rank = rank, .ranks = ranks};
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
        if (reserve(&b, b.shared->bytes) != 0) return 1;
        run(&b);
        if (rank == 0) answer(&b);
    }
    return 0;
}
