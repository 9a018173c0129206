/* Lists that must not be: each is refused with an error that says what and where, and the communicator goes on. What lists do is in collectives.c. */
#include "check.h"
#include <unistd.h>

static int rank, size;
static windlass_comm_t comm;

static void still_right(void)
{
    int32_t one = 1;
    OK(windlass_all_reduce(&one, &one, 1, WINDLASS_I32, WINDLASS_SUM, comm));
    CHECK(one == size);
}

static void refused(void)
{
    double a[8] = {0}, b[8] = {0};
    const int bad_argument = WINDLASS_ERROR_INVALID_ARGUMENT, type = WINDLASS_F64;
    windlass_op_t op = NULL;
    windlass_member_t members[2] = {{a, 1}, {a + 4, 3}}, results[2] = {{b, 3}, {b + 4, 1}};
    windlass_list_t from = {members, 2, 0}, to = {results, 2, 0}, empty = {NULL, 0, 0};
    windlass_request_t sum = {.bytes = sizeof sum, .collective = WINDLASS_ALL_REDUCE, .data_type = type, .op = WINDLASS_SUM,
                              .count = 4, .input_list = &from, .output_list = &to};
    windlass_request_t request = sum;
    from.members = NULL;
    REFUSED(bad_argument, "windlass_perform: the argument `members` is NULL", windlass_perform(&sum, comm));
    REFUSED(bad_argument, "windlass_post: the argument `members` is NULL", windlass_post(&sum, comm, &op));
    from.members = members;
    from.count = SIZE_MAX;
    REFUSED(bad_argument, "`count` is -1", windlass_perform(&sum, comm));
    from.count = 2;
    members[0].data = NULL;
    REFUSED(bad_argument, "the input is null", windlass_perform(&sum, comm));
    members[0].data = a;
    results[1].data = NULL;
    REFUSED(bad_argument, "the output is null", windlass_post(&sum, comm, &op));
    results[1].data = b + 4;
    /* The members' elements are not those of the call. */
    members[1].count = 2;
    REFUSED(bad_argument, "the input has 3 elements but the call needs 4", windlass_perform(&sum, comm));
    members[1].count = 3;
    results[0].count = SIZE_MAX;
    REFUSED(bad_argument, "larger than memory", windlass_perform(&sum, comm));
    results[0].count = SIZE_MAX - 1;
    REFUSED(bad_argument, "larger than memory", windlass_perform(&sum, comm));
    results[0].count = 3;
    request.count = 5;
    REFUSED(bad_argument, "elements but the call needs 5", windlass_post(&request, comm, &op));
    /* Members that overlap: two that are written, and one that is read elsewhere. */
    results[1].data = b + 2;
    REFUSED(bad_argument, "the output overlaps", windlass_perform(&sum, comm));
    results[1].data = a;
    REFUSED(bad_argument, "the input overlaps", windlass_perform(&sum, comm));
    results[1].data = (char *)b + 33;
    REFUSED(bad_argument, "no multiple of", windlass_perform(&sum, comm));
    results[1].data = b + 4;
    request = sum;
    request.output_list = NULL;
    REFUSED(bad_argument, "the output is null", windlass_perform(&request, comm));
    request = sum;
    request.input_list = request.output_list = &empty;
    REFUSED(bad_argument, "the input has 0 elements but the call needs 4", windlass_perform(&request, comm));
    request.data_type = 77;
    REFUSED(bad_argument, "77 is no data type", windlass_perform(&request, comm));
    /* By rank, what is cut must go into as many parts as there are ranks. */
    request = sum;
    request.collective = WINDLASS_ALL_GATHER;
    request.count = 2;
    to.by_rank = 1;
    from.count = 1;
    members[0].count = 2;
    REFUSED(bad_argument, "windlass_perform: a member of output_list has 3 elements, which 2 ranks cannot share evenly", windlass_perform(&request, comm));
    results[0].count = 1;
    results[1].count = 3;
    REFUSED(bad_argument, "cannot share evenly", windlass_post(&request, comm, &op));
    results[0].count = results[1].count = 2;
    a[0] = rank + 1;
    a[1] = rank + 10;
    OK(windlass_perform(&request, comm));
    CHECK(b[0] == 1 && b[1] == 2 && b[4] == 10 && b[5] == 11);
    to.by_rank = 0;
    /* Messages are no lists. */
    for (int collective = WINDLASS_SEND; collective <= WINDLASS_RECV; collective++) {
        request.collective = collective;
        request.root = 1 - rank;
        REFUSED(bad_argument, "list", windlass_perform(&request, comm));
        REFUSED(bad_argument, "list", windlass_exchange(&request, 1, comm));
    }
    CHECK(op == NULL);
    /* No members, and nothing to do. */
    request = sum;
    request.input_list = request.output_list = &empty;
    request.count = 0;
    OK(windlass_perform(&request, comm));
    OK(windlass_post(&request, comm, &op));
    OK(windlass_wait(&op));
    still_right();
}

