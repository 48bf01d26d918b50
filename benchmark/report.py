r"""Writes results as JSON, as a table and as a picture."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np

from torch_geometric_erwin.utils.files import written_whole

Record = dict[str, Any]

_UNITS = {"time": "time", "memory": "memory", "contention": "slowdown"}


def write(result: Record, folder: Path, machine: str) -> Path:
    r"""Writes the results of a case on a machine.

    Args:
        result: The case's result.
        folder: The folder of the file.
        machine: The name of the machine, for the name of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['case']}-{machine}.json"
    with written_whole(path) as file:
        file.write((json.dumps(result, indent=1) + "\n").encode())
    return path


def format_value(value: float, measure: str) -> str:
    r"""A value with its unit.

    Args:
        value: Seconds, bytes or a factor.
        measure: What it measures.
    """
    if measure == "memory":
        return f"{value / 2**20:.1f} MiB"
    if measure == "contention":
        return f"{value:.2f} x"
    if value < 1e-3:
        return f"{1e6 * value:.4g} µs"
    return f"{value:.3g} s" if value >= 10 else f"{1e3 * value:.4g} ms"


def lines(result: Record) -> Iterator[str]:
    r"""The lines of the table, one per implementation.

    A ratio is the baseline's value divided by the implementation's: above one, the
    implementation is better.

    Args:
        result: A case's result.
    """
    yield f"{result['title']} ({result['case']})"
    peaks = result.get("peak_flops", {})
    for threads, peak in peaks.items():
        isa = result["machine"]["isa"]
        rate = f"{peak / 1e9:.0f} GFLOP/s" if peak else "unknown without a C compiler"
        yield f"  peak of float32 multiply-adds, {_threads(threads)}, {isa}: {rate}"
    for record in result["records"]:
        peak = peaks.get(record["threads"])
        setting = _threads(record["threads"])
        if record["allocator"] != "default":
            setting += f", {record['allocator']} allocator"
        measure = record["measure"]
        yield f"  {record['workload']}: {_UNITS[measure]}, {setting}"
        for name, own in record["implementations"].items():
            yield f"    {name:<26} {_cells(record, name, own, peak)}"


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def _cells(record: Record, name: str, own: Record, peak: Optional[float]) -> str:
    if own["status"] != "ok":
        return f"{own['status']}: {own['reason']}"
    measure = record["measure"]
    low, high = (format_value(v, measure) for v in own["quartiles"])
    text = f"{format_value(own['median'], measure):>11}  ({low} to {high})"
    if "alone" in own:
        text += f"  alone {format_value(own['alone']['median'], 'time')}"
    if name == record["baseline"]:
        text += "  baseline"
    elif "ratio" in own:
        low, high = own["ratio"]["quartiles"]
        text += f"  ratio {own['ratio']['median']:.2f} ({low:.2f} to {high:.2f})"
    flops = record["params"].get("flops")
    if flops and measure == "time" and name not in record["apart"]:
        rate = flops / own["median"]
        text += f"  {rate / 1e9:.0f} GFLOP/s"
        if peak:
            text += f", {100 * rate / peak:.0f} % of the peak"
    moved = record["params"].get("bytes")
    if moved and measure == "time":
        text += f"  {moved / own['median'] / 1e9:.0f} GB/s"
    return text


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    r"""The exponent of a power law, fitted to the logarithms.

    Only sizes within a factor of 100 of the largest one count: for smaller sizes the
    constant cost of a call hides how the cost grows.

    Args:
        sizes: At least two different sizes.
        values: A positive value for each.
    """
    kept = [(n, v) for n, v in zip(sizes, values) if 100 * n >= max(sizes)]
    n, v = zip(*kept)
    return float(np.polyfit(np.log(n), np.log(v), 1)[0])


def curves(result: Record) -> dict[tuple[str, int], list[tuple[int, float]]]:
    r"""The median times by size, for every implementation and number of threads.

    Args:
        result: A case's result.
    """
    points: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for record in result["records"]:
        for name, own in record["implementations"].items():
            if own["status"] == "ok":
                point = record["params"]["points"], own["median"]
                points.setdefault((name, record["threads"]), []).append(point)
    return points


def exponents(result: Record) -> dict[str, float]:
    r"""The fitted exponents of a scaling case, by implementation and threads.

    Args:
        result: A case's result.
    """
    return {
        f"{name}, {_threads(threads)}": fit_exponent(*zip(*points))
        for (name, threads), points in curves(result).items()
        if len(points) > 1
    }


def draw(result: Record, plot: str, folder: Path) -> Optional[Path]:
    r"""Draws a case, if matplotlib is installed.

    Args:
        result: A case's result.
        plot: ``ratios`` or ``scaling``.
        folder: The folder of the picture.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(layout="constrained")
    drawn = _scaling(figure, result) if plot == "scaling" else _ratios(figure, result)
    if not drawn:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['case']}.svg"
    figure.savefig(path, metadata={"Date": None})
    return path


def _scaling(figure: Any, result: Record) -> bool:
    figure.set_size_inches(6.5, 4.5)
    axes = figure.subplots()
    for (name, threads), points in sorted(curves(result).items()):
        sizes, seconds = zip(*points)
        label = f"{name}, {_threads(threads)}"
        if len(points) > 1:
            label += f": $n^{{{fit_exponent(sizes, seconds):.2f}}}$"
        axes.loglog(sizes, seconds, marker="o", label=label)
    axes.set(xlabel="points", ylabel="seconds", title=result["title"])
    axes.grid(which="major", alpha=0.3)
    axes.legend(fontsize=8)
    return bool(axes.lines)


def _ratios(figure: Any, result: Record) -> bool:
    from matplotlib.ticker import LogLocator

    rows = [
        (f"{record['workload']}{_setting(record, result)}", name, own["ratio"])
        for record in result["records"]
        for name, own in record["implementations"].items()
        if "ratio" in own and name != record["baseline"]
    ]
    if not rows:
        return False
    labels = [*dict.fromkeys(label for label, _, _ in rows)]
    names = [*dict.fromkeys(name for _, name, _ in rows)]
    figure.set_size_inches(7.5, 1.3 + 0.26 * len(labels))
    axes = figure.subplots()
    for name in names:
        own = [(labels.index(l), ratio) for l, n, ratio in rows if n == name]
        middle = [ratio["median"] for _, ratio in own]
        low = [ratio["median"] - ratio["quartiles"][0] for _, ratio in own]
        high = [ratio["quartiles"][1] - ratio["median"] for _, ratio in own]
        axes.errorbar(
            middle, [y for y, _ in own], xerr=[low, high], fmt="o", ms=5, label=name
        )
    baseline = result["records"][0]["baseline"]
    axes.axvline(1.0, color="black", lw=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 5, 7)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(which="minor", labelsize=7)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set(title=result["title"], xlabel=f"times better than {baseline} (median)")
    axes.legend(fontsize=8)
    return True


def _setting(record: Record, result: Record) -> str:
    text = ""
    for key, form in (("measure", "{}"), ("threads", "{} thr."), ("allocator", "{}")):
        if len({r[key] for r in result["records"]}) > 1:
            text += f", {form.format(record[key])}"
    return text
