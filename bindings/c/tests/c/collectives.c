/* Every collective by each of its doors, on vectors that all differ, with every result calculated here. */
#include "check.h"

enum { COUNT = 1000, MOST_RANKS = 8 };

/* Every row: COLLECTIVES comes from the runtime's table, and a row without a test fails below. */
static const int rows[] = {COLLECTIVES};

/* Whose memory the calls get. */
enum { HEAP, REGISTERED, DEVICE, KINDS };

static int rank, size, kind;
static windlass_comm_t comm;
static windlass_device_t device;
/* What the calls get, what the host sees of it, which is the same but for device memory, and what is to be there. */
static int64_t *input, *output, *host_input, *host_output, *right;

static size_t all_bytes(void) { return sizeof(int64_t) * COUNT * (size_t)size; }

static void *allocate(size_t bytes)
{
    void *memory = NULL;
    if (kind == REGISTERED)
        OK(windlass_mem_alloc(comm, &memory, bytes));
    else if (kind == DEVICE)
        OK(windlass_device_alloc(device, &memory, bytes));
    else
        memory = malloc(bytes);
    return memory;
}

static void release(void *memory)
{
    if (kind == HEAP)
        free(memory);
    else
        OK(windlass_mem_free(memory));
}

/* Element i of what rank r host_input in. */
static int64_t in(int r, int64_t i) { return (r + 1) * 100000 + i; }

/* The sum over ranks first..last-1 of element i. */
static int64_t sum(int first, int last, int64_t i)
{
    int64_t total = 0;
    for (int r = first; r < last; r++)
        total += in(r, i);
    return total;
}

static int is_uneven(int collective) { return collective >= WINDLASS_ALL_GATHER_V && collective <= WINDLASS_SCATTER_V; }

/* The elements of rank r's block; of an all_to_all, of that which is for rank q. Some are empty. */
static size_t length(int collective, int r, int q)
{
    if (!is_uneven(collective))
        return COUNT;
    return (size_t)(collective == WINDLASS_ALL_TO_ALL_V ? r * 331 + q * 517 : r * 489) % COUNT;
}

/* Where block q begins in what rank r has of an operand of blocks. */
static int64_t start_of(int collective, int r, int q)
{
    int64_t start = 0;
    for (int before = 0; before < q; before++)
        start += collective == WINDLASS_ALL_TO_ALL_V ? (int64_t)length(collective, r, before) : (int64_t)length(collective, before, 0);
    return start;
}

/* What is to be in `output` of this rank: `right` has been prepared as `output` has. */
static void calculate(int collective, int root)
{
    int64_t at = 0, mine = start_of(collective, 0, rank), block = (int64_t)length(collective, rank, 0);
    int previous = (rank + size - 1) % size;
    switch (collective) {
    case WINDLASS_ALL_REDUCE:
    case WINDLASS_REDUCE:
    case WINDLASS_SCAN:
    case WINDLASS_EXSCAN: {
        int last = collective == WINDLASS_SCAN ? rank + 1 : collective == WINDLASS_EXSCAN ? rank : size;
        int has = collective == WINDLASS_REDUCE ? rank == root : last > 0;
        for (int64_t i = 0; has && i < COUNT; i++)
            right[i] = sum(0, last, i);
        break;
    }
    case WINDLASS_BROADCAST:
    case WINDLASS_RECV:
        for (int64_t i = 0; i < COUNT; i++)
            right[i] = in(collective == WINDLASS_RECV ? previous : root, i);
        break;
    case WINDLASS_REDUCE_SCATTER:
    case WINDLASS_REDUCE_SCATTER_V:
        for (int64_t i = 0; i < block; i++)
            right[i] = sum(0, size, mine + i);
        break;
    case WINDLASS_SCATTER:
    case WINDLASS_SCATTER_V:
        for (int64_t i = 0; i < block; i++)
            right[i] = in(root, mine + i);
        break;
    case WINDLASS_GATHER:
    case WINDLASS_GATHER_V:
        if (rank != root)
            break;
        /* fallthrough */
    case WINDLASS_ALL_GATHER:
    case WINDLASS_ALL_GATHER_V:
        for (int r = 0; r < size; r++)
            for (int64_t i = 0; i < (int64_t)length(collective, r, 0); i++)
                right[at++] = in(r, i);
        break;
    case WINDLASS_ALL_TO_ALL:
    case WINDLASS_ALL_TO_ALL_V:
        for (int r = 0; r < size; r++)
            for (int64_t i = 0; i < (int64_t)length(collective, r, rank); i++)
                right[at++] = in(r, (collective == WINDLASS_ALL_TO_ALL_V ? start_of(collective, r, rank) : mine) + i);
        break;
    case WINDLASS_BARRIER:
    case WINDLASS_SEND: break;
    default: FAIL("collective %d has no test here", collective);
    }
}

