/* Everything that a program must not do. Each is refused with an error that says what and where, and the communicator goes on where it can. */
#include "check.h"
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

static int rank, size;
static windlass_comm_t comm;

static void still_right(windlass_comm_t on)
{
    int32_t one = 1;
    OK(windlass_all_reduce(&one, &one, 1, WINDLASS_I32, WINDLASS_SUM, on));
    CHECK(one == size);
}

static void wrong_arguments(void)
{
    double a[4] = {0}, b[4] = {0};
    const int bad_argument = WINDLASS_ERROR_INVALID_ARGUMENT;
    windlass_op_t op = NULL;
    REFUSED(bad_argument, "windlass_all_reduce: the argument `comm` is NULL", windlass_all_reduce(a, b, 4, WINDLASS_F64, WINDLASS_SUM, NULL));
    REFUSED(bad_argument, "the input is null", windlass_all_reduce(NULL, b, 4, WINDLASS_F64, WINDLASS_SUM, comm));
    REFUSED(bad_argument, "the output is null", windlass_all_gather(a, NULL, 1, WINDLASS_F64, comm));
    REFUSED(bad_argument, "the input is null", windlass_broadcast(NULL, 4, WINDLASS_F64, 0, comm));
    REFUSED(bad_argument, "`operation` is NULL", windlass_all_reduce_async(a, b, 4, WINDLASS_F64, WINDLASS_SUM, comm, NULL));
    REFUSED(bad_argument, "larger than memory", windlass_all_reduce(a, b, SIZE_MAX, WINDLASS_F64, WINDLASS_SUM, comm));
    REFUSED(bad_argument, "larger than memory", windlass_all_gather(a, b, SIZE_MAX / 8, WINDLASS_F64, comm));
    REFUSED(bad_argument, "-1 is no data type", windlass_all_reduce(a, b, 4, -1, WINDLASS_SUM, comm));
    REFUSED(bad_argument, "250 is no data type", windlass_all_reduce(a, b, 4, 250, WINDLASS_SUM, comm));
    REFUSED(bad_argument, "261 is no data type", windlass_all_reduce(a, b, 4, 256 + WINDLASS_F32, WINDLASS_SUM, comm));
    REFUSED(bad_argument, "2147483647 is no operator", windlass_all_reduce(a, b, 4, WINDLASS_F64, INT32_MAX, comm));
    REFUSED(bad_argument, "avg", windlass_scan(a, b, 4, WINDLASS_F64, WINDLASS_AVG, comm));
    REFUSED(bad_argument, "the root is -1", windlass_broadcast(a, 4, WINDLASS_F64, -1, comm));
    REFUSED(bad_argument, "the root is 2 but", windlass_reduce(a, b, 4, WINDLASS_F64, WINDLASS_SUM, size, comm));
    REFUSED(bad_argument, "the peer is this rank", windlass_send(a, 4, WINDLASS_F64, rank, 0, comm));
    REFUSED(bad_argument, "the peer is 1000", windlass_recv(a, 4, WINDLASS_F64, 1000, 0, comm));
    REFUSED(bad_argument, "the peer is -1", windlass_send(a, 4, WINDLASS_F64, WINDLASS_ANY_SOURCE, 0, comm));
    REFUSED(bad_argument, "the input is null", windlass_recv_any(NULL, 4, WINDLASS_F64, NULL, 0, comm));
    REFUSED(bad_argument, "the tag", windlass_send(a, 4, WINDLASS_F64, 1 - rank, UINT32_MAX, comm));
    REFUSED(bad_argument, "no multiple of", windlass_all_reduce((char *)a + 1, b, 2, WINDLASS_F64, WINDLASS_SUM, comm));
    REFUSED(bad_argument, "overlaps", windlass_all_reduce(a, a + 1, 2, WINDLASS_F64, WINDLASS_SUM, comm));
    REFUSED(bad_argument, "overlaps", windlass_all_to_all(a, a, 2, WINDLASS_F64, comm));
    /* What is refused has no handle, also when it was started. */
    memset(&op, 0xa5, sizeof op);
    REFUSED(bad_argument, "the root is 9", windlass_broadcast_async(a, 4, WINDLASS_F64, 9, comm, &op));
    CHECK(op == NULL);

    windlass_request_t request = {.bytes = sizeof request, .collective = WINDLASS_ALL_REDUCE, .data_type = WINDLASS_F64,
                                  .op = WINDLASS_SUM, .count = 4, .input = a, .output = b};
    REFUSED(bad_argument, "`request` is NULL", windlass_perform(NULL, comm));
    REFUSED(bad_argument, "`request` is NULL", windlass_post(NULL, comm, &op));
    request.bytes = 7;
    REFUSED(bad_argument, "`bytes` is 7", windlass_perform(&request, comm));
    request.bytes = sizeof request;
    request.collective = 0;
    REFUSED(bad_argument, "0 is no collective", windlass_post(&request, comm, &op));
    request.collective = 200;
    REFUSED(bad_argument, "200 is no collective", windlass_perform(&request, comm));

    int number = 0;
    windlass_comm_t other = NULL;
    REFUSED(bad_argument, "`rank` is NULL", windlass_comm_rank(comm, NULL));
    REFUSED(bad_argument, "`comm` is NULL", windlass_comm_size(NULL, &number));
    REFUSED(bad_argument, "`comm` is NULL", windlass_init(NULL));
    REFUSED(bad_argument, "`split` is NULL", windlass_comm_split(comm, 0, 0, NULL));
    REFUSED(bad_argument, "the colour is -7", windlass_comm_split(comm, -7, 0, &other));
    REFUSED(bad_argument, "`duplicate` is NULL", windlass_comm_duplicate(comm, NULL));
    REFUSED(bad_argument, "`done` is NULL", windlass_poll(NULL, NULL));
    REFUSED(bad_argument, "`op` is NULL", windlass_wait(NULL));
    REFUSED(bad_argument, "`ops` is NULL", windlass_wait_all(NULL, 3));
    REFUSED(bad_argument, "`memory` is NULL", windlass_mem_alloc(comm, NULL, 8));
    OK(windlass_wait_all(NULL, 0));
    void *memory = a;
    CHECK(windlass_mem_alloc(comm, &memory, SIZE_MAX / 2) != WINDLASS_SUCCESS && memory == NULL);
    REFUSED(bad_argument, "larger than memory", windlass_mem_alloc(comm, &memory, SIZE_MAX));

    windlass_unique_id_t id;
    memset(&id, 'x', sizeof id);
    REFUSED(bad_argument, "`id` is NULL", windlass_unique_id(NULL));
    REFUSED(bad_argument, "unique id", windlass_init_rank(&other, 2, id, 0));
    OK(windlass_unique_id(&id));
    REFUSED(bad_argument, "number of ranks is 0", windlass_init_rank(&other, 0, id, 0));
    REFUSED(bad_argument, "the rank is 2", windlass_init_rank(&other, 2, id, 2));
    CHECK(other == NULL);

    CHECK(windlass_type_size(-1) == 0 && windlass_type_size(1000) == 0);
    CHECK(strcmp(windlass_error_string(-5), "unknown result") == 0);
    /* Nothing at all is right, too, wherever it lies. */
    OK(windlass_all_reduce(NULL, NULL, 0, WINDLASS_F64, WINDLASS_SUM, comm));
    still_right(comm);
}

