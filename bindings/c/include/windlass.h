/*
 * windlass: asynchronous collective communication for training jobs.
 *
 * Every function but windlass_version, windlass_type_size, windlass_last_error and windlass_error_string returns a
 * windlass_result_t: WINDLASS_SUCCESS, or an error, of which windlass_last_error() has the message for the calling
 * thread. After any error but WINDLASS_ERROR_INVALID_ARGUMENT and WINDLASS_ERROR_INVALID_HANDLE the communicator is
 * unusable and later calls on it return the same error; the contents of a failed call's outputs are unspecified.
 *
 * Counts are in elements. Any thread may call. A pointer is NULL, which is refused where the argument is needed, or
 * valid. Strings are UTF-8 and end with a NUL. Handles are not pointers to anything: one that is stale or made up is
 * refused with WINDLASS_ERROR_INVALID_HANDLE. In a child made by fork() every call returns WINDLASS_ERROR_FORKED.
 *
 * Written by cbindgen from bindings/c: do not edit.
 */


#ifndef WINDLASS_H
#define WINDLASS_H

#include <stddef.h>
#include <stdint.h>

// The colour of a rank that takes part in a split, but in no new communicator.
#define WINDLASS_NO_COLOUR -1

// In the place of a recv's peer: whoever sends first.
#define WINDLASS_ANY_SOURCE -1

// What a function returns. The numbers never change.
typedef enum {
    // All is well.
    WINDLASS_SUCCESS = 0,
    // The call is wrong in itself, and nothing was started: the only error of a communicator after which it
    // can still be used.
    WINDLASS_ERROR_INVALID_ARGUMENT = 1,
    // Ranks made different calls at the same place in the communicator's order.
    WINDLASS_ERROR_MISMATCH = 2,
    // A peer died or left.
    WINDLASS_ERROR_PEER_FAILED = 3,
    // The operation did not end within WINDLASS_TIMEOUT.
    WINDLASS_ERROR_TIMED_OUT = 4,
    // A rank aborted the communicator.
    WINDLASS_ERROR_ABORTED = 5,
    // The process is a fork of the one that joined the job, and has no part in it.
    WINDLASS_ERROR_FORKED = 6,
    // The system refused something.
    WINDLASS_ERROR_SYSTEM = 7,
    // Device memory that the communicator used was taken away.
    WINDLASS_ERROR_REGION_REVOKED = 8,
    // Joining: a variable of the environment is missing or wrong.
    WINDLASS_ERROR_ENVIRONMENT = 32,
    // Joining: a setting of the configuration is wrong.
    WINDLASS_ERROR_CONFIGURATION = 33,
    // Joining: the rendezvous cannot be reached.
    WINDLASS_ERROR_NO_RENDEZVOUS = 34,
    // Joining: the rendezvous refused this rank.
    WINDLASS_ERROR_REFUSED = 35,
    // Joining: not all ranks came.
    WINDLASS_ERROR_MISSING = 36,
    // The handle stands for nothing: it was freed or waited for, or never made.
    WINDLASS_ERROR_INVALID_HANDLE = 64,
    // A mistake in windlass itself, or four million operations that nobody waits for.
    WINDLASS_ERROR_INTERNAL = 65,
} windlass_result;

// The types of elements.
typedef enum {
    WINDLASS_U8 = 0,
    WINDLASS_I32 = 1,
    WINDLASS_I64 = 2,
    WINDLASS_F16 = 3,
    WINDLASS_BF16 = 4,
    WINDLASS_F32 = 5,
    WINDLASS_F64 = 6,
    WINDLASS_I8 = 7,
    WINDLASS_I16 = 8,
    WINDLASS_U16 = 9,
    WINDLASS_U32 = 10,
    WINDLASS_U64 = 11,
    WINDLASS_E4M3 = 12,
    WINDLASS_E5M2 = 13,
    WINDLASS_BOOL = 14,
    WINDLASS_COMPLEX64 = 15,
    WINDLASS_COMPLEX128 = 16,
    WINDLASS_F32I32 = 17,
    WINDLASS_F64I32 = 18,
    WINDLASS_I32I32 = 19,
    WINDLASS_F64I64 = 20,
    WINDLASS_I64I64 = 21,
} windlass_data_type;

