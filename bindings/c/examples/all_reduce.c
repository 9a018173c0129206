/*
 * A training step, as every rank makes it: two layers' gradients are averaged over all ranks, each while the next one is
 * calculated, and the loss is summed.
 *
 *   cc all_reduce.c $(pkg-config --cflags --libs windlass) -o all_reduce
 *   windlass run -n 4 -- ./all_reduce
 */
#include <stdio.h>
#include <stdlib.h>
#include <windlass.h>

enum { LAYERS = 2, PARAMETERS = 100000, STEPS = 5 };

/* Ends the program, with the reason. The peers hear of it, and end with an error that names this rank. */
static void check(windlass_result_t result, const char *what)
{
    if (result == WINDLASS_SUCCESS)
        return;
    fprintf(stderr, "%s: %s: %s\n", what, windlass_error_string(result), windlass_last_error());
    exit(1);
}

/* What a real program gets from back-propagation. */
static double calculate(float *gradient, int layer, int step, int rank)
{
    double loss = 0;
    for (int i = 0; i < PARAMETERS; i++) {
        gradient[i] = (float)(rank + layer + step + i % 7);
        loss += gradient[i];
    }
    return loss / PARAMETERS;
}

int main(void)
{
    windlass_comm_t comm = NULL;
    check(windlass_init(&comm), "joining");
    int rank = 0, size = 0;
    check(windlass_comm_rank(comm, &rank), "rank");
    check(windlass_comm_size(comm, &size), "size");

    /* Registered memory: peers on this host reach it directly. Memory from malloc would do, too, and be copied. */
    float *gradients[LAYERS];
    for (int layer = 0; layer < LAYERS; layer++) {
        void *memory = NULL;
        check(windlass_mem_alloc(comm, &memory, PARAMETERS * sizeof(float)), "allocating");
        gradients[layer] = memory;
    }

    double loss = 0;
    for (int step = 0; step < STEPS; step++) {
        windlass_op_t averages[LAYERS] = {NULL};
        loss = 0;
        for (int layer = LAYERS - 1; layer >= 0; layer--) {
            float *gradient = gradients[layer];
            loss += calculate(gradient, layer, step, rank);
            /* It runs while the layer below is calculated; nobody touches this gradient until it has ended. */
            check(windlass_all_reduce_async(gradient, gradient, PARAMETERS, WINDLASS_F32, WINDLASS_AVG, comm, &averages[layer]), "averaging");
        }
        check(windlass_wait_all(averages, LAYERS), "averaging");

        for (int layer = 0; layer < LAYERS; layer++) {
            for (int i = 0; i < PARAMETERS; i++) {
                float expected = (float)(size - 1) / 2 + (float)(layer + step + i % 7);
                if (gradients[layer][i] != expected) {
                    fprintf(stderr, "rank %d, step %d, layer %d, parameter %d: %g instead of %g\n", rank, step, layer, i,
                            gradients[layer][i], expected);
                    windlass_comm_abort(comm);
                    return 1;
                }
            }
        }
        check(windlass_all_reduce(&loss, &loss, 1, WINDLASS_F64, WINDLASS_SUM, comm), "summing the loss");
    }
    printf("rank %d of %d: %d steps, total loss %.3f\n", rank, size, STEPS, loss);

    /* A mistake in a call is refused before anything starts, and says what is wrong; the communicator goes on. */
    if (windlass_broadcast(&loss, 1, WINDLASS_F64, size, comm) != WINDLASS_ERROR_INVALID_ARGUMENT)
        return 1;
    if (rank == 0)
        printf("refused as it should be: %s\n", windlass_last_error());

    for (int layer = 0; layer < LAYERS; layer++)
        check(windlass_mem_free(gradients[layer]), "freeing");
    check(windlass_comm_finalize(comm), "finalizing");
    check(windlass_comm_free(&comm), "freeing the communicator");
    return 0;
}