/* Lists of counts, and factors. */
static void wrong_counts(void)
{
    double a[8] = {0}, b[8] = {0};
    const int bad_argument = WINDLASS_ERROR_INVALID_ARGUMENT, type = WINDLASS_F64;
    size_t counts[2] = {1, 3}, other[2] = {2, 2}, huge[2] = {SIZE_MAX, SIZE_MAX}, large[2] = {SIZE_MAX / 8, SIZE_MAX / 8}, none[2] = {0, 0};
    windlass_op_t op = NULL;
    REFUSED(bad_argument, "windlass_all_gather_v: the argument `output_counts` is NULL", windlass_all_gather_v(a, b, NULL, type, comm));
    REFUSED(bad_argument, "`input_counts` is NULL", windlass_reduce_scatter_v(a, b, NULL, type, WINDLASS_SUM, comm));
    REFUSED(bad_argument, "`input_counts` is NULL", windlass_all_to_all_v(a, NULL, b, counts, type, comm));
    REFUSED(bad_argument, "`output_counts` is NULL", windlass_all_to_all_v(a, counts, b, NULL, type, comm));
    REFUSED(bad_argument, "`output_counts` is NULL", windlass_gather_v(a, 1, b, NULL, type, rank, comm));
    REFUSED(bad_argument, "`input_counts` is NULL", windlass_scatter_v_async(a, NULL, b, 1, type, rank, comm, &op));
    REFUSED(bad_argument, "larger than memory", windlass_all_gather_v(a, b, huge, type, comm));
    REFUSED(bad_argument, "larger than memory", windlass_reduce_scatter_v(a, b, large, type, WINDLASS_SUM, comm));
    REFUSED(bad_argument, "own block", windlass_all_to_all_v(a, rank == 0 ? counts : other, b, rank == 0 ? other : counts, type, comm));
    REFUSED(bad_argument, "own block", windlass_gather_v(a, 7, b, counts, type, rank, comm));
    REFUSED(bad_argument, "own block", windlass_scatter_v(a, counts, b, 7, type, rank, comm));
    REFUSED(bad_argument, "the root is 2 but", windlass_gather_v(a, 1, b, counts, type, size, comm));
    REFUSED(bad_argument, "the root is -1", windlass_scatter_v(a, counts, b, 1, type, -1, comm));
    REFUSED(bad_argument, "the input is null", windlass_all_gather_v(NULL, b, counts, type, comm));
    REFUSED(bad_argument, "the output is null", windlass_all_to_all_v(a, counts, NULL, counts, type, comm));
    REFUSED(bad_argument, "overlaps", windlass_all_to_all_v(a, counts, a, counts, type, comm));
    REFUSED(bad_argument, "scaled_sum", windlass_all_reduce_scaled(a, b, 2, WINDLASS_I32, 2, comm));
    REFUSED(bad_argument, "scaled_sum", windlass_reduce_scatter(a, b, 2, type, WINDLASS_SCALED_SUM, comm));
    CHECK(op == NULL);
    windlass_request_t request = {.bytes = sizeof request, .collective = WINDLASS_ALL_TO_ALL_V, .data_type = type,
                                  .input = a, .output = b, .input_counts = counts};
    REFUSED(bad_argument, "windlass_post: the argument `output_counts` is NULL", windlass_post(&request, comm, &op));
    /* Nothing at all is right, also where only some have nothing. */
    OK(windlass_all_gather_v(NULL, NULL, none, type, comm));
    OK(windlass_all_to_all_v(NULL, none, NULL, none, type, comm));
    size_t first[2] = {2, 0};
    a[0] = 5;
    OK(windlass_scatter_v(rank == 0 ? a : NULL, rank == 0 ? first : NULL, rank == 0 ? b : NULL, rank == 0 ? 2 : 0, type, 0, comm));
    CHECK(rank == 1 || b[0] == 5);
    still_right(comm);

    /* Lists that differ between ranks. */
    windlass_comm_t twin = NULL;
    OK(windlass_comm_duplicate(comm, &twin));
    REFUSED(WINDLASS_ERROR_MISMATCH, "all_gather_v(", windlass_all_gather_v(a, b, rank == 0 ? counts : other, type, twin));
    OK(windlass_comm_free(&twin));
    OK(windlass_comm_duplicate(comm, &twin));
    /* Rank 0 sends 3, and rank 1 expects 2. */
    size_t to[2] = {1, rank == 0 ? 3 : 1}, from[2] = {rank == 0 ? 1 : 2, 1};
    windlass_result_t result = windlass_all_to_all_v(a, to, b, from, type, twin);
    /* Who sends may have ended well, and hears of it then. */
    if (rank == 0 && result == WINDLASS_SUCCESS)
        result = windlass_barrier(twin);
    if (result != WINDLASS_ERROR_MISMATCH)
        FAIL("lists that differ gave %d: %s", (int)result, windlass_last_error());
    OK(windlass_comm_free(&twin));
    still_right(comm);
}