// How the elements of several ranks become one.
typedef enum {
    WINDLASS_SUM = 0,
    WINDLASS_PROD = 1,
    WINDLASS_MIN = 2,
    WINDLASS_MAX = 3,
    WINDLASS_AVG = 4,
    WINDLASS_SCALED_SUM = 5,
    WINDLASS_BAND = 6,
    WINDLASS_BOR = 7,
    WINDLASS_BXOR = 8,
    WINDLASS_LAND = 9,
    WINDLASS_LOR = 10,
    WINDLASS_LXOR = 11,
    WINDLASS_MINLOC = 12,
    WINDLASS_MAXLOC = 13,
} windlass_reduce_op;

// The collectives, for `windlass_post`.
typedef enum {
    WINDLASS_ALL_REDUCE = 1,
    WINDLASS_REDUCE_SCATTER = 2,
    WINDLASS_ALL_GATHER = 3,
    WINDLASS_BROADCAST = 4,
    WINDLASS_BARRIER = 5,
    WINDLASS_SEND = 6,
    WINDLASS_RECV = 7,
    WINDLASS_REDUCE = 8,
    WINDLASS_GATHER = 9,
    WINDLASS_SCATTER = 10,
    WINDLASS_ALL_TO_ALL = 11,
    WINDLASS_SCAN = 12,
    WINDLASS_EXSCAN = 13,
    WINDLASS_ALL_GATHER_V = 14,
    WINDLASS_REDUCE_SCATTER_V = 15,
    WINDLASS_ALL_TO_ALL_V = 16,
    WINDLASS_GATHER_V = 17,
    WINDLASS_SCATTER_V = 18,
} windlass_collective;

// What a `windlass_comm_t` points to, as far as C knows.
typedef struct windlass_comm windlass_comm;

// What a `windlass_device_t` points to, as far as C knows.
typedef struct windlass_device windlass_device;

// What a `windlass_op_t` points to, as far as C knows.
typedef struct windlass_op windlass_op;

// What a function returns: `WINDLASS_SUCCESS`, or one of the errors of `windlass_result`. Newer
// libraries may know more.
typedef int32_t windlass_result_t;

// A group of ranks, as one of them holds it; NULL for none.
//
// All ranks must make the same collective calls on it in the same order. Any thread may use it; which of two
// calls that threads make at once comes first is nobody's to know, so threads use communicators of their
// own. A handle that was freed is refused, and never stands for another communicator.
typedef windlass_comm *windlass_comm_t;

// Names a job that has no launcher. Rank 0 makes it with `windlass_unique_id` and brings it to the others by
// means of its own.
typedef struct {
    // Opaque bytes.
    char internal[128];
} windlass_unique_id_t;

// The accelerator that a rank uses; NULL for none.
typedef windlass_device *windlass_device_t;

// How often a rank's device memory has moved.
typedef struct {
    // sizeof(windlass_movements_t), set by the caller: says which fields the program knows of.
    size_t bytes;
    // Moves that the accelerator asked for and made.
    uint64_t moves;
    // Times that it took memory without asking.
    uint64_t revokes;
    // Moves that were refused, because a peer could not be made to stop in time.
    uint64_t refused;
    // Pieces of operations that were done again because memory they touched had gone.
    uint64_t replays;
} windlass_movements_t;

// The type of the elements: one of `windlass_data_type`.
typedef int32_t windlass_data_type_t;

// An operator: combines every one of the `count` elements at `x` into the one at `acc` in the same place. The
// elements are private copies. It is called by any thread, several at once, and must neither call windlass with
// the communicator whose operation it is part of, nor leave by longjmp or by an exception.
typedef void (*windlass_fold_t)(void *acc, const void *x, size_t count, void *context);

// How the elements of several ranks become one: one of `windlass_reduce_op`, or what `windlass_register_op` gave.
typedef int32_t windlass_reduce_op_t;

