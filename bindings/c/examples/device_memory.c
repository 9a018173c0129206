/*
 * Gradients that lie on an accelerator are averaged over all ranks, while the accelerator moves them.
 *
 *   cc device_memory.c $(pkg-config --cflags --libs windlass) -o device_memory
 *   windlass run -n 4 -- ./device_memory
 *
 * With CUDA, ROCm or Level Zero the memory is theirs: attach one of the kernel's ("dma-heap"), and instead of
 * windlass_device_alloc give windlass_device_adopt the dma-buf that they export.
 */
#include <stdio.h>
#include <stdlib.h>
#include <windlass.h>

enum { PARAMETERS = 100000, STEPS = 20 };

/* Ends the program, with the reason. The peers hear of it, and end with an error that names this rank. */
static void check(windlass_result_t result, const char *what)
{
    if (result == WINDLASS_SUCCESS)
        return;
    fprintf(stderr, "%s: %s: %s\n", what, windlass_error_string(result), windlass_last_error());
    exit(1);
}

int main(void)
{
    windlass_comm_t comm = NULL;
    windlass_device_t device = NULL;
    int rank = 0, size = 0;
    check(windlass_init(&comm), "joining");
    check(windlass_comm_rank(comm, &rank), "rank");
    check(windlass_comm_size(comm, &size), "size");

    /* The accelerator that every machine has. */
    check(windlass_attach(comm, "simulated", "moves_per_second=100", &device), "attaching");
    void *gradient = NULL;
    check(windlass_device_alloc(device, &gradient, PARAMETERS * sizeof(float)), "allocating");

    static float host[PARAMETERS];
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < PARAMETERS; i++)
            host[i] = (float)(rank + step + i % 7);
        check(windlass_device_write(gradient, host, sizeof host), "writing");
        check(windlass_all_reduce(gradient, gradient, PARAMETERS, WINDLASS_F32, WINDLASS_AVG, comm), "averaging");
        check(windlass_device_read(host, gradient, sizeof host), "reading");
        for (int i = 0; i < PARAMETERS; i++) {
            float expected = (float)(size - 1) / 2 + (float)(step + i % 7);
            if (host[i] != expected) {
                fprintf(stderr, "rank %d, step %d, parameter %d: %g instead of %g\n", rank, step, i, host[i], expected);
                windlass_comm_abort(comm);
                return 1;
            }
        }
    }
    windlass_movements_t movements = {.bytes = sizeof movements};
    check(windlass_device_movements(device, &movements), "movements");
    printf("rank %d of %d: %d steps are right, with %llu moves\n", rank, size, STEPS, (unsigned long long)movements.moves);

    check(windlass_mem_free(gradient), "freeing");
    check(windlass_device_free(&device), "freeing the device");
    check(windlass_comm_finalize(comm), "finalizing");
    check(windlass_comm_free(&comm), "freeing the communicator");
    return 0;
}
