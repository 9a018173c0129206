/* Every collective by each of its doors, on vectors that all differ, with every result calculated here. */
#include "check.h"

enum { COUNT = 1000, MOST_RANKS = 8 };

/* Every row: COLLECTIVES comes from the runtime's table, and a row without a test fails below. */
static const int rows[] = {COLLECTIVES};

static int rank, size;
static windlass_comm_t comm;
static int64_t *input, *output;

/* Element i of what rank r puts in. */
static int64_t in(int r, int64_t i) { return (r + 1) * 100000 + i; }

/* The sum over ranks first..last-1 of element i. */
static int64_t sum(int first, int last, int64_t i)
{
    int64_t total = 0;
    for (int r = first; r < last; r++)
        total += in(r, i);
    return total;
}

/* What rank `rank` has at i of its output, of `elements`; -1 where the collective leaves it alone. */
static int64_t expected(int collective, int root, int64_t i)
{
    switch (collective) {
    case WINDLASS_ALL_REDUCE: return sum(0, size, i);
    case WINDLASS_REDUCE: return rank == root ? sum(0, size, i) : -1;
    case WINDLASS_BROADCAST: return in(root, i);
    case WINDLASS_REDUCE_SCATTER: return sum(0, size, rank * COUNT + i);
    case WINDLASS_ALL_GATHER: return in((int)(i / COUNT), i % COUNT);
    case WINDLASS_GATHER: return rank == root ? in((int)(i / COUNT), i % COUNT) : -1;
    case WINDLASS_SCATTER: return in(root, rank * COUNT + i);
    case WINDLASS_ALL_TO_ALL: return in((int)(i / COUNT), rank * COUNT + i % COUNT);
    case WINDLASS_SCAN: return sum(0, rank + 1, i);
    case WINDLASS_EXSCAN: return rank == 0 ? -1 : sum(0, rank, i);
    case WINDLASS_RECV: return in((rank + size - 1) % size, i);
    default: return -1;
    }
}

static void prepare(int collective)
{
    for (int64_t i = 0; i < (int64_t)COUNT * size; i++) {
        input[i] = in(rank, i);
        output[i] = collective == WINDLASS_BROADCAST ? in(rank, i) : -1;
    }
}

static void verify(int collective, int root, const char *door)
{
    int blocks = collective == WINDLASS_ALL_GATHER || collective == WINDLASS_GATHER || collective == WINDLASS_ALL_TO_ALL;
    for (int64_t i = 0; i < (int64_t)COUNT * size; i++) {
        int64_t right = i < (int64_t)COUNT * (blocks ? size : 1) ? expected(collective, root, i) : -1;
        if (collective == WINDLASS_BROADCAST && i >= COUNT)
            right = in(rank, i);
        if (output[i] != right)
            FAIL("collective %d, root %d, %s, rank %d: element %lld is %lld, not %lld", collective, root, door, rank,
                 (long long)i, (long long)output[i], (long long)right);
    }
}

static void blocking(int collective, int root)
{
    int next = (rank + 1) % size, before = (rank + size - 1) % size;
    void *mine = rank == root ? output : NULL;
    windlass_op_t op = NULL;
    switch (collective) {
    case WINDLASS_ALL_REDUCE: OK(windlass_all_reduce(input, output, COUNT, WINDLASS_I64, WINDLASS_SUM, comm)); break;
    case WINDLASS_REDUCE: OK(windlass_reduce(input, mine, COUNT, WINDLASS_I64, WINDLASS_SUM, root, comm)); break;
    case WINDLASS_BROADCAST: OK(windlass_broadcast(output, COUNT, WINDLASS_I64, root, comm)); break;
    case WINDLASS_REDUCE_SCATTER: OK(windlass_reduce_scatter(input, output, COUNT, WINDLASS_I64, WINDLASS_SUM, comm)); break;
    case WINDLASS_ALL_GATHER: OK(windlass_all_gather(input, output, COUNT, WINDLASS_I64, comm)); break;
    case WINDLASS_GATHER: OK(windlass_gather(input, mine, COUNT, WINDLASS_I64, root, comm)); break;
    case WINDLASS_SCATTER: OK(windlass_scatter(rank == root ? input : NULL, output, COUNT, WINDLASS_I64, root, comm)); break;
    case WINDLASS_ALL_TO_ALL: OK(windlass_all_to_all(input, output, COUNT, WINDLASS_I64, comm)); break;
    case WINDLASS_SCAN: OK(windlass_scan(input, output, COUNT, WINDLASS_I64, WINDLASS_SUM, comm)); break;
    case WINDLASS_EXSCAN: OK(windlass_exscan(input, output, COUNT, WINDLASS_I64, WINDLASS_SUM, comm)); break;
    case WINDLASS_BARRIER: OK(windlass_barrier(comm)); break;
    case WINDLASS_SEND:
        OK(windlass_recv_async(input + COUNT, COUNT, WINDLASS_I64, before, 3, comm, &op));
        OK(windlass_send(input, COUNT, WINDLASS_I64, next, 3, comm));
        OK(windlass_wait(&op));
        break;
    case WINDLASS_RECV:
        OK(windlass_send_async(input, COUNT, WINDLASS_I64, next, 4, comm, &op));
        OK(windlass_recv(output, COUNT, WINDLASS_I64, before, 4, comm));
        OK(windlass_wait(&op));
        break;
    default: FAIL("collective %d has no test here", collective);
    }
}