static void wrong_messages(void)
{
    double a[8] = {0}, b[8] = {0};
    const int bad_argument = WINDLASS_ERROR_INVALID_ARGUMENT, type = WINDLASS_F64, peer = 1 - rank;
    windlass_op_t op = NULL;
    windlass_request_t send = {.bytes = sizeof send, .collective = WINDLASS_SEND, .data_type = type, .root = peer, .count = 4, .input = a};
    windlass_request_t recv = send;
    recv.collective = WINDLASS_RECV;
    recv.output = b;
    windlass_request_t messages[2] = {send, recv};
    REFUSED(bad_argument, "windlass_exchange: the argument `requests` is NULL", windlass_exchange(NULL, 2, comm));
    REFUSED(bad_argument, "`comm` is NULL", windlass_exchange(messages, 2, NULL));
    REFUSED(bad_argument, "`operation` is NULL", windlass_exchange_async(messages, 2, comm, NULL));
    messages[1].bytes = 0;
    REFUSED(bad_argument, "`bytes` is 0", windlass_exchange_async(messages, 2, comm, &op));
    messages[1] = recv;
    messages[1].collective = WINDLASS_ALL_REDUCE;
    REFUSED(bad_argument, "neither send nor recv", windlass_exchange(messages, 2, comm));
    messages[1] = recv;
    messages[1].output = a + 2;
    REFUSED(bad_argument, "overlaps", windlass_exchange(messages, 2, comm));
    messages[1].output = NULL;
    REFUSED(bad_argument, "is null", windlass_exchange_async(messages, 2, comm, &op));
    messages[1] = recv;
    messages[0].root = rank;
    REFUSED(bad_argument, "this rank itself", windlass_exchange(messages, 2, comm));
    messages[1].root = rank;
    messages[1].count = 3;
    REFUSED(bad_argument, "the message to this rank itself", windlass_exchange(messages, 2, comm));
    REFUSED(bad_argument, "the peer is 2", windlass_sendrecv(a, 4, size, b, 4, peer, type, 0, comm));
    REFUSED(bad_argument, "the peer is -2", windlass_sendrecv_async(a, 4, peer, b, 4, -2, type, 0, comm, &op));
    REFUSED(bad_argument, "no data type", windlass_sendrecv(a, 4, peer, b, 4, peer, -1, 0, comm));
    CHECK(op == NULL);
    OK(windlass_exchange(NULL, 0, comm));
    OK(windlass_sendrecv(NULL, 0, peer, NULL, 0, peer, type, 0, comm));
    a[3] = rank + 1;
    OK(windlass_sendrecv(a, 4, peer, b, 4, peer, type, 0, comm));
    CHECK(b[3] == peer + 1);
    still_right(comm);

    /* Registered memory that is freed while an exchange needs it. */
    windlass_comm_t twin = NULL;
    void *memory[2] = {NULL, NULL}, *next = NULL;
    OK(windlass_comm_duplicate(comm, &twin));
    for (int i = 0; i < 2; i++)
        OK(windlass_mem_alloc(comm, &memory[i], 1 << 20));
    if (rank == 1)
        usleep(20000);
    OK(windlass_sendrecv_async(memory[0], 1 << 17, peer, memory[1], 1 << 17, peer, type, 0, twin, &op));
    for (int i = 0; i < 2; i++)
        OK(windlass_mem_free(memory[i]));
    OK(windlass_mem_alloc(comm, &next, 1 << 20));
    CHECK(rank == 1 || (next != memory[0] && next != memory[1]));
    OK(windlass_wait(&op));
    OK(windlass_mem_free(next));
    OK(windlass_comm_free(&twin));
}

