"""The plot of the benchmark grid: jitgen against its peers (needs matplotlib).

What it is: one PNG or SVG file, per instruction set and dtype one row of two panels: GFLOP/s over
the size of the problem, and the ratio to LIBXSMM over m and n. What it is not: interactive.
"""

from __future__ import annotations

from typing import Any

_STYLE = {"jitgen": ("tab:red", "o"), "libxsmm": ("tab:blue", "s"), "numpy": ("tab:gray", "^")}


def plot_grid(document: dict[str, Any], file: str) -> None:
    """Draw the grid results of a benchmark document into ``file``; the suffix sets the format.

    Raises ValueError when the document holds no grid, ImportError without matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import TwoSlopeNorm

    parts = [
        (run, dtype, [row for row in run["grid"]["rows"] if row["dtype"] == dtype])
        for run in document["runs"]
        if "grid" in run
        for dtype in run["grid"]["summary"]
    ]
    if not parts:
        raise ValueError("nothing to plot: the document has no grid results (use --grid)")
    figure, axes = pyplot.subplots(
        len(parts), 2, figsize=(12, 4.2 * len(parts)), squeeze=False, layout="constrained"
    )
    for (run, dtype, rows), (left, right) in zip(parts, axes, strict=True):
        for name, (colour, marker) in _STYLE.items():
            points = [
                (2 * row["m"] * row["n"] * row["k"], row["best"][name])
                for row in rows
                if name in row["best"]
            ]
            if points:
                x, y = zip(*points, strict=True)
                left.scatter(x, y, s=12, c=colour, marker=marker, alpha=0.6, label=name)
        left.axhline(run["peak_gflops"][dtype], color="black", linewidth=0.8, label="FMA peak")
        left.set(xscale="log", xlabel="flops per call, 2mnk", ylabel="GFLOP/s, best")
        left.set_title(f"{run['isa']} {dtype}, one core, count 1")
        left.legend(fontsize=8)
        both = [row for row in rows if "jitgen" in row["best"] and "libxsmm" in row["best"]]
        ratios = [row["best"]["jitgen"] / row["best"]["libxsmm"] for row in both]
        right.set(xlabel="n", ylabel="m", title="jitgen / LIBXSMM (size of the dot: k)")
        if ratios:
            low, high = min(*ratios, 0.95), max(*ratios, 1.05)
            drawn = right.scatter(
                [row["n"] for row in both],
                [row["m"] for row in both],
                s=[10 + row["k"] / 2 for row in both],
                c=ratios,
                cmap="RdYlGn",
                norm=TwoSlopeNorm(1.0, low, high),
                edgecolors="gray",
                linewidths=0.3,
            )
            figure.colorbar(drawn, ax=right)
    machine = document["machine"]
    figure.suptitle(f"{machine['processor']}, {machine['date'][:10]}")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
