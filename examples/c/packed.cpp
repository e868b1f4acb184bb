// B in panels, as wide as the kernel wants them: C = gelu(A B + bias), in f32, from C++.
#include <cmath>
#include <cstdio>
#include <vector>
#include "kernels.h"

int main()
{
    const jitgen_entry *entry = kernels_get(KERNELS_PACKED);
    if (!entry) {
        std::printf("packed: no kernel of the library can run on this CPU\n");
        return 3;
    }
    const auto m = static_cast<std::size_t>(entry->m), n = static_cast<std::size_t>(entry->n);
    const auto k = static_cast<std::size_t>(entry->k), panel = static_cast<std::size_t>(entry->panel);
    std::vector<float> a(m * k), b(k * n), c(m * n), bias(n);
    for (std::size_t i = 0; i < a.size(); i++) a[i] = static_cast<float>(i % 7) - 3;
    for (std::size_t i = 0; i < b.size(); i++) b[i] = static_cast<float>(i % 5) / 8 - 0.2f;
    for (std::size_t i = 0; i < n; i++) bias[i] = static_cast<float>(i % 3) - 1;

    // element (step, column) is at (column / panel * k + step) * panel + column % panel
    std::vector<float> panels((n + panel - 1) / panel * k * panel);
    for (std::size_t step = 0; step < k; step++)
        for (std::size_t column = 0; column < n; column++)
            panels[(column / panel * k + step) * panel + column % panel] = b[step * n + column];

    jitgen_args args = {};
    args.a = a.data();
    args.b = panels.data();
    args.c = c.data();
    args.count = 1;
    args.bias = bias.data();
    entry->kernel(&args);

    double largest = 0;
    for (std::size_t row = 0; row < m; row++)
        for (std::size_t column = 0; column < n; column++) {
            double x = static_cast<double>(bias[column]);
            for (std::size_t step = 0; step < k; step++)
                x += static_cast<double>(a[row * k + step]) * static_cast<double>(b[step * n + column]);
            const double expected = x * 0.5 * std::erfc(-x / std::sqrt(2.0));
            const double error = std::fabs(static_cast<double>(c[row * n + column]) - expected);
            if (!(error <= largest)) largest = error;
        }
    std::printf("packed: %s, panels of %d columns, largest error %.1e\n", entry->symbol,
                static_cast<int>(panel), largest);
    return largest < 1e-3 ? 0 : 1;
}