static void ignore(void *acc, const void *x, size_t count, void *context)
{
    (void)acc, (void)x, (void)count, (void)context;
}

static void wrong_operators(void)
{
    const int bad_argument = WINDLASS_ERROR_INVALID_ARGUMENT, type = WINDLASS_F64;
    double a[2] = {1, 2}, b[2] = {0};
    windlass_reduce_op_t op = 0;
    REFUSED(bad_argument, "`name` is NULL", windlass_register_op(NULL, type, ignore, NULL, comm, &op));
    REFUSED(bad_argument, "`fold` is NULL", windlass_register_op("left", type, NULL, NULL, comm, &op));
    REFUSED(bad_argument, "`op` is NULL", windlass_register_op("left", type, ignore, NULL, comm, NULL));
    REFUSED(bad_argument, "`comm` is NULL", windlass_register_op("left", type, ignore, NULL, NULL, &op));
    REFUSED(bad_argument, "`name` is no UTF-8", windlass_register_op("\xff", type, ignore, NULL, comm, &op));
    REFUSED(bad_argument, "the operator's name", windlass_register_op("", type, ignore, NULL, comm, &op));
    REFUSED(bad_argument, "77 is no data type", windlass_register_op("left", 77, ignore, NULL, comm, &op));
    OK(windlass_register_op("left", type, ignore, NULL, comm, &op));
    CHECK(op < 0);
    REFUSED(bad_argument, "registered before", windlass_register_op("left", type, ignore, NULL, comm, &op));
    REFUSED(bad_argument, "none that this rank has registered", windlass_all_reduce(a, b, 2, type, op ^ 1, comm));
    REFUSED(bad_argument, "is of f64", windlass_all_reduce(a, b, 2, WINDLASS_I64, op, comm));
    a[0] = rank + 5;
    OK(windlass_all_reduce(a, b, 2, type, op, comm));
    CHECK(b[0] == 5 && b[1] == 2);
    still_right(comm);
}

