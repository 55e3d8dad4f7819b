"""The table of scripts/bench, and a plot of it."""


def human(ns):
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns:.0f} ns"


def cell(ratio):
    if ratio is None:
        return ""
    low, median, high = ratio
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def header():
    return f"{'operation':40} {'plain':>9} {'commitfs':>9} {'commitfs/plain':>18} {'bindfs/plain':>18} {'requests':>8} {'calls':>6} {'woken':>6}"


def line(result):
    """A row of the table: medians, and ratios with their quartiles. Of speeds (`speed`) the ratio is that of the speeds."""
    ns, ratio, counted = result["ns"], result["ratio"], result.get("counted") or {}
    mark = " (speed)" if result["amount"] else ""
    counts = [f"{counted[name]:.1f}" if name in counted else "" for name in ("requests", "system calls", "threads woken")]
    return (
        f"{result['row'] + mark:40} {human(ns['plain']):>9} {human(ns['commitfs']):>9} {cell(ratio.get('commitfs')):>18}"
        f" {cell(ratio.get('bindfs')):>18} {counts[0]:>8} {counts[1]:>6} {counts[2]:>6}"
    )


def plot(results, title, path):
    """Bars of the ratios, on a scale of doublings, with 1 (the plain directory) as a line."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    rows = [r for r in results if r["ratio"]]
    names = [r["row"] + (" (speed)" if r["amount"] else "") for r in rows]
    figure, axes = pyplot.subplots(figsize=(9, 0.36 * len(rows) + 1.6))
    for offset, side, colour in ((0.2, "bindfs", "0.7"), (-0.2, "commitfs", "tab:blue")):
        medians = [r["ratio"].get(side, (0, 0, 0))[1] for r in rows]
        axes.barh([n + offset for n in range(len(rows))], medians, 0.38, label=side, color=colour)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times the plain directory's time (speed: its speed), median of the rounds")
    axes.set_title(title)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