// An operation that was started, and runs while the program does something else; NULL for none.
//
// The memory given to it stays valid, and is not touched otherwise, until `windlass_poll` says that the
// operation has ended, or `windlass_wait` or `windlass_op_free` has returned. Each operation is ended by one
// of the last two, which set the handle to NULL; a copy of it is refused from then on.
typedef windlass_op *windlass_op_t;

// One of `windlass_collective`, for `windlass_post`.
typedef int32_t windlass_collective_t;

// One buffer of a list.
typedef struct {
    // Its first element; of an empty one, anything.
    void *data;
    // Its elements.
    size_t count;
} windlass_member_t;

// Many buffers as one vector, one after the other: a hundred gradients as one operation. Peers reach each
// where it lies, so nothing is packed. The list is read during the call only; its buffers are the operation's
// until that ends. Buffers that are written may not overlap.
//
// `count`, or the lists of counts, are of the whole vector, as of one buffer. Where that has a block for each
// rank, a member may be a block: `WINDLASS_ALL_GATHER` into as many buffers as there are ranks. Or, with
// `by_rank`, each member has a block of every rank: `WINDLASS_ALL_GATHER` of many shards, each into a whole of
// its own.
typedef struct {
    // The buffers, all of the request's data type.
    const windlass_member_t *members;
    // How many.
    size_t count;
    // Not 0: each member is cut into as many equal parts as there are ranks, and the vector is all members'
    // parts of rank 0, then those of rank 1, and so on.
    int by_rank;
} windlass_list_t;

// A call as C gives it: what a collective has no use for is not looked at.
typedef struct {
    // sizeof(windlass_request_t): says which fields the program knows of.
    size_t bytes;
    // Which collective.
    windlass_collective_t collective;
    // The elements' type.
    windlass_data_type_t data_type;
    // The operator.
    windlass_reduce_op_t op;
    // The root, or the peer of a send or recv, or of a recv `WINDLASS_ANY_SOURCE`.
    int root;
    // The tag of a send or recv.
    uint32_t tag;
    // Elements, as in the collective's own function.
    size_t count;
    // What is read; not of a broadcast or a recv.
    const void *input;
    // What is written; not of a send. Of a broadcast, the buffer.
    void *output;
    // Where blocks differ: the elements of the input's blocks, one number for each rank.
    const size_t *input_counts;
    // The same of the output's.
    const size_t *output_counts;
    // What `WINDLASS_SCALED_SUM` multiplies this rank's input by.
    double scalar;
    // Where a recv says who has sent; NULL: nowhere.
    int *source;
    // In the place of `input`: many buffers as one vector. NULL: `input`.
    const windlass_list_t *input_list;
    // In the place of `output`, or of a broadcast's buffer. The same members as `input_list`: in place.
    const windlass_list_t *output_list;
} windlass_request_t;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library, as `"0.1.0"`.
const char *windlass_version(void);

// The message of the last error on the calling thread, in UTF-8: what happened, where, and what to do. Empty
// when there was none.
//
// It belongs to the library: it lasts until the thread ends, and changes with the next error on it.
const char *windlass_last_error(void);

// A result in a few words, for ever valid. See `windlass_last_error` for what has happened.
const char *windlass_error_string(windlass_result_t result);

// Joins the job that the environment describes, as `windlass run` or torchrun set it, and gives the
// communicator of all its ranks. Without one, the process is a job of one. Waits until all ranks have come.
//
// A second call gives another handle of the same communicator, while one of them lives.
windlass_result_t windlass_init(windlass_comm_t *comm);

// Makes a name that no other job has.
windlass_result_t windlass_unique_id(windlass_unique_id_t *id);

// Joins the job named by `id`, of `nranks` ranks on this host, as `rank`, and gives the communicator of all
// of them. Waits until all ranks have come; they may come in any order, within WINDLASS_JOIN_TIMEOUT. Rank 0
// holds the rendezvous while its communicator lives.
//
// A process may join several jobs, and be several ranks of one, each from a thread of its own.
windlass_result_t windlass_init_rank(windlass_comm_t *comm, int nranks, windlass_unique_id_t id, int rank);

// This process's rank in the communicator, from 0.
windlass_result_t windlass_comm_rank(windlass_comm_t comm, int *rank);