static void limits(void)
{
    windlass_comm_t twin = NULL, limited = NULL;
    OK(windlass_comm_duplicate(comm, &twin));
    REFUSED(WINDLASS_ERROR_INVALID_ARGUMENT, "timeout_ms is 0", windlass_comm_with_timeout(twin, 0, &limited));
    REFUSED(WINDLASS_ERROR_INVALID_ARGUMENT, "`limited` is NULL", windlass_comm_with_timeout(twin, 1, NULL));
    REFUSED(WINDLASS_ERROR_INVALID_ARGUMENT, "`comm` is NULL", windlass_comm_with_timeout(NULL, 1, &limited));
    CHECK(limited == NULL);
    OK(windlass_comm_with_timeout(twin, 100, &limited));
    OK(windlass_barrier(comm));
    if (rank == 1)
        usleep(400000);
    windlass_result_t result = windlass_barrier(limited);
    CHECK(result == (rank == 0 ? WINDLASS_ERROR_TIMED_OUT : WINDLASS_ERROR_ABORTED) || result == WINDLASS_ERROR_TIMED_OUT);
    /* It is the same communicator. */
    CHECK(windlass_barrier(twin) != WINDLASS_SUCCESS);
    OK(windlass_comm_free(&limited));
    OK(windlass_comm_free(&twin));
    still_right(comm);
}

static void own_memory(void)
{
    enum { COUNT = 1 << 17 };
    const int bad_argument = WINDLASS_ERROR_INVALID_ARGUMENT;
    double *heap = calloc(COUNT, sizeof *heap);
    void *given = NULL;
    windlass_op_t op = NULL;
    windlass_comm_t twin = NULL;
    OK(windlass_mem_alloc(comm, &given, 64));
    REFUSED(bad_argument, "is null", windlass_mem_register(comm, NULL, 8));
    REFUSED(bad_argument, "`comm` is NULL", windlass_mem_register(NULL, heap, 8));
    REFUSED(bad_argument, "needs no more", windlass_mem_register(comm, given, 64));
    OK(windlass_mem_register(comm, heap, COUNT * sizeof *heap));
    REFUSED(bad_argument, "cannot be registered", windlass_mem_register(comm, heap + 5, 8));
    REFUSED(bad_argument, "windlass_mem_free", windlass_mem_free(heap));
    REFUSED(bad_argument, "windlass_mem_deregister", windlass_mem_deregister(given));
    REFUSED(bad_argument, "windlass_mem_deregister", windlass_mem_deregister(heap + 1));
    /* Deregistered while an operation uses it: it stays registered until that ends. */
    OK(windlass_comm_duplicate(comm, &twin));
    heap[COUNT - 1] = 1;
    if (rank == 1)
        usleep(20000);
    OK(windlass_all_reduce_async(heap, heap, COUNT, WINDLASS_F64, WINDLASS_SUM, twin, &op));
    OK(windlass_mem_deregister(heap));
    REFUSED(bad_argument, "windlass_mem_deregister", windlass_mem_deregister(heap));
    OK(windlass_wait(&op));
    CHECK(heap[COUNT - 1] == size);
    OK(windlass_mem_deregister(NULL));
    OK(windlass_mem_free(given));
    OK(windlass_comm_free(&twin));
    free(heap);
    still_right(comm);
}

