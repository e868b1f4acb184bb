/* A layer on two threads of this program: y = relu(x w^T + b), with weights that the same threads
   have packed. */
#define _POSIX_C_SOURCE 200112L
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels.h"

enum { N = 64, C = 128, K = 256, THREADS = 2, CALLS = 3 };
static float x[N][C], w[K][C], b[K], y[N][K];
static struct kernels_fc_pack_weights_args pack;
static struct kernels_fc_forward_packed_args forward;
static int codes[THREADS];

/* Zeros that begin at a cache line: for scratch memory, and for what is packed. */
static void *zeros(size_t size)
{
    void *memory = NULL;
    if (size && posix_memalign(&memory, JITGEN_SCRATCH_ALIGN, size)) exit(2);
    return size ? memset(memory, 0, size) : NULL;
}

/* What a thread does: its part of each call. A call returns when all threads have done theirs, so
   that the next one may read what this one has written. */
static void *part(void *number)
{
    const int tid = *(const int *)number;
    int i;
    codes[tid] = kernels_fc_pack_weights(&pack, tid, THREADS);
    for (i = 0; i < CALLS && codes[tid] == JITGEN_DONE; i++)
        codes[tid] = kernels_fc_forward_packed(&forward, tid, THREADS);
    return NULL;
}

int main(void)
{
    int numbers[THREADS], t, row, column, step;
    pthread_t threads[THREADS];
    float *panels = (float *)zeros(KERNELS_FC_PACK_WEIGHTS_PANELS_BYTES);
    double largest = 0;

    for (row = 0; row < N; row++)
        for (step = 0; step < C; step++) x[row][step] = (float)(row - step) / 64;
    for (column = 0; column < K; column++)
        for (step = 0; step < C; step++) w[column][step] = (float)(column + step) / 128;
    for (column = 0; column < K; column++) b[column] = (float)column - 20;

    pack.w = &w[0][0], pack.panels = panels;
    pack.scratch = zeros(KERNELS_FC_PACK_WEIGHTS_SCRATCH_BYTES);
    forward.x = &x[0][0], forward.w = panels, forward.b = b, forward.y = &y[0][0];
    forward.scratch = zeros(KERNELS_FC_FORWARD_PACKED_SCRATCH_BYTES);

    for (t = 0; t < THREADS; t++) {
        numbers[t] = t;
        if (t && pthread_create(&threads[t], NULL, part, &numbers[t])) return 2;
    }
    part(&numbers[0]);
    for (t = 1; t < THREADS; t++) pthread_join(threads[t], NULL);
    free(panels), free(pack.scratch), free(forward.scratch);
    for (t = 0; t < THREADS; t++)
        if (codes[t] != JITGEN_DONE) {
            printf("layer: code %d, no kernel of the library can run on this CPU\n", codes[t]);
            return codes[t];
        }

    for (row = 0; row < N; row++)
        for (column = 0; column < K; column++) {
            double sum = b[column], error;
            for (step = 0; step < C; step++) sum += (double)x[row][step] * w[column][step];
            error = fabs(y[row][column] - (sum > 0 ? sum : 0));
            if (error > largest || error != error) largest = error;
        }
    printf("layer: kernels_fc_forward_packed on %d threads, largest error %.1e\n", THREADS, largest);
    return largest < 1e-2 ? 0 : 1;
}