/* Lists of the same elements that ranks cut differently, and of another type. */
static void unlike(void)
{
    double a[8] = {0};
    windlass_request_t request = {.bytes = sizeof request, .collective = WINDLASS_ALL_REDUCE, .data_type = WINDLASS_F64, .op = WINDLASS_SUM};
    request.count = 4;
    for (int kind = 0; kind < 2; kind++) {
        windlass_comm_t twin = NULL;
        OK(windlass_comm_duplicate(comm, &twin));
        windlass_member_t mine[2] = {{a, kind == 0 ? 1 + (size_t)rank : 2}, {a + 4, kind == 0 ? 3 - (size_t)rank : 2}};
        windlass_list_t list = {mine, 2, 0};
        request.data_type = kind == 1 && rank == 1 ? WINDLASS_I64 : WINDLASS_F64;
        request.input_list = request.output_list = &list;
        REFUSED(WINDLASS_ERROR_MISMATCH, "all_reduce(", windlass_perform(&request, twin));
        OK(windlass_comm_free(&twin));
    }
    still_right();
}

/* Members in registered memory that are freed while the operation needs them. */
static void freed_in_flight(void)
{
    windlass_request_t request = {.bytes = sizeof request, .collective = WINDLASS_ALL_REDUCE, .data_type = WINDLASS_F64, .op = WINDLASS_SUM};
    windlass_op_t op = NULL;
    windlass_comm_t twin = NULL;
    windlass_member_t given[2] = {{NULL, 1 << 17}, {NULL, 1 << 17}};
    windlass_list_t list = {given, 2, 0};
    void *next = NULL;
    OK(windlass_comm_duplicate(comm, &twin));
    for (int i = 0; i < 2; i++)
        OK(windlass_mem_alloc(comm, &given[i].data, 1 << 20));
    if (rank == 1)
        usleep(20000);
    request.count = 1 << 18;
    request.input_list = request.output_list = &list;
    OK(windlass_post(&request, twin, &op));
    for (int i = 0; i < 2; i++)
        OK(windlass_mem_free(given[i].data));
    OK(windlass_mem_alloc(comm, &next, 1 << 20));
    CHECK(rank == 1 || (next != given[0].data && next != given[1].data));
    OK(windlass_wait(&op));
    OK(windlass_mem_free(next));
    OK(windlass_comm_free(&twin));
    still_right();
}

int main(void)
{
    OK(windlass_init(&comm));
    OK(windlass_comm_rank(comm, &rank));
    OK(windlass_comm_size(comm, &size));
    CHECK(size == 2);
    refused();
    unlike();
    freed_in_flight();
    OK(windlass_comm_finalize(comm));
    OK(windlass_comm_free(&comm));
    printf("rank %d: every list was refused\n", rank);
    return 0;
}