static void stale_handles(void)
{
    const int stale = WINDLASS_ERROR_INVALID_HANDLE;
    int done = 0, number = 0;
    windlass_comm_t twin = NULL, copy, made_up = (windlass_comm_t)(uintptr_t)0xdeadbeef;
    windlass_op_t op = NULL, op_copy;
    OK(windlass_comm_duplicate(comm, &twin));
    copy = twin;
    OK(windlass_comm_free(&twin));
    CHECK(twin == NULL);
    OK(windlass_comm_free(&twin));
    REFUSED(stale, "windlass_comm_free: the communicator handle 0x", windlass_comm_free(&(windlass_comm_t){copy}));
    REFUSED(stale, "windlass_barrier", windlass_barrier(copy));
    REFUSED(stale, "windlass_comm_abort", windlass_comm_abort(copy));
    REFUSED(stale, "windlass_comm_finalize", windlass_comm_finalize(copy));
    REFUSED(stale, "0xdeadbeef", windlass_comm_size(made_up, &number));
    /* Its place is used again; the old handle does not stand for the new one. */
    OK(windlass_comm_duplicate(comm, &twin));
    CHECK(twin != copy);
    REFUSED(stale, "windlass_barrier", windlass_barrier(copy));
    still_right(twin);

    for (int round = 0; round < 100; round++) {
        int32_t one = 1;
        OK(windlass_all_reduce_async(&one, &one, 1, WINDLASS_I32, WINDLASS_SUM, twin, &op));
        op_copy = op;
        OK(windlass_wait(&op));
        CHECK(one == size && op == NULL);
        OK(windlass_wait(&op));
        OK(windlass_op_free(&op));
        OK(windlass_poll(op, &done));
        CHECK(done);
        REFUSED(stale, "windlass_wait: the operation handle", windlass_wait(&(windlass_op_t){op_copy}));
        REFUSED(stale, "windlass_op_free", windlass_op_free(&(windlass_op_t){op_copy}));
        REFUSED(stale, "windlass_poll", windlass_poll(op_copy, &done));
    }
    /* One is not the other. */
    OK(windlass_barrier_async(twin, &op));
    REFUSED(stale, "communicator", windlass_barrier((windlass_comm_t)(void *)op));
    REFUSED(stale, "operation", windlass_wait(&(windlass_op_t){(windlass_op_t)(void *)twin}));
    /* Of several, one is stale: the others are waited for. */
    windlass_op_t several[3] = {op, op_copy, NULL};
    REFUSED(stale, "windlass_wait_all", windlass_wait_all(several, 3));
    CHECK(several[0] == NULL && several[1] == NULL);
    OK(windlass_comm_free(&twin));
}

static void freed_in_flight(void)
{
    enum { COUNT = 1 << 18 };
    windlass_comm_t twin = NULL;
    windlass_op_t op = NULL;
    void *memory = NULL, *next = NULL;
    for (int round = 0; round < 4; round++) {
        /* Registered memory, and the communicator: the operation holds both, so the memory is not given out again. Rank 1 is late,
         * so that it is under way. */
        OK(windlass_comm_duplicate(comm, &twin));
        OK(windlass_mem_alloc(comm, &memory, COUNT * sizeof(float)));
        if (rank == 1)
            usleep(20000);
        OK(windlass_all_reduce_async(memory, memory, COUNT, WINDLASS_F32, WINDLASS_SUM, twin, &op));
        OK(windlass_mem_free(memory));
        REFUSED(WINDLASS_ERROR_INVALID_ARGUMENT, "freed already", windlass_mem_free(memory));
        OK(windlass_mem_alloc(comm, &next, COUNT * sizeof(float)));
        CHECK(rank == 1 || next != memory);
        OK(windlass_comm_free(&twin));
        OK(windlass_wait(&op));
        OK(windlass_mem_free(next));
        /* Heap memory: the free of the operation waits for its end. */
        OK(windlass_comm_duplicate(comm, &twin));
        float *heap = malloc(COUNT * sizeof(float));
        for (int i = 0; i < COUNT; i++)
            heap[i] = 1;
        if (rank == 1)
            usleep(20000);
        OK(windlass_all_reduce_async(heap, heap, COUNT, WINDLASS_F32, WINDLASS_SUM, twin, &op));
        OK(windlass_op_free(&op));
        CHECK(heap[0] == (float)size && heap[COUNT - 1] == (float)size);
        free(heap);
        OK(windlass_comm_free(&twin));
    }
    REFUSED(WINDLASS_ERROR_INVALID_ARGUMENT, "was not given out by windlass", windlass_mem_free(&twin));
    OK(windlass_mem_free(NULL));
    still_right(comm);
}