static void prepare(int collective, int root)
{
    for (int64_t i = 0; i < (int64_t)COUNT * size; i++) {
        host_input[i] = in(rank, i);
        right[i] = host_output[i] = collective == WINDLASS_BROADCAST ? in(rank, i) : -1;
    }
    calculate(collective, root);
    if (kind == DEVICE) {
        OK(windlass_device_write(input, host_input, all_bytes()));
        OK(windlass_device_write(output, host_output, all_bytes()));
    }
}

static void verify(int collective, int root, const char *door)
{
    if (kind == DEVICE)
        OK(windlass_device_read(host_output, output, all_bytes()));
    for (int64_t i = 0; i < (int64_t)COUNT * size; i++)
        if (host_output[i] != right[i])
            FAIL("collective %d, root %d, %s, rank %d: element %lld is %lld, not %lld", collective, root, door, rank,
                 (long long)i, (long long)host_output[i], (long long)right[i]);
}

/* A row's two functions have the same arguments. */
#define ROW(row, name, ...) \
    case WINDLASS_##row: \
        if (start) \
            OK(windlass_##name##_async(__VA_ARGS__, &op)); \
        else \
            OK(windlass_##name(__VA_ARGS__)); \
        break

/* Makes the call, or starts it. */
static windlass_op_t call(int collective, int root, int start)
{
    const int type = WINDLASS_I64, add = WINDLASS_SUM, next = (rank + 1) % size, previous = (rank + size - 1) % size;
    /* What only the root has, is not looked at elsewhere. */
    int64_t *to = rank == root ? output : NULL, *from = rank == root ? input : NULL;
    size_t sent[MOST_RANKS], received[MOST_RANKS], own = length(collective, rank, 0), *at_root = rank == root ? sent : NULL;
    windlass_op_t op = NULL, other = NULL;
    for (int r = 0; r < size; r++) {
        sent[r] = collective == WINDLASS_ALL_TO_ALL_V ? length(collective, rank, r) : length(collective, r, 0);
        received[r] = length(collective, r, rank);
    }
    if (collective == WINDLASS_SEND)
        OK(windlass_recv_async(input + COUNT, COUNT, type, previous, 3, comm, &other));
    if (collective == WINDLASS_RECV)
        OK(windlass_send_async(input, COUNT, type, next, 4, comm, &other));
    switch (collective) {
        ROW(ALL_REDUCE, all_reduce, input, output, COUNT, type, add, comm);
        ROW(REDUCE, reduce, input, to, COUNT, type, add, root, comm);
        ROW(BROADCAST, broadcast, output, COUNT, type, root, comm);
        ROW(REDUCE_SCATTER, reduce_scatter, input, output, COUNT, type, add, comm);
        ROW(ALL_GATHER, all_gather, input, output, COUNT, type, comm);
        ROW(GATHER, gather, input, to, COUNT, type, root, comm);
        ROW(SCATTER, scatter, from, output, COUNT, type, root, comm);
        ROW(ALL_TO_ALL, all_to_all, input, output, COUNT, type, comm);
        ROW(ALL_GATHER_V, all_gather_v, input, output, sent, type, comm);
        ROW(REDUCE_SCATTER_V, reduce_scatter_v, input, output, sent, type, add, comm);
        ROW(GATHER_V, gather_v, input, own, to, at_root, type, root, comm);
        ROW(SCATTER_V, scatter_v, from, at_root, output, own, type, root, comm);
        ROW(ALL_TO_ALL_V, all_to_all_v, input, sent, output, received, type, comm);
        ROW(SCAN, scan, input, output, COUNT, type, add, comm);
        ROW(EXSCAN, exscan, input, output, COUNT, type, add, comm);
        ROW(BARRIER, barrier, comm);
        ROW(SEND, send, input, COUNT, type, next, 3, comm);
        ROW(RECV, recv, output, COUNT, type, previous, 4, comm);
    default: FAIL("collective %d has no test here", collective);
    }
    OK(windlass_wait(&other));
    /* Lists of counts are read during the call only. */
    memset(sent, 0xa5, sizeof sent);
    memset(received, 0xa5, sizeof received);
    return op;
}

/* As data: a row at a time, blocking and started. Send and recv need a peer that does the other, so they go together. */
static void raw(int collective, int root, int start)
{
    size_t sent[MOST_RANKS], received[MOST_RANKS];
    for (int r = 0; r < size; r++) {
        sent[r] = collective == WINDLASS_ALL_TO_ALL_V ? length(collective, rank, r) : length(collective, r, 0);
        received[r] = collective == WINDLASS_ALL_TO_ALL_V ? length(collective, r, rank) : sent[r];
    }
    windlass_request_t request = {
        .bytes = sizeof request, .collective = collective, .data_type = WINDLASS_I64, .op = WINDLASS_SUM, .root = root, .tag = 7,
        .count = length(collective, rank, 0), .input = input, .output = output, .input_counts = sent, .output_counts = received,
    };
    windlass_op_t op = NULL, other = NULL;
    if (collective == WINDLASS_SEND)
        return;
    if (collective == WINDLASS_RECV) {
        windlass_request_t send = request;
        send.collective = WINDLASS_SEND;
        send.root = (rank + 1) % size;
        OK(windlass_post(&send, comm, &other));
        request.root = (rank + size - 1) % size;
    }
    if (start) {
        OK(windlass_post(&request, comm, &op));
        OK(windlass_wait(&op));
    } else {
        OK(windlass_perform(&request, comm));
    }
    OK(windlass_wait(&other));
}

/* A vector that lies in members of its own, cut by rank or not. */
struct vector {
    windlass_member_t members[3];
    windlass_list_t list;
};

/* Copies between a vector and its members, in the list's order. */
static void copy(struct vector *in_members, int64_t *vector, int back)
{
    size_t parts = in_members->list.by_rank ? (size_t)size : 1;
    for (size_t part = 0; part < parts; part++)
        for (int m = 0; m < 3; m++) {
            size_t length = in_members->members[m].count / parts;
            if (length == 0)
                continue;
            int64_t *member = (int64_t *)in_members->members[m].data + part * length;
            size_t bytes = length * sizeof *vector;
            if (kind != DEVICE)
                memcpy(back ? vector : member, back ? member : vector, bytes);
            else if (back)
                OK(windlass_device_read(vector, member, bytes));
            else
                OK(windlass_device_write(member, vector, bytes));
            vector += length;
        }
    if (back && kind == DEVICE)
        OK(windlass_device_write(output, host_output, all_bytes()));
}

static void scatter_to_members(struct vector *vector, int64_t *from, size_t count, int by_rank)
{
    size_t parts = by_rank ? (size_t)size : 1, part = count / parts;
    size_t lengths[3] = {part / 3, 0, part - part / 3};
    for (int m = 0; m < 3; m++) {
        vector->members[m].count = lengths[m] * parts;
        vector->members[m].data = NULL;
        size_t bytes = lengths[m] * parts * sizeof *from;
        if (bytes > 0)
            vector->members[m].data = allocate(bytes);
    }
    vector->list.members = vector->members;
    vector->list.count = 3;
    vector->list.by_rank = by_rank;
    copy(vector, from, 0);
}

static void free_members(struct vector *vector)
{
    for (int m = 0; m < 3; m++)
        release(vector->members[m].data);
}

/* The elements of this rank's operand or result. */
static size_t elements(int collective, int root, int of_output)
{
    size_t all = 0, block = length(collective, rank, 0);
    for (int r = 0; r < size; r++)
        all += collective != WINDLASS_ALL_TO_ALL_V ? length(collective, r, 0) : of_output ? length(collective, r, rank) : length(collective, rank, r);
    switch (collective) {
    case WINDLASS_BROADCAST: return of_output ? COUNT : 0;
    case WINDLASS_REDUCE: return !of_output || rank == root ? COUNT : 0;
    case WINDLASS_ALL_TO_ALL:
    case WINDLASS_ALL_TO_ALL_V: return all;
    case WINDLASS_ALL_GATHER:
    case WINDLASS_ALL_GATHER_V: return of_output ? all : block;
    case WINDLASS_REDUCE_SCATTER:
    case WINDLASS_REDUCE_SCATTER_V: return of_output ? block : all;
    case WINDLASS_GATHER:
    case WINDLASS_GATHER_V: return !of_output ? block : rank == root ? all : 0;
    case WINDLASS_SCATTER:
    case WINDLASS_SCATTER_V: return of_output ? block : rank == root ? all : 0;
    default: return COUNT;
    }
}

/* Many buffers as one vector: of the operand, of the result, and of both; each member for itself where there is a block for each rank. */
static void lists(int collective, int root, int start)
{
    if (collective == WINDLASS_BARRIER || collective == WINDLASS_SEND || collective == WINDLASS_RECV)
        return;
    int gathers = collective == WINDLASS_ALL_GATHER || collective == WINDLASS_GATHER || collective == WINDLASS_ALL_TO_ALL;
    int scatters = collective == WINDLASS_REDUCE_SCATTER || collective == WINDLASS_SCATTER || collective == WINDLASS_ALL_TO_ALL;
    size_t sent[MOST_RANKS], received[MOST_RANKS];
    for (int r = 0; r < size; r++) {
        sent[r] = collective == WINDLASS_ALL_TO_ALL_V ? length(collective, rank, r) : length(collective, r, 0);
        received[r] = collective == WINDLASS_ALL_TO_ALL_V ? length(collective, r, rank) : sent[r];
    }
    for (int which = 1; which < 4; which++)
        for (int by_rank = 0; by_rank <= (gathers || scatters); by_rank++) {
            prepare(collective, root);
            struct vector from, to;
            scatter_to_members(&from, host_input, elements(collective, root, 0), by_rank && scatters);
            scatter_to_members(&to, host_output, elements(collective, root, 1), by_rank && gathers);
            windlass_request_t request = {
                .bytes = sizeof request, .collective = collective, .data_type = WINDLASS_I64, .op = WINDLASS_SUM, .root = root,
                .count = length(collective, rank, 0), .input = input, .output = output, .input_counts = sent, .output_counts = received,
                .input_list = which & 1 ? &from.list : NULL, .output_list = which & 2 ? &to.list : NULL,
            };
            windlass_op_t op = NULL;
            if (start)
                OK(windlass_post(&request, comm, &op));
            else
                OK(windlass_perform(&request, comm));
            /* They are read during the call only. */
            from.list.count = to.list.count = SIZE_MAX;
            OK(windlass_wait(&op));
            if (which & 2)
                copy(&to, host_output, 1);
            verify(collective, root, by_rank ? "lists by rank" : "lists");
            free_members(&from);
            free_members(&to);
        }
    if (collective != WINDLASS_ALL_REDUCE)
        return;
    /* In place. */
    struct vector both;
    prepare(collective, root);
    scatter_to_members(&both, host_input, COUNT, 0);
    windlass_request_t request = {.bytes = sizeof request, .collective = collective, .data_type = WINDLASS_I64, .op = WINDLASS_SUM,
                                  .count = COUNT, .input_list = &both.list, .output_list = &both.list};
    OK(windlass_perform(&request, comm));
    copy(&both, host_output, 1);
    verify(collective, root, "a list in place");
    free_members(&both);
}

/* Messages as one call: along a ring, and everybody with everybody, itself included. */
static void exchanges(void)
{
    const int next = (rank + 1) % size, previous = (rank + size - 1) % size;
    windlass_request_t messages[2 * MOST_RANKS] = {{0}};
    windlass_op_t op = NULL;
    for (int start = 0; start < 2; start++) {
        prepare(WINDLASS_RECV, 0);
        if (start)
            OK(windlass_sendrecv_async(input, COUNT, next, output, COUNT, previous, WINDLASS_I64, 8, comm, &op));
        else
            OK(windlass_sendrecv(input, COUNT, next, output, COUNT, previous, WINDLASS_I64, 8, comm));
        OK(windlass_wait(&op));
        verify(WINDLASS_RECV, 0, "sendrecv");
        prepare(WINDLASS_ALL_TO_ALL, 0);
        for (int i = 0; i < 2 * size; i++) {
            int peer = i < size ? i : 2 * size - 1 - i;
            messages[i].bytes = sizeof *messages;
            messages[i].collective = i < size ? WINDLASS_SEND : WINDLASS_RECV;
            messages[i].data_type = WINDLASS_I64;
            messages[i].root = peer;
            messages[i].count = COUNT;
            messages[i].input = input + COUNT * peer;
            messages[i].output = output + COUNT * peer;
        }
        if (start)
            OK(windlass_exchange_async(messages, 2 * (size_t)size, comm, &op));
        else
            OK(windlass_exchange(messages, 2 * (size_t)size, comm));
        /* They are read during the call only. */
        memset(messages, 0, sizeof messages);
        OK(windlass_wait(&op));
        verify(WINDLASS_ALL_TO_ALL, 0, "exchange");
    }
}

/* Writes the ranks' digits one after another: neither commutative nor associative, so it tells the order. */
static void digits(void *acc, const void *x, size_t count, void *context)
{
    int64_t *into = acc;
    const int64_t *from = x;
    CHECK(context == (void *)&rank);
    for (size_t i = 0; i < count; i++)
        into[i] = into[i] * 10 + from[i];
}

static void own_operator(void)
{
    windlass_reduce_op_t op = 0;
    int64_t all = 0, before = 0;
    OK(windlass_register_op("digits of ranks", WINDLASS_I64, digits, &rank, comm, &op));
    for (int r = 0; r < size; r++) {
        before = r == rank ? all : before;
        all = all * 10 + r + 1;
    }
    for (int i = 0; i < COUNT; i++)
        input[i] = rank + 1;
    OK(windlass_all_reduce(input, output, COUNT, WINDLASS_I64, op, comm));
    CHECK(output[0] == all && output[COUNT - 1] == all);
    OK(windlass_exscan(input, output, COUNT, WINDLASS_I64, op, comm));
    CHECK(rank == 0 || (output[0] == before && output[COUNT - 1] == before));
}

/* Everybody sends to everybody, and who sent what is told; then a ring of exchanges with receives from anybody. */
static void from_anybody(void)
{
    int32_t mine = rank * 100, got[2 * MOST_RANKS] = {0};
    int sources[2 * MOST_RANKS], seen[MOST_RANKS] = {0}, messages = 2 * (size - 1);
    windlass_op_t sent[2 * MOST_RANKS] = {NULL}, received[2 * MOST_RANKS] = {NULL};
    for (int i = 0; i < messages; i++) {
        OK(windlass_send_async(&mine, 1, WINDLASS_I32, (rank + 1 + i % (size - 1)) % size, 11, comm, &sent[i]));
        sources[i] = -7;
        if (i % 2)
            OK(windlass_recv_any_async(&got[i], 1, WINDLASS_I32, &sources[i], 11, comm, &received[i]));
    }
    for (int i = 0; i < messages; i += 2)
        OK(windlass_recv_any(&got[i], 1, WINDLASS_I32, i % 4 ? &sources[i] : NULL, 11, comm));
    OK(windlass_wait_all(sent, (size_t)messages));
    OK(windlass_wait_all(received, (size_t)messages));
    for (int i = 0; i < messages; i++) {
        CHECK(got[i] % 100 == 0 && got[i] / 100 < size && got[i] / 100 != rank);
        CHECK(sources[i] == (i % 4 ? got[i] / 100 : -7));
        seen[got[i] / 100]++;
    }
    for (int r = 0; r < size; r++)
        CHECK(seen[r] == (r == rank ? 0 : 2));
    windlass_request_t pair[2] = {
        {.bytes = sizeof *pair, .collective = WINDLASS_SEND, .data_type = WINDLASS_I32, .root = (rank + 1) % size, .tag = 12, .count = 1, .input = &mine},
        {.bytes = sizeof *pair, .collective = WINDLASS_RECV, .data_type = WINDLASS_I32, .root = WINDLASS_ANY_SOURCE, .tag = 12, .count = 1, .output = got,
         .source = sources},
    };
    OK(windlass_exchange(pair, 2, comm));
    CHECK(sources[0] == (rank + size - 1) % size && got[0] == sources[0] * 100);
}

/* The sum in which each rank has a factor: by its own doors, and as data. */
static void scaled(void)
{
    double values[COUNT], sums[COUNT];
    windlass_op_t op = NULL;
    windlass_request_t request = {
        .bytes = sizeof request, .collective = WINDLASS_ALL_REDUCE, .data_type = WINDLASS_F64, .op = WINDLASS_SCALED_SUM,
        .count = COUNT, .input = values, .output = sums, .scalar = rank - 0.5,
    };
    for (int door = 0; door < 3; door++) {
        for (int i = 0; i < COUNT; i++)
            values[i] = i;
        if (door == 0)
            OK(windlass_all_reduce_scaled(values, sums, COUNT, WINDLASS_F64, rank - 0.5, comm));
        else if (door == 1)
            OK(windlass_all_reduce_scaled_async(values, sums, COUNT, WINDLASS_F64, rank - 0.5, comm, &op));
        else
            OK(windlass_perform(&request, comm));
        OK(windlass_wait(&op));
        for (int i = 0; i < COUNT; i++)
            CHECK(values[i] == i && sums[i] == i * (size * (size - 1) / 2 - 0.5 * size));
    }
}

int main(void)
{
    OK(windlass_init(&comm));
    OK(windlass_comm_rank(comm, &rank));
    OK(windlass_comm_size(comm, &size));
    CHECK(size > 1 && size <= MOST_RANKS);
    CHECK(windlass_type_size(WINDLASS_I64) == sizeof(int64_t));
    /* It moves and is taken away while all of this goes on. */
    OK(windlass_attach(comm, "simulated", "moves_per_second=100,revokes_per_second=50", &device));
    right = malloc(all_bytes());
    for (kind = 0; kind < KINDS; kind++) {
        input = allocate(all_bytes());
        output = allocate(all_bytes());
        host_input = kind == DEVICE ? malloc(all_bytes()) : input;
        host_output = kind == DEVICE ? malloc(all_bytes()) : output;
        for (size_t row = 0; row < sizeof rows / sizeof *rows; row++) {
            int collective = rows[row];
            for (int root = 0; root < size; root++) {
                prepare(collective, root);
                CHECK(call(collective, root, 0) == NULL);
                verify(collective, root, "blocking");
                prepare(collective, root);
                windlass_op_t op = call(collective, root, 1);
                int done = 0;
                while (!done)
                    OK(windlass_poll(op, &done));
                verify(collective, root, "started");
                OK(windlass_wait(&op));
                CHECK(op == NULL);
                for (int start = 0; start < 2; start++) {
                    prepare(collective, root);
                    raw(collective, root, start);
                    verify(collective, root, start ? "posted" : "performed");
                    lists(collective, root, start);
                }
            }
        }
        exchanges();
        if (kind == REGISTERED)
            own_operator();
        if (kind == DEVICE) {
            free(host_input);
            free(host_output);
        }
        release(input);
        release(output);
    }
    windlass_movements_t movements = {.bytes = sizeof movements};
    OK(windlass_device_movements(device, &movements));
    CHECK(movements.moves > 0 && movements.revokes > 0);
    OK(windlass_device_free(&device));
    scaled();
    from_anybody();
    free(right);
    OK(windlass_comm_finalize(comm));
    OK(windlass_comm_free(&comm));
    printf("rank %d: every collective is right\n", rank);
    return 0;
}
