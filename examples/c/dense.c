/* Call a kernel by its number: C = relu(C + sum over i < 3 of A_i B_i + bias), in f32. */
#include <math.h>
#include <stdio.h>
#include "kernels.h"

enum { M = 32, N = 48, K = 64, COUNT = 3 };
static float a[COUNT][M][K], b[COUNT][K][N], c[M][N], expected[M][N], bias[N];

int main(void)
{
    const struct jitgen_entry *entry = kernels_get(KERNELS_DENSE);
    struct jitgen_args args = {0};
    double largest = 0;
    int i, row, column, step;

    if (!entry) {
        printf("dense: no kernel of the library can run on this CPU\n");
        return 3;
    }
    for (i = 0; i < COUNT; i++) {
        for (row = 0; row < M; row++)
            for (step = 0; step < K; step++) a[i][row][step] = (float)(row - step + i) / 64;
        for (step = 0; step < K; step++)
            for (column = 0; column < N; column++) b[i][step][column] = (float)(step + column) / 64;
    }
    for (row = 0; row < M; row++)
        for (column = 0; column < N; column++) expected[row][column] = c[row][column] = (float)row;
    for (column = 0; column < N; column++) bias[column] = (float)column - 20;

    args.a = a, args.b = b, args.c = c, args.count = COUNT, args.bias = bias;
    entry->kernel(&args);

    for (row = 0; row < M; row++)
        for (column = 0; column < N; column++) {
            double sum = expected[row][column] + bias[column], error;
            for (i = 0; i < COUNT; i++)
                for (step = 0; step < K; step++) sum += (double)a[i][row][step] * b[i][step][column];
            error = fabs(c[row][column] - (sum > 0 ? sum : 0));
            if (error > largest || error != error) largest = error;
        }
    printf("dense: %s, largest error %.1e\n", entry->symbol, largest);
    return largest < 1e-3 ? 0 : 1;
}