// The number of the communicator's ranks.
windlass_result_t windlass_comm_size(windlass_comm_t comm, int *size);

// Makes a communicator of all ranks that give the same colour, ranked by key, then by rank; NULL for those
// that give `WINDLASS_NO_COLOUR`. A collective call: all ranks make it. The new communicator is freed apart
// from the old one.
windlass_result_t windlass_comm_split(windlass_comm_t comm, int colour, int64_t key, windlass_comm_t *split);

// A communicator of the same ranks, independent of this one. A collective call.
windlass_result_t windlass_comm_duplicate(windlass_comm_t comm, windlass_comm_t *duplicate);

// Gives another handle of the same communicator, with a time limit for each call made by it, from the call to its
// end, in the place of WINDLASS_TIMEOUT. A call that does not end in time ends with `WINDLASS_ERROR_TIMED_OUT`, and the
// communicator is unusable on all its ranks. The handle is freed apart from the other one.
windlass_result_t windlass_comm_with_timeout(windlass_comm_t comm,
                                             uint64_t timeout_ms,
                                             windlass_comm_t *limited);

// Makes the communicator unusable on all its ranks, from any thread: whatever is under way ends with
// `WINDLASS_ERROR_ABORTED`, on this rank before this returns, so that its memory may be freed. The handle is
// still to be freed.
windlass_result_t windlass_comm_abort(windlass_comm_t comm);

// Waits for everything under way and then for all ranks; later calls on the communicator are refused. A
// collective call. The handle is still to be freed.
windlass_result_t windlass_comm_finalize(windlass_comm_t comm);

// Frees the handle and sets it to NULL; freeing NULL does nothing. Operations under way go on. With its last
// handle and operation, a rank leaves the communicator, and with its last communicator the job: peers that
// still need it get `WINDLASS_ERROR_PEER_FAILED`, so finalize first.
windlass_result_t windlass_comm_free(windlass_comm_t *comm);

// Allocates registered memory, zeroed and aligned to a page: peers on this host reach it directly, which is
// several times faster than through memory from malloc. It serves every communicator of the job, and
// outlives them.
windlass_result_t windlass_mem_alloc(windlass_comm_t comm, void **memory, size_t bytes);

// Frees what `windlass_mem_alloc`, `windlass_device_alloc` or `windlass_device_adopt` gave; freeing NULL does
// nothing. What an operation under way still needs is freed at its end. A second free is refused.
windlass_result_t windlass_mem_free(void *memory);

// Registers memory of the program's own where it lies, for all communicators of the job. Peers on this host do not
// reach it, so there `windlass_mem_alloc` is faster; it is for network cards. It stays valid until it is deregistered
// and no operation uses it. Ranges may not overlap.
windlass_result_t windlass_mem_register(windlass_comm_t comm,
                                        void *memory,
                                        size_t bytes);

// Ends a registration; of NULL, does nothing. What an operation under way needs stays registered until its end. A
// second time is refused.
windlass_result_t windlass_mem_deregister(void *memory);

// Takes an accelerator into use, so that the communicator's operations use its memory where it lies. A collective
// call: all ranks make it, each with the accelerator that it has. A rank uses one, for all its communicators.
//
// `name` is `simulated`, which every machine has, or one of the kernel's: `dma-heap`, `udmabuf`, `habanalabs`,
// `testbed`; or NULL, for the one that this rank uses already. `options` is NULL, or as in
// "movement=revocable,moves_per_second=20": device, capacity_bytes, movement (transparent, pinned, revocable,
// cooperative), seed, patience, announce_ahead, move_time, replacement_time (seconds), chunk_bytes,
// moves_per_second, revokes_per_second, lost_share. An accelerator that is not there is refused with
// `WINDLASS_ERROR_INVALID_ARGUMENT`, and nothing was started.
windlass_result_t windlass_attach(windlass_comm_t comm,
                                  const char *name,
                                  const char *options,
                                  windlass_device_t *device);

// Frees the handle and sets it to NULL; freeing NULL does nothing. The rank goes on using the accelerator, and
// memory on it stays until it is freed.
windlass_result_t windlass_device_free(windlass_device_t *device);

