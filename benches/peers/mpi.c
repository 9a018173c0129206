/* MPI's collectives on floats under the loop of bench.h. */
#include "bench.h"

#include <mpi.h>
#include <stdlib.h>
#include <string.h>

static int rank, ranks;

/* To and fro: rank 1 sends back what it has received. */
static void ping_pong(float *input, float *output, int n) {
    if (rank > 1 || ranks < 2) return;
    if (rank == 0) MPI_Send(input, n, MPI_FLOAT, 1, 0, MPI_COMM_WORLD);
    MPI_Recv(output, n, MPI_FLOAT, 1 - rank, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    if (rank == 1) MPI_Send(output, n, MPI_FLOAT, 0, 0, MPI_COMM_WORLD);
}

/* The blocks' lengths and starts, made anew when the call is another one. What goes to a rank is as long as what comes from it. */
static struct lists {
    int collective, lengths[BENCH_MAX_RANKS], starts[BENCH_MAX_RANKS];
    size_t count;
} lists = {.collective = -1};

static const struct lists *lists_of(int collective, size_t count) {
    if (lists.collective == collective && lists.count == count) return &lists;
    for (int other = 0, start = 0; other < ranks; other++) {
        lists.lengths[other] = (int)bench_block(collective, count, ranks, other, rank);
        lists.starts[other] = start;
        start += lists.lengths[other];
    }
    lists.collective = collective;
    lists.count = count;
    return &lists;
}

static void uneven(int collective, int root, float *input, float *output, size_t count) {
    const MPI_Datatype type = MPI_FLOAT;
    const MPI_Comm comm = MPI_COMM_WORLD;
    const struct lists *l = lists_of(collective, count);
    const int *lengths = l->lengths, *starts = l->starts, own = lengths[rank];
    switch (collective) {
        case BENCH_ALL_GATHER_V: MPI_Allgatherv(input, own, type, output, lengths, starts, type, comm); break;
        case BENCH_REDUCE_SCATTER_V: MPI_Reduce_scatter(input, output, lengths, type, MPI_SUM, comm); break;
        case BENCH_ALL_TO_ALL_V: MPI_Alltoallv(input, lengths, starts, type, output, lengths, starts, type, comm); break;
        case BENCH_GATHER_V: MPI_Gatherv(input, own, type, output, lengths, starts, type, root, comm); break;
        case BENCH_SCATTER_V: MPI_Scatterv(input, lengths, starts, type, output, own, type, root, comm); break;
        default: MPI_Abort(comm, 1);
    }
}

static void operation(int collective, int root, float *input, float *output, size_t count) {
    const MPI_Datatype type = MPI_FLOAT;
    const MPI_Comm comm = MPI_COMM_WORLD;
    const int n = (int)count;
    switch (collective) {
        case BENCH_ALL_REDUCE: MPI_Allreduce(MPI_IN_PLACE, output, n, type, MPI_SUM, comm); break;
        case BENCH_REDUCE_SCATTER: MPI_Reduce_scatter_block(input, output, n, type, MPI_SUM, comm); break;
        case BENCH_ALL_GATHER: MPI_Allgather(input, n, type, output, n, type, comm); break;
        case BENCH_BROADCAST: MPI_Bcast(output, n, type, root, comm); break;
        case BENCH_BARRIER: MPI_Barrier(comm); break;
        case BENCH_SEND: ping_pong(input, output, n); break;
        case BENCH_REDUCE: MPI_Reduce(input, output, n, type, MPI_SUM, root, comm); break;
        case BENCH_GATHER: MPI_Gather(input, n, type, output, n, type, root, comm); break;
        case BENCH_SCATTER: MPI_Scatter(input, n, type, output, n, type, root, comm); break;
        case BENCH_ALL_TO_ALL: MPI_Alltoall(input, n, type, output, n, type, comm); break;
        case BENCH_SCAN: MPI_Scan(MPI_IN_PLACE, output, n, type, MPI_SUM, comm); break;
        case BENCH_EXSCAN: MPI_Exscan(MPI_IN_PLACE, output, n, type, MPI_SUM, comm); break;
        default: uneven(collective, root, input, output, count);
    }
}

/* The launchers tell the rank before MPI_Init does, and memory should be touched where it will be used. */
static int from_environment(const char *const *names) {
    for (; *names != NULL; names++) {
        const char *value = getenv(*names);
        if (value != NULL) return atoi(value);
    }
    return -1;
}

int main(int argc, char **argv) {
    static const char *const rank_names[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_RANK", NULL};
    static const char *const size_names[] = {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "PMI_SIZE", NULL};
    if (argc != 2) return 2;
    bench_pin(from_environment(rank_names), from_environment(size_names));
    MPI_Init(&argc, &argv);
    int length = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    static char version[MPI_MAX_LIBRARY_VERSION_STRING];
    MPI_Get_library_version(version, &length);
    /* Its first words, up to a character that JSON or a table could not bear. */
    version[strcspn(version, "\n\t\",\\")] = '\0';
    int failed = bench_serve(argv[1], rank, ranks, version, operation);
    if (failed) MPI_Abort(MPI_COMM_WORLD, failed);
    MPI_Finalize();
    return 0;
}
