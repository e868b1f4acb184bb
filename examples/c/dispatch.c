/* What a library holds, what of it can run here, and which kernel each product gets; then a kernel
   that is found by its shape, called, and checked. */
#include <math.h>
#include <stdio.h>
#include "kernels.h"

enum { M = 9, N = 21, K = 33, LDA = 40 };
static double a[M][LDA], b[K][N], c[M][N];

int main(void)
{
    const struct jitgen_library *library = kernels_library();
    const uint32_t cpu = jitgen_cpu_features();
    const struct jitgen_entry *entry, *best;
    struct jitgen_args args = {0};
    double largest = 0;
    int64_t i;
    int row, column, step;

    for (i = 0; i < library->count; i++) {
        entry = &library->entries[i];
        best = jitgen_get(library, entry->id);
        printf("%-24s %2d x %2d x %2d  %s\n", entry->symbol, (int)entry->m, (int)entry->n,
               (int)entry->k, entry == best ? "chosen" : jitgen_fits(entry, cpu) ? "runs" : "no");
    }
    entry = kernels_find(M, N, K, LDA, 0, 0, JITGEN_F64, JITGEN_ALPHA);
    if (!entry) {
        printf("dispatch: no kernel of this shape can run on this CPU\n");
        return 3;
    }
    for (row = 0; row < M; row++)
        for (step = 0; step < K; step++) a[row][step] = row - step;
    for (step = 0; step < K; step++)
        for (column = 0; column < N; column++) b[step][column] = step + 0.25 * column;
    args.a = a, args.b = b, args.c = c, args.count = 1;
    entry->kernel(&args);
    for (row = 0; row < M; row++)
        for (column = 0; column < N; column++) {
            double sum = 0, error;
            for (step = 0; step < K; step++) sum += a[row][step] * b[step][column];
            error = fabs(c[row][column] - 0.5 * sum);
            if (error > largest || error != error) largest = error;
        }
    printf("dispatch: %s, largest error %.1e\n", entry->symbol, largest);
    return largest < 1e-9 ? 0 : 1;
}