// Allocates device memory, of unspecified contents, which may move at any time, also while operations use it.
//
// Nothing lies at the address that it gets: whoever loads from it faults. But it can be calculated with, and every
// collective and message takes it, alone, in part, and as a member of a list. One that is freed, that is another
// job's, or that reaches beyond the memory is refused with `WINDLASS_ERROR_INVALID_ARGUMENT`. `windlass_mem_free`
// frees the memory. Until then the rank is part of the job, also without a communicator.
windlass_result_t windlass_device_alloc(windlass_device_t device,
                                        void **memory,
                                        size_t bytes);

// Takes memory of another exporter into use, `bytes` bytes from `offset` on of its dma-buf: CUDA's
// (cuMemGetHandleForAddressRange), ROCm's (hsa_amd_portable_export_dmabuf, whose offset counts), Level Zero's, or
// anybody's. It stays where it is, or moves transparently, until `windlass_mem_free`. The descriptor remains the
// caller's, who may close it at once; the memory lives at least as long as it is used.
//
// The device must be one of the kernel's. A descriptor that is closed or no dma-buf, and a range beyond its end, are
// refused with `WINDLASS_ERROR_INVALID_ARGUMENT`. Calls refuse elements that cannot lie where the memory begins.
windlass_result_t windlass_device_adopt(windlass_device_t device,
                                        void **memory,
                                        int descriptor,
                                        uint64_t offset,
                                        size_t bytes);

// Copies `bytes` bytes of host memory to device memory. Waits while that is on its way. No operation may use it
// meanwhile.
windlass_result_t windlass_device_write(void *to,
                                        const void *from,
                                        size_t bytes);

// Copies `bytes` bytes of device memory to host memory. Waits while that is on its way.
windlass_result_t windlass_device_read(void *to, const void *from, size_t bytes);

// How often this rank's device memory has moved since the accelerator was attached.
windlass_result_t windlass_device_movements(windlass_device_t device, windlass_movements_t *movements);

// Registers an operator under a name, for all communicators of this rank's job, and gives the number by which
// reductions take it. Ranks that reduce with it register it under the same name. Operands are folded from the left
// in rank order, so it need not be commutative. `fold` and `context` stay valid as long as the job.
windlass_result_t windlass_register_op(const char *name,
                                       windlass_data_type_t data_type,
                                       windlass_fold_t fold,
                                       void *context,
                                       windlass_comm_t comm,
                                       windlass_reduce_op_t *op);