static windlass_op_t started(int collective, int root)
{
    int next = (rank + 1) % size, before = (rank + size - 1) % size;
    void *mine = rank == root ? output : NULL;
    windlass_op_t op = NULL, other = NULL;
    switch (collective) {
    case WINDLASS_ALL_REDUCE: OK(windlass_all_reduce_async(input, output, COUNT, WINDLASS_I64, WINDLASS_SUM, comm, &op)); break;
    case WINDLASS_REDUCE: OK(windlass_reduce_async(input, mine, COUNT, WINDLASS_I64, WINDLASS_SUM, root, comm, &op)); break;
    case WINDLASS_BROADCAST: OK(windlass_broadcast_async(output, COUNT, WINDLASS_I64, root, comm, &op)); break;
    case WINDLASS_REDUCE_SCATTER: OK(windlass_reduce_scatter_async(input, output, COUNT, WINDLASS_I64, WINDLASS_SUM, comm, &op)); break;
    case WINDLASS_ALL_GATHER: OK(windlass_all_gather_async(input, output, COUNT, WINDLASS_I64, comm, &op)); break;
    case WINDLASS_GATHER: OK(windlass_gather_async(input, mine, COUNT, WINDLASS_I64, root, comm, &op)); break;
    case WINDLASS_SCATTER: OK(windlass_scatter_async(rank == root ? input : NULL, output, COUNT, WINDLASS_I64, root, comm, &op)); break;
    case WINDLASS_ALL_TO_ALL: OK(windlass_all_to_all_async(input, output, COUNT, WINDLASS_I64, comm, &op)); break;
    case WINDLASS_SCAN: OK(windlass_scan_async(input, output, COUNT, WINDLASS_I64, WINDLASS_SUM, comm, &op)); break;
    case WINDLASS_EXSCAN: OK(windlass_exscan_async(input, output, COUNT, WINDLASS_I64, WINDLASS_SUM, comm, &op)); break;
    case WINDLASS_BARRIER: OK(windlass_barrier_async(comm, &op)); break;
    case WINDLASS_SEND:
        OK(windlass_recv_async(input + COUNT, COUNT, WINDLASS_I64, before, 5, comm, &other));
        OK(windlass_send_async(input, COUNT, WINDLASS_I64, next, 5, comm, &op));
        OK(windlass_wait(&other));
        break;
    case WINDLASS_RECV:
        OK(windlass_recv_async(output, COUNT, WINDLASS_I64, before, 6, comm, &op));
        OK(windlass_send(input, COUNT, WINDLASS_I64, next, 6, comm));
        break;
    default: FAIL("collective %d has no test here", collective);
    }
    return op;
}

/* As data: a row at a time, blocking and started. Send and recv need a peer that does the other, so they go together. */
static void raw(int collective, int root, int start)
{
    windlass_request_t request = {
        sizeof request, collective, WINDLASS_I64, WINDLASS_SUM, root, 7, COUNT, input, output,
    };
    windlass_op_t op = NULL, sent = NULL;
    if (collective == WINDLASS_SEND)
        return;
    if (collective == WINDLASS_RECV) {
        windlass_request_t send = request;
        send.collective = WINDLASS_SEND;
        send.root = (rank + 1) % size;
        OK(windlass_post(&send, comm, &sent));
        request.root = (rank + size - 1) % size;
    }
    if (start) {
        OK(windlass_post(&request, comm, &op));
        OK(windlass_wait(&op));
    } else {
        OK(windlass_perform(&request, comm));
    }
    OK(windlass_wait(&sent));
}

int main(void)
{
    OK(windlass_init(&comm));
    OK(windlass_comm_rank(comm, &rank));
    OK(windlass_comm_size(comm, &size));
    CHECK(size > 1 && size <= MOST_RANKS);
    const size_t bytes = sizeof(int64_t) * COUNT * (size_t)size;
    CHECK(windlass_type_size(WINDLASS_I64) == sizeof(int64_t));
    for (int registered = 0; registered < 2; registered++) {
        void *memory[2] = {NULL, NULL};
        for (int i = 0; i < 2; i++) {
            if (registered)
                OK(windlass_mem_alloc(comm, &memory[i], bytes));
            else
                memory[i] = malloc(bytes);
        }
        input = memory[0];
        output = memory[1];
        for (size_t row = 0; row < sizeof rows / sizeof *rows; row++) {
            int collective = rows[row];
            for (int root = 0; root < size; root++) {
                prepare(collective);
                blocking(collective, root);
                verify(collective, root, "blocking");
                prepare(collective);
                windlass_op_t op = started(collective, root);
                int done = 0;
                while (!done)
                    OK(windlass_poll(op, &done));
                verify(collective, root, "started");
                OK(windlass_wait(&op));
                CHECK(op == NULL);
                for (int start = 0; start < 2; start++) {
                    prepare(collective);
                    raw(collective, root, start);
                    verify(collective, root, start ? "posted" : "performed");
                }
            }
        }
        for (int i = 0; i < 2; i++) {
            if (registered)
                OK(windlass_mem_free(memory[i]));
            else
                free(memory[i]);
        }
    }
    OK(windlass_comm_finalize(comm));
    OK(windlass_comm_free(&comm));
    printf("rank %d: every collective is right\n", rank);
    return 0;
}