static void *alone_on(void *argument)
{
    windlass_comm_t mine = argument;
    for (int i = 0; i < 500; i++) {
        int32_t values[3] = {1, 2, 3};
        windlass_op_t op = NULL;
        if (i % 2 == 0)
            OK(windlass_all_reduce(values, values, 3, WINDLASS_I32, WINDLASS_SUM, mine));
        else
            OK(windlass_all_reduce_async(values, values, 3, WINDLASS_I32, WINDLASS_SUM, mine, &op));
        OK(windlass_wait(&op));
        CHECK(values[0] == size && values[2] == 3 * size);
        CHECK(windlass_barrier(NULL) == WINDLASS_ERROR_INVALID_ARGUMENT && strstr(windlass_last_error(), "windlass_barrier"));
    }
    return NULL;
}

static void *race(void *argument)
{
    windlass_op_t op = argument;
    return windlass_wait(&op) == WINDLASS_SUCCESS ? argument : NULL;
}

static void threads(void)
{
    enum { THREADS = 4 };
    pthread_t started[THREADS];
    windlass_comm_t each[THREADS];
    for (int i = 0; i < THREADS; i++)
        OK(windlass_comm_duplicate(comm, &each[i]));
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&started[i], NULL, alone_on, each[i]) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(started[i], NULL) == 0);
    for (int i = 0; i < THREADS; i++)
        OK(windlass_comm_free(&each[i]));
    /* All wait for one operation: one gets it. */
    for (int round = 0; round < 50; round++) {
        windlass_op_t op = NULL;
        int got = 0;
        OK(windlass_barrier_async(comm, &op));
        for (int i = 0; i < THREADS; i++)
            CHECK(pthread_create(&started[i], NULL, race, op) == 0);
        for (int i = 0; i < THREADS; i++) {
            void *winner = NULL;
            CHECK(pthread_join(started[i], &winner) == 0);
            got += winner != NULL;
        }
        CHECK(got == 1);
    }
}

static volatile int hammering;

static void *hammer(void *argument)
{
    int number;
    (void)argument;
    while (hammering)
        OK(windlass_comm_rank(comm, &number));
    return NULL;
}

