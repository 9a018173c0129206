/* The measuring loop that every peer's program shares.
 *
 * A peer's program says how it does an operation, and `bench_serve` does the rest: it takes commands on rank
 * 0's standard input and answers each with one JSON line on rank 0's standard output:
 *
 *   run COLLECTIVE COUNT ROOT ITERATIONS WARMUP ALIGN
 *   -> {"count":2,"wrong":0,"labels":"nnff","ns":[310,305,540,548]}
 *
 * Collectives, counts and roots are windlass's: COUNT is of one rank's block where the vector has a block for each.
 * One sample is one operation, and it is the slowest rank's time; of a ping-pong it is half. While no command runs,
 * every rank sleeps in the kernel, so that another program can be measured in between.
 */
#ifndef WINDLASS_PEER_BENCH_H
#define WINDLASS_PEER_BENCH_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { BENCH_MAX_RANKS = 128 };

enum bench_collective {
    BENCH_ALL_REDUCE,
    BENCH_REDUCE_SCATTER,
    BENCH_ALL_GATHER,
    BENCH_BROADCAST,
    BENCH_BARRIER,
    BENCH_SEND, /* to and fro between ranks 0 and 1; the others do nothing */
    BENCH_REDUCE,
    BENCH_GATHER,
    BENCH_SCATTER,
    BENCH_ALL_TO_ALL,
    BENCH_SCAN,
    BENCH_EXSCAN,
    BENCH_ALL_GATHER_V,
    BENCH_REDUCE_SCATTER_V,
    BENCH_ALL_TO_ALL_V,
    BENCH_GATHER_V,
    BENCH_SCATTER_V
};

/* The elements of a block: of the vector, or of what goes from one rank to another. Those of the last five differ as
 * windlass's (benches/src/uneven.rs), and are COUNT each on the average. */
size_t bench_block(int collective, size_t count, int ranks, int from, int to);

/* Does one operation on floats, by sum where it reduces. `input` equals `output` where operand and result are
 * of the same shape, but for a reduction to the root, all-to-all and send. */
typedef void (*bench_operation)(int collective, int root, float *input, float *output, size_t count);

/* Pins the calling thread to one of the allowed CPUs, when there is one for each rank or each has as many. */
void bench_pin(int rank, int ranks);

/* Serves commands until standard input ends; 0 on success. `control` is a zeroed file on a memory file
 * system, of at least `bench_control_bytes()`. */
int bench_serve(const char *control, int rank, int ranks, const char *version, bench_operation operation);

/* How large the control file is. */
size_t bench_control_bytes(void);

#ifdef __cplusplus
}
#endif
#endif