// Reduces every element of `input` over all ranks into every rank's `output`; both have `count`
// elements, and may be the same memory.
windlass_result_t windlass_all_reduce(const void *input,
                                      void *output,
                                      size_t count,
                                      windlass_data_type_t data_type,
                                      windlass_reduce_op_t op,
                                      windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_all_reduce_async(const void *input,
                                            void *output,
                                            size_t count,
                                            windlass_data_type_t data_type,
                                            windlass_reduce_op_t op,
                                            windlass_comm_t comm,
                                            windlass_op_t *operation);

// Reduces every element of `input` over all ranks into the root's `output`; both have `count` elements,
// and may be the same memory. Other ranks' `output` is not looked at and may be NULL.
windlass_result_t windlass_reduce(const void *input,
                                  void *output,
                                  size_t count,
                                  windlass_data_type_t data_type,
                                  windlass_reduce_op_t op,
                                  int root,
                                  windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_reduce_async(const void *input,
                                        void *output,
                                        size_t count,
                                        windlass_data_type_t data_type,
                                        windlass_reduce_op_t op,
                                        int root,
                                        windlass_comm_t comm,
                                        windlass_op_t *operation);

// Every rank's `buffer`, of `count` elements, ends with what the root's holds.
windlass_result_t windlass_broadcast(void *buffer,
                                     size_t count,
                                     windlass_data_type_t data_type,
                                     int root,
                                     windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_broadcast_async(void *buffer,
                                           size_t count,
                                           windlass_data_type_t data_type,
                                           int root,
                                           windlass_comm_t comm,
                                           windlass_op_t *operation);

// Reduces `input`, of a block of `count` elements for each rank, over all ranks; rank r's `output`, of
// `count` elements, ends with block r. In place when `output` is this rank's block of `input`.
windlass_result_t windlass_reduce_scatter(const void *input,
                                          void *output,
                                          size_t count,
                                          windlass_data_type_t data_type,
                                          windlass_reduce_op_t op,
                                          windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_reduce_scatter_async(const void *input,
                                                void *output,
                                                size_t count,
                                                windlass_data_type_t data_type,
                                                windlass_reduce_op_t op,
                                                windlass_comm_t comm,
                                                windlass_op_t *operation);

// Collects every rank's `input`, of `count` elements, in rank order in every rank's `output`, of `count`
// for each rank. In place when `input` is this rank's block of `output`.
windlass_result_t windlass_all_gather(const void *input,
                                      void *output,
                                      size_t count,
                                      windlass_data_type_t data_type,
                                      windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_all_gather_async(const void *input,
                                            void *output,
                                            size_t count,
                                            windlass_data_type_t data_type,
                                            windlass_comm_t comm,
                                            windlass_op_t *operation);

// Collects every rank's `input`, of `count` elements, in rank order in the root's `output`, of `count`
// for each rank. Other ranks' `output` is not looked at and may be NULL.
windlass_result_t windlass_gather(const void *input,
                                  void *output,
                                  size_t count,
                                  windlass_data_type_t data_type,
                                  int root,
                                  windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_gather_async(const void *input,
                                        void *output,
                                        size_t count,
                                        windlass_data_type_t data_type,
                                        int root,
                                        windlass_comm_t comm,
                                        windlass_op_t *operation);

// Gives out the root's `input`, of a block of `count` elements for each rank: rank r's `output`, of
// `count` elements, ends with block r. Other ranks' `input` is not looked at and may be NULL.
windlass_result_t windlass_scatter(const void *input,
                                   void *output,
                                   size_t count,
                                   windlass_data_type_t data_type,
                                   int root,
                                   windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_scatter_async(const void *input,
                                         void *output,
                                         size_t count,
                                         windlass_data_type_t data_type,
                                         int root,
                                         windlass_comm_t comm,
                                         windlass_op_t *operation);

// Of `input`, of a block of `count` elements for each rank, gives block r to rank r; `output`, as long,
// ends with one block from each rank, in rank order. The two may not overlap.
windlass_result_t windlass_all_to_all(const void *input,
                                      void *output,
                                      size_t count,
                                      windlass_data_type_t data_type,
                                      windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_all_to_all_async(const void *input,
                                            void *output,
                                            size_t count,
                                            windlass_data_type_t data_type,
                                            windlass_comm_t comm,
                                            windlass_op_t *operation);

// Reduces every element of `input` over the ranks up to this one, itself included, into `output`; both
// have `count` elements, and may be the same memory. Not with `WINDLASS_AVG`.
windlass_result_t windlass_scan(const void *input,
                                void *output,
                                size_t count,
                                windlass_data_type_t data_type,
                                windlass_reduce_op_t op,
                                windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_scan_async(const void *input,
                                      void *output,
                                      size_t count,
                                      windlass_data_type_t data_type,
                                      windlass_reduce_op_t op,
                                      windlass_comm_t comm,
                                      windlass_op_t *operation);

// Reduces every element of `input` over the ranks below this one into `output`; both have `count`
// elements, and may be the same memory. Rank 0's `output` is left as it was. Not with `WINDLASS_AVG`.
windlass_result_t windlass_exscan(const void *input,
                                  void *output,
                                  size_t count,
                                  windlass_data_type_t data_type,
                                  windlass_reduce_op_t op,
                                  windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_exscan_async(const void *input,
                                        void *output,
                                        size_t count,
                                        windlass_data_type_t data_type,
                                        windlass_reduce_op_t op,
                                        windlass_comm_t comm,
                                        windlass_op_t *operation);

// As `windlass_all_gather`, of blocks of different lengths: `output_counts` has the elements of every
// rank's block, the same list on all ranks. Blocks lie back to back, so there are no displacements.
windlass_result_t windlass_all_gather_v(const void *input,
                                        void *output,
                                        const size_t *output_counts,
                                        windlass_data_type_t data_type,
                                        windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_all_gather_v_async(const void *input,
                                              void *output,
                                              const size_t *output_counts,
                                              windlass_data_type_t data_type,
                                              windlass_comm_t comm,
                                              windlass_op_t *operation);

// As `windlass_reduce_scatter`, of blocks of different lengths: `input_counts` has the elements of every
// rank's block, the same list on all ranks.
windlass_result_t windlass_reduce_scatter_v(const void *input,
                                            void *output,
                                            const size_t *input_counts,
                                            windlass_data_type_t data_type,
                                            windlass_reduce_op_t op,
                                            windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_reduce_scatter_v_async(const void *input,
                                                  void *output,
                                                  const size_t *input_counts,
                                                  windlass_data_type_t data_type,
                                                  windlass_reduce_op_t op,
                                                  windlass_comm_t comm,
                                                  windlass_op_t *operation);

// As `windlass_gather`, of blocks of different lengths: `count` is this rank's own, and at the root
// `output_counts` has every rank's. Elsewhere that is not looked at and may be NULL.
windlass_result_t windlass_gather_v(const void *input,
                                    size_t count,
                                    void *output,
                                    const size_t *output_counts,
                                    windlass_data_type_t data_type,
                                    int root,
                                    windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_gather_v_async(const void *input,
                                          size_t count,
                                          void *output,
                                          const size_t *output_counts,
                                          windlass_data_type_t data_type,
                                          int root,
                                          windlass_comm_t comm,
                                          windlass_op_t *operation);

// As `windlass_scatter`, of blocks of different lengths: `count` is this rank's own, and at the root
// `input_counts` has every rank's. Elsewhere that is not looked at and may be NULL.
windlass_result_t windlass_scatter_v(const void *input,
                                     const size_t *input_counts,
                                     void *output,
                                     size_t count,
                                     windlass_data_type_t data_type,
                                     int root,
                                     windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_scatter_v_async(const void *input,
                                           const size_t *input_counts,
                                           void *output,
                                           size_t count,
                                           windlass_data_type_t data_type,
                                           int root,
                                           windlass_comm_t comm,
                                           windlass_op_t *operation);

// As `windlass_all_to_all`, each pair of ranks with a length of its own: `input_counts` has the elements
// that this rank sends to each, `output_counts` those that it receives from each, which must be what
// those send.
windlass_result_t windlass_all_to_all_v(const void *input,
                                        const size_t *input_counts,
                                        void *output,
                                        const size_t *output_counts,
                                        windlass_data_type_t data_type,
                                        windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_all_to_all_v_async(const void *input,
                                              const size_t *input_counts,
                                              void *output,
                                              const size_t *output_counts,
                                              windlass_data_type_t data_type,
                                              windlass_comm_t comm,
                                              windlass_op_t *operation);

// As `windlass_all_reduce` with the sum of what each rank's `input` is when multiplied by that rank's
// own `scalar`.
windlass_result_t windlass_all_reduce_scaled(const void *input,
                                             void *output,
                                             size_t count,
                                             windlass_data_type_t data_type,
                                             double scalar,
                                             windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_all_reduce_scaled_async(const void *input,
                                                   void *output,
                                                   size_t count,
                                                   windlass_data_type_t data_type,
                                                   double scalar,
                                                   windlass_comm_t comm,
                                                   windlass_op_t *operation);

// Ends when all ranks have called it.
windlass_result_t windlass_barrier(windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_barrier_async(windlass_comm_t comm, windlass_op_t *operation);

// Sends `count` elements of `input` to rank `peer`, which must receive as many of the same type and with
// the same tag, below UINT32_MAX. Ends when the memory may be used again. Messages are ordered between
// two ranks and within a tag, and apart from the collectives.
windlass_result_t windlass_send(const void *input,
                                size_t count,
                                windlass_data_type_t data_type,
                                int peer,
                                uint32_t tag,
                                windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_send_async(const void *input,
                                      size_t count,
                                      windlass_data_type_t data_type,
                                      int peer,
                                      uint32_t tag,
                                      windlass_comm_t comm,
                                      windlass_op_t *operation);

// Receives `count` elements from whichever rank sends a message of this tag first, and says in `source`
// which it was, at the operation's end; NULL if that does not matter.
windlass_result_t windlass_recv_any(void *output,
                                    size_t count,
                                    windlass_data_type_t data_type,
                                    int *source,
                                    uint32_t tag,
                                    windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_recv_any_async(void *output,
                                          size_t count,
                                          windlass_data_type_t data_type,
                                          int *source,
                                          uint32_t tag,
                                          windlass_comm_t comm,
                                          windlass_op_t *operation);

// Receives `count` elements from rank `peer`: a message of exactly that length and type, and with the
// same tag.
windlass_result_t windlass_recv(void *output,
                                size_t count,
                                windlass_data_type_t data_type,
                                int peer,
                                uint32_t tag,
                                windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_recv_async(void *output,
                                      size_t count,
                                      windlass_data_type_t data_type,
                                      int peer,
                                      uint32_t tag,
                                      windlass_comm_t comm,
                                      windlass_op_t *operation);

// Sends and receives any number of messages as one call, which ends with the last of them, or with the first
// error: each of the `count` requests is a `WINDLASS_SEND` or a `WINDLASS_RECV`. All are posted before any is
// waited for, so no order of peers stands still. What a rank sends to itself it receives in the same call.
windlass_result_t windlass_exchange(const windlass_request_t *requests, size_t count, windlass_comm_t comm);

// The same, started: see `windlass_op_t`. The requests are read during the call only.
windlass_result_t windlass_exchange_async(const windlass_request_t *requests,
                                          size_t count,
                                          windlass_comm_t comm,
                                          windlass_op_t *operation);

// Sends `input` to rank `to` and receives `output` from rank `from`, the same or another or `WINDLASS_ANY_SOURCE`,
// at once: ranks that all send along a ring get through. The two may not overlap.
windlass_result_t windlass_sendrecv(const void *input,
                                    size_t input_count,
                                    int to,
                                    void *output,
                                    size_t output_count,
                                    int from,
                                    windlass_data_type_t data_type,
                                    uint32_t tag,
                                    windlass_comm_t comm);

// The same, started: see `windlass_op_t`.
windlass_result_t windlass_sendrecv_async(const void *input,
                                          size_t input_count,
                                          int to,
                                          void *output,
                                          size_t output_count,
                                          int from,
                                          windlass_data_type_t data_type,
                                          uint32_t tag,
                                          windlass_comm_t comm,
                                          windlass_op_t *operation);

// Says in `done` whether the operation has ended, and moves it on a little if not; never waits. Returns the
// operation's result once it has ended, else `WINDLASS_SUCCESS`. The operation is still to be waited for or
// freed. NULL has ended.
windlass_result_t windlass_poll(windlass_op_t op, int *done);

// Waits for the operation to end, frees it, sets it to NULL, and returns its result. Waiting for NULL does
// nothing.
//
// It ends in any case: with an error when a peer dies, when a rank aborts the communicator, or after
// WINDLASS_TIMEOUT.
windlass_result_t windlass_wait(windlass_op_t *op);

// Waits for `count` operations, in any order of their ends, as `windlass_wait` does for each, also when some
// fail; returns the first error in the array's order.
windlass_result_t windlass_wait_all(windlass_op_t *ops, size_t count);

// Waits for the operation to end, frees it, and sets it to NULL, whatever its result: its memory is safe to
// free afterwards. It does not cut the operation short; `windlass_comm_abort` does. Freeing NULL does
// nothing.
windlass_result_t windlass_op_free(windlass_op_t *op);

// Runs a request to its end: the collectives as data, for bindings and tables.
windlass_result_t windlass_perform(const windlass_request_t *request, windlass_comm_t comm);

// Starts a request: see `windlass_op_t`.
windlass_result_t windlass_post(const windlass_request_t *request,
                                windlass_comm_t comm,
                                windlass_op_t *operation);

// The bytes of one element of a type; 0 when there is no such type.
size_t windlass_type_size(windlass_data_type_t data_type);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* WINDLASS_H */