static void forked(void)
{
    pthread_t thread;
    hammering = 1;
    CHECK(pthread_create(&thread, NULL, hammer, NULL) == 0);
    for (int round = 0; round < 20; round++) {
        pid_t child = fork();
        if (child == 0) {
            /* The thread may have held any lock at this moment. */
            const int forked = WINDLASS_ERROR_FORKED;
            int number = 0;
            windlass_comm_t twin = comm;
            windlass_op_t op = NULL;
            alarm(20);
            REFUSED(forked, "forked from rank", windlass_comm_rank(comm, &number));
            REFUSED(forked, "forked", windlass_barrier(comm));
            REFUSED(forked, "forked", windlass_barrier_async(comm, &op));
            REFUSED(forked, "forked", windlass_init(&twin));
            REFUSED(forked, "forked", windlass_comm_free(&(windlass_comm_t){comm}));
            REFUSED(forked, "forked", windlass_mem_free(&number));
            _exit(0);
        }
        int status = 0;
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    hammering = 0;
    CHECK(pthread_join(thread, NULL) == 0);
    still_right(comm);
}

static void failing(void)
{
    windlass_comm_t twin = NULL;
    windlass_op_t op = NULL;
    double values[4] = {0};
    /* Different calls: another count, type, operator, root, and another collective. */
    const int wrong = WINDLASS_ERROR_MISMATCH, sum = WINDLASS_SUM, type = WINDLASS_F64;
    for (int kind = 0; kind < 5; kind++) {
        int odd = rank == 0 ? kind : -1;
        OK(windlass_comm_duplicate(comm, &twin));
        /* Both believe to be the root, and have what they need: that shows in the next call. */
        if (kind == 3)
            OK(windlass_broadcast(values, 4, type, rank, twin));
        else if (odd == 4)
            REFUSED(wrong, "barrier(", windlass_barrier(twin));
        else
            REFUSED(wrong, "all_reduce(", windlass_all_reduce(values, values, odd == 0 ? 3 : 4, odd == 1 ? WINDLASS_I64 : type, odd == 2 ? WINDLASS_MAX : sum, twin));
        REFUSED(wrong, "call #", windlass_barrier(twin));
        REFUSED(wrong, "call #", windlass_barrier_async(twin, &op));
        CHECK(op == NULL);
        OK(windlass_comm_free(&twin));
    }
    /* An abort ends what is under way, and its memory is free. */
    OK(windlass_comm_duplicate(comm, &twin));
    double *memory = calloc(1000, sizeof *memory);
    OK(windlass_recv_async(memory, 1000, WINDLASS_F64, 1 - rank, 1, twin, &op));
    OK(windlass_barrier(comm));
    int done = 0;
    windlass_result_t result = WINDLASS_SUCCESS;
    if (rank == 0)
        OK(windlass_comm_abort(twin));
    while (!done)
        result = windlass_poll(op, &done);
    CHECK(result == WINDLASS_ERROR_ABORTED);
    free(memory);
    REFUSED(WINDLASS_ERROR_ABORTED, "was aborted by rank", windlass_wait(&op));
    REFUSED(WINDLASS_ERROR_ABORTED, "was aborted", windlass_barrier(twin));
    OK(windlass_comm_free(&twin));
    still_right(comm);
}

/* Ranks of a job of their own, each a thread. */
static windlass_unique_id_t named;

static void *thread_rank(void *argument)
{
    windlass_comm_t mine = NULL, half = NULL;
    int me = (int)(intptr_t)argument, value = 1, number = 0;
    OK(windlass_init_rank(&mine, 3, named, me));
    OK(windlass_comm_rank(mine, &number));
    CHECK(number == me);
    OK(windlass_all_reduce(&value, &value, 1, WINDLASS_I32, WINDLASS_SUM, mine));
    CHECK(value == 3);
    OK(windlass_comm_split(mine, me == 1 ? WINDLASS_NO_COLOUR : 5, -me, &half));
    CHECK((half == NULL) == (me == 1));
    if (half != NULL) {
        OK(windlass_comm_rank(half, &number));
        CHECK(number == (me == 2 ? 0 : 1));
        OK(windlass_comm_free(&half));
    }
    OK(windlass_comm_finalize(mine));
    OK(windlass_comm_free(&mine));
    return NULL;
}

static void by_unique_id(void)
{
    pthread_t started[3];
    OK(windlass_unique_id(&named));
    for (intptr_t i = 0; i < 3; i++)
        CHECK(pthread_create(&started[i], NULL, thread_rank, (void *)i) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_join(started[i], NULL) == 0);
}

int main(void)
{
    windlass_comm_t again = NULL, copy;
    CHECK(windlass_last_error()[0] == '\0' && windlass_version()[0] != '\0');
    OK(windlass_init(&comm));
    OK(windlass_init(&again));
    OK(windlass_comm_free(&again));
    OK(windlass_comm_rank(comm, &rank));
    OK(windlass_comm_size(comm, &size));
    CHECK(size == 2);
    wrong_arguments();
    wrong_counts();
    wrong_messages();
    wrong_operators();
    limits();
    own_memory();
    stale_handles();
    freed_in_flight();
    threads();
    failing();
    by_unique_id();
    forked();
    copy = comm;
    OK(windlass_comm_finalize(comm));
    REFUSED(WINDLASS_ERROR_INVALID_ARGUMENT, "finalized", windlass_barrier(comm));
    REFUSED(WINDLASS_ERROR_INVALID_ARGUMENT, "finalized", windlass_barrier_async(comm, &(windlass_op_t){NULL}));
    REFUSED(WINDLASS_ERROR_INVALID_ARGUMENT, "finalized", windlass_comm_finalize(comm));
    OK(windlass_comm_free(&comm));
    REFUSED(WINDLASS_ERROR_INVALID_HANDLE, "windlass_barrier", windlass_barrier(copy));
    printf("rank %d: everything was refused\n", rank);
    return 0;
}
