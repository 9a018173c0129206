/* The measuring loop that every peer's program shares.
 *
 * A peer's program says how it all-reduces, and `bench_serve` does the rest: it takes commands on rank
 * 0's standard input and answers each with one JSON line on rank 0's standard output:
 *
 *   run BYTES ITERATIONS WARMUP ALIGN
 *   -> {"bytes":8,"wrong":0,"labels":"nnff","ns":[310,305,540,548]}
 *
 * One sample is one operation, and it is the slowest rank's time. While no command runs, every rank sleeps
 * in the kernel, so that another program can be measured in between.
 */
#ifndef WINDLASS_PEER_BENCH_H
#define WINDLASS_PEER_BENCH_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Sums `count` floats over all ranks, in place. */
typedef void (*bench_all_reduce)(float *values, size_t count);

/* Pins the calling thread to the allowed CPU number `rank`, when there are at least `ranks` of them. */
void bench_pin(int rank, int ranks);

/* Serves commands until standard input ends; 0 on success. `control` is a zeroed file on a memory file
 * system, of at least `bench_control_bytes()`. */
int bench_serve(const char *control, int rank, int ranks, const char *version, bench_all_reduce reduce);

/* How large the control file is. */
size_t bench_control_bytes(void);

#ifdef __cplusplus
}
#endif
#endif
