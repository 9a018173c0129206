/* MPI_Allreduce of floats, in place, under the loop of bench.h. */
#include "bench.h"

#include <mpi.h>
#include <stdlib.h>
#include <string.h>

static void all_reduce(float *values, size_t count) {
    MPI_Allreduce(MPI_IN_PLACE, values, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
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
    int rank = 0, ranks = 1, length = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    static char version[MPI_MAX_LIBRARY_VERSION_STRING];
    MPI_Get_library_version(version, &length);
    /* Its first words, up to a character that JSON or a table could not bear. */
    version[strcspn(version, "\n\t\",\\")] = '\0';
    int failed = bench_serve(argv[1], rank, ranks, version, all_reduce);
    if (failed) MPI_Abort(MPI_COMM_WORLD, failed);
    MPI_Finalize();
    return 0;
}
