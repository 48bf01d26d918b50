r"""``python -m benchmark.tables``: writes the measured tables of the guides.

A table stands between ``<!-- table NAME -->`` and ``<!-- end of table -->``; what is
between them is made from ``benchmark/results/`` by the function of that name here.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import mean, median, pstdev

from benchmark import machine, report
from benchmark.report import Record
from benchmark.runner import ROOT

RESULTS = ROOT / "benchmark" / "results"
MACHINE = "amd-epyc-2-cores"  # whose results the guides show
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(\n<!-- end of table -->)", re.DOTALL)

TABLES: dict[str, Callable[[], str]] = {}


def written(text: str) -> str:
    r"""Returns a guide with new contents in all its tables.

    Args:
        text: The guide.

    Raises:
        KeyError: If there is no table of a name.
    """

    def made(name: str) -> str:
        try:
            return TABLES[name]()
        except FileNotFoundError as error:
            case = Path(error.filename).name.removesuffix(f"-{MACHINE}.json")
            return f"Not measured yet: `python -m benchmark {case}` measures it."

    return _BLOCK.sub(lambda m: f"{m[1]}{made(m[2])}{m[3]}", text)


@cache
def result(case: str) -> Record:
    r"""The results of a case.

    Args:
        case: Its name.
    """
    return json.loads((RESULTS / f"{case}-{MACHINE}.json").read_text())


def seconds(value: float) -> str:
    r"""A time.

    Args:
        value: Seconds.
    """
    if value >= 1:
        return f"{value:.2f} s"
    digits = 2 if value < 1e-3 else 1 if value < 0.1 else 0
    return f"{1e3 * value:.{digits}f} ms"


def gigabytes(value: float) -> str:
    r"""A size of memory.

    Args:
        value: Bytes.
    """
    return f"{value / 1e9:.2f} GB"


def megabytes(value: float) -> str:
    r"""A size of memory that is less than a few gigabytes.

    Args:
        value: Bytes.
    """
    return f"{value / 1e6:,.0f} MB"


def times(value: float) -> str:
    r"""A ratio.

    Args:
        value: How many times.
    """
    return f"{value:.2f}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], *cases: str) -> str:
    r"""A table in Markdown, followed by the commits that were measured.

    Args:
        head: The names of the columns.
        rows: The cells of every row.
        *cases: The cases whose numbers it shows.
    """
    table = [head, ["---"] * len(head), *rows]
    lines = [re.sub(" +", " ", f"| {' | '.join(row)} |") for row in table]
    commits = sorted({result(case)["machine"]["commit"] for case in cases})
    label = "commit" if len(commits) == 1 else "commits"
    return "\n".join([*lines, "", f"Measured at {label} {', '.join(commits)}."])


def records(case: str, **wanted: object) -> Iterator[Record]:
    r"""The records of a case, or some of them.

    Args:
        case: The case's name.
        **wanted: Values that a record must have, or its parameters.
    """
    for record in result(case)["records"]:
        own = {**record["params"], **record}
        if all(own[key] == value for key, value in wanted.items()):
            yield record


def record(case: str, **wanted: object) -> Record:
    r"""The only record of a case that has these values.

    Args:
        case: The case's name.
        **wanted: Values that it must have, or its parameters.
    """
    (found,) = records(case, **wanted)
    return found


def of(record: Record, name: str) -> float:
    r"""The median of an implementation.

    Args:
        record: A record.
        name: The implementation.
    """
    return record["implementations"][name]["median"]


def ratio(record: Record, ours: str, theirs: str = "") -> float:
    r"""By which factor ours is better, as the median over repeats.

    Args:
        record: A record.
        ours: The implementation.
        theirs: The other one. (default: the baseline)
    """
    both = record["implementations"]
    if not theirs:
        return both[ours]["ratio"]["median"]
    return median(a / b for a, b in zip(both[theirs]["values"], both[ours]["values"]))


def _table(function: Callable[[], str]) -> Callable[[], str]:
    TABLES[function.__name__] = function
    return function


def _clouds_and_pass(record: Record) -> list[str]:
    return record["workload"].split(", ")


@_table
def model() -> str:
    r"""Times of a model and of the original's formulation."""
    head = ["clouds", "pass", "allocator", "original", "ours", "ratio"]
    rows = (
        [
            *(*_clouds_and_pass(r), r["allocator"], seconds(of(r, "original"))),
            *(seconds(of(r, "ours")), times(ratio(r, "ours"))),
        ]
        for r in records("model")
    )
    return markdown(head, rows, "model")


@_table
def model_memory() -> str:
    r"""Memory that a call of a model takes."""
    rows = (
        [
            *(*_clouds_and_pass(r), gigabytes(of(r, "original"))),
            *(gigabytes(of(r, "ours")), times(ratio(r, "ours"))),
        ]
        for r in records("model_memory")
    )
    return markdown(
        ["clouds", "pass", "original", "ours", "ratio"], rows, "model_memory"
    )


@_table
def checkpoint() -> str:
    r"""Time and memory of training when levels are recomputed."""
    time = record("checkpoint", measure="time")
    memory = record("checkpoint", measure="memory")
    rows = (
        [
            name.removeprefix("ours, ") if name != "ours" else "nothing",
            *(seconds(of(time, name)), gigabytes(of(memory, name))),
        ]
        for name in time["implementations"]
    )
    return markdown(["recomputed", "time", "peak memory"], rows, "checkpoint")


@_table
def million() -> str:
    r"""A cloud of a million points."""
    rows = (
        [
            _clouds_and_pass(time)[-1],
            seconds(of(time, "ours")),
            gigabytes(
                of(record("million", measure="memory", train=train), "ours"),
            ),
        ]
        for train in (False, True)
        for time in records("million", measure="time", train=train)
    )
    return markdown(["pass", "time", "peak memory"], rows, "million")


@_table
def model_scaling() -> str:
    r"""How the time of a model grows."""
    return _exponents("model_scaling", ["original", "ours", "ours, one ball"])


@_table
def tree_scaling() -> str:
    r"""How the time of a tree grows."""
    return _exponents("tree_scaling", ["balltree-erwin", "ours", "ours, order only"])


def _exponents(case: str, names: list[str]) -> str:
    fitted = result(case)["exponents"]
    threads = sorted({r["threads"] for r in records(case)})
    labels = [f"{n} thread{'s' if n > 1 else ''}" for n in threads]
    rows = (
        [label, *(times(fitted[f"{name}, {label}"]) for name in names)]
        for label in labels
    )
    return markdown(["exponent", *names], rows, case)


@_table
def contention() -> str:
    r"""Training beside another process that trains."""
    settings = {"default": "model_contention"}
    settings["`GOMP_SPINCOUNT=1000`"] = "model_contention_asleep"
    return _beside(settings, {"ours": "ours", "original": "the original's formulation"})


@_table
def tree_contention() -> str:
    r"""Building a tree beside another process that does."""
    names = {"balltree-erwin": "balltree-erwin", "ours": "ours"}
    return _beside({"default": "tree_contention"}, names)


def _beside(settings: dict[str, str], names: dict[str, str]) -> str:
    head = ["threads that wait"]
    for label in names.values():
        head += [f"{label}, alone", "beside another"]
    rows = []
    for setting, case in settings.items():
        implementations = record(case)["implementations"]
        rows.append([setting])
        for name in names:
            own = implementations[name]
            alone = seconds(own["alone"]["median"])
            rows[-1] += [alone, f"{own['median']:.1f} times as long"]
    return markdown(head, rows, *settings.values())


@_table
def attention() -> str:
    r"""Ball attention on one thread."""
    peak = result("attention")["peak_flops"]["1"]
    about = result("attention")["machine"]["isa"]
    head = ["channels", "ball", "pass", "SDPA", "ours", "ratio", "of the peak"]
    rows = []
    for train in (False, True):
        for r in records("attention", threads=1, allocator="default", train=train):
            ours, params = of(r, "ours, native"), r["params"]
            rate = params["flops"] / ours / peak
            row = [str(params["channels"]), str(params["ball"])]
            row += ["forward + backward" if train else "forward"]
            row += [seconds(of(r, "SDPA, dense bias")), seconds(ours)]
            rows.append([*row, times(ratio(r, "ours, native")), f"{100 * rate:.0f} %"])
    rate = f"{peak / 1e9:.0f} GFLOP/s a core ({about})"
    return f"{markdown(head, rows, 'attention')} Peak of multiply-adds: {rate}."


@_table
def attention_memory() -> str:
    r"""The memory of ball attention."""
    rows = (
        [
            *(r["workload"], gigabytes(of(r, "SDPA, dense bias"))),
            *(gigabytes(of(r, "ours, native")), times(ratio(r, "ours, native"))),
        ]
        for r in records("attention_memory")
    )
    head = ["ball and pass", "SDPA", "ours", "ratio"]
    return markdown(head, rows, "attention_memory")


@_table
def tree() -> str:
    r"""Trees against those of ``balltree-erwin``."""
    head = ["clouds", "threads", "balltree-erwin", "order", "ratio", "`ball_tree`"]
    rows = (
        [
            *(r["workload"], str(r["threads"]), seconds(of(r, "balltree-erwin"))),
            *(seconds(of(r, "ours, order only")), times(ratio(r, "ours, order only"))),
            *(seconds(of(r, "ours")), times(ratio(r, "ours"))),
        ]
        for r in _by_threads("tree")
    )
    return markdown([*head, "ratio"], rows, "tree")


def _by_threads(case: str) -> list[Record]:
    # Sorts records so that the thread numbers of a workload are next to each other.
    order = [*dict.fromkeys(r["workload"] for r in records(case))]
    return sorted(records(case), key=lambda r: order.index(r["workload"]))


@_table
def tree_rotated() -> str:
    r"""Trees with their rotated ones."""
    rows = []
    for one in records("tree_rotated", threads=1):
        two = record("tree_rotated", threads=2, workload=one["workload"])
        row = [one["workload"], seconds(of(one, "balltree-erwin"))]
        for r in (one, two):
            row += [seconds(of(r, "ours")), times(ratio(r, "ours"))]
        rows.append(row)
    head = ["clouds", "balltree-erwin, 1 thread", "ours", "ratio", "2 threads", "ratio"]
    return markdown(head, rows, "tree_rotated")


@_table
def neighbors() -> str:
    r"""Neighbour searches."""
    scipy, cluster, knn = "scipy cKDTree", "torch-cluster", "ours, knn"
    head = ["clouds, search", "threads", "SciPy", "torch-cluster", "our knn", "ours"]
    head += ["tree given", "ratio to SciPy", "to torch-cluster", "to our knn"]
    rows = []
    for r in records("neighbors"):
        row = [r["workload"], str(r["threads"])]
        for name in (scipy, cluster, knn, "ours", "ours, tree given"):
            row.append(seconds(of(r, name)) if _ran(r, name) else "–")
        for name in (scipy, cluster, knn):
            row.append(times(ratio(r, "ours", name)) if _ran(r, name) else "–")
        rows.append(row)
    return markdown(head, rows, "neighbors")


@_table
def cross_neighbors() -> str:
    r"""Searches in another set of points."""
    peers = {
        "scipy cKDTree": "SciPy",
        "torch-cluster": "torch-cluster",
        "PyG": "PyG",
        "torch.cdist": "`cdist`",
    }
    case = "cross_neighbors"
    names = [n for n in peers if any(_ran(r, n) for r in records(case))]
    rows = []
    for r in records(case):
        row = [r["workload"], str(r["threads"])]
        for name in (*names, "ours", "ours, tree given"):
            row.append(seconds(of(r, name)) if _ran(r, name) else "–")
        for name in names:
            row.append(times(ratio(r, "ours", name)) if _ran(r, name) else "–")
        rows.append(row)
    labels = [peers[name] for name in names]
    head = ["clouds, search", "threads", *labels, "ours", "tree given"]
    head += [f"to {label}" for label in labels]
    head[-len(labels)] = f"ratio {head[-len(labels)]}"
    return markdown(head, rows, case)


def _ran(record: Record, name: str) -> bool:
    own = record["implementations"].get(name)
    return own is not None and own["status"] == "ok"


@_table
def norms() -> str:
    r"""Errors on unseen clouds with every norm."""
    cases = {name: f"norms_{name}" for name in ("cosmology", "forces", "mesh")}
    own = "batch, a test cloud's own statistics"
    names = {
        "layer": "layer",
        "rms": "rms",
        "graph": "graph",
        "graph, blocks too": "graph, in the blocks too",
        "batch": "batch",
        own: "batch, but tested with the statistics of each cloud",
        "layer, relative distances": "layer, relative distances",
        "batch, relative distances": "batch, relative distances",
    }
    rows = []
    for name, label in names.items():
        row = [label]
        for case in cases.values():
            errors = result(case)["errors"].get(name)
            text = "–"
            if errors:
                text = f"{mean(errors):.3f} ± {pstdev(errors):.3f}"
            row.append(text)
        rows.append(row)
    return markdown(["norm", *cases], rows, *cases.values())


@_table
def hybrids() -> str:
    r"""A GPS layer with balls, and with all pairs."""
    names = [
        *("GPSConv, multihead", "GPSConv, performer"),
        *("ours, tree given", "ours, tree built"),
    ]
    rows = []
    for time in records("hybrids", measure="time"):
        memory = record("hybrids", measure="memory", workload=time["workload"])
        row = [time["workload"].removesuffix(" nodes")]
        for name in names:
            cell = "–"
            if _ran(time, name) and _ran(memory, name):
                cell = f"{seconds(of(time, name))}, {megabytes(of(memory, name))}"
            row.append(cell)
        rows.append(row)
    labels = [*names[:2], "`HybridConv`, tree given", "tree built"]
    return markdown(["nodes", *labels], rows, "hybrids")


@_table
def positions() -> str:
    r"""Errors with every encoding of absolute positions."""
    rows = (
        [name, f"{mean(errors):.3f} ± {pstdev(errors):.3f}"]
        for name, errors in result("positions")["errors"].items()
    )
    return markdown(["positions", "error over variance"], rows, "positions")


@_table
def locality() -> str:
    r"""Message passing on nodes in random order and in the order of a tree."""
    sorts = ("ours, nodes sorted", "ours, edges sorted too")
    rows = []
    for r in records("locality"):
        row = [*r["workload"].split(", "), seconds(of(r, "random order"))]
        for name in sorts:
            row += [seconds(of(r, name)), times(ratio(r, name))]
        rows.append(row)
    head = ["layer", "nodes", "random order", "nodes sorted", "ratio"]
    return markdown([*head, "edges sorted too", "ratio"], rows, "locality")


@_table
def demo() -> str:
    r"""The results that ``make demo`` prints at its end."""
    names = {"model": "model", "parameters": "parameters", "s/step": "seconds per step"}
    names |= {"R2": "R²", "MSE": "MSE"}
    rows = (
        [row[name].replace("-", "–") for name in names]
        for row in result("demo")["rows"]
    )
    return markdown([*names.values()], rows, "demo")


@_table
def summary() -> str:
    r"""The README's table: what is faster, and by which factor."""

    def both(*values: float) -> str:
        return "; ".join(f"{v:.{1 if v < 10 else 0}f}" for v in values)

    cases = ("model", "model_memory", "tree", "neighbors", "attention")
    default = {"threads": 2, "allocator": "default"}
    model = [
        record("model", workload=f"{clouds}, {kind}", **default)
        for clouds, kind in (
            *(("16 x 2,048", "forward"), ("16 x 2,048", "forward + backward")),
            ("1 x 65,536", "forward + backward"),
        )
    ]
    memory = [
        record("model_memory", workload=f"{clouds}, forward + backward")
        for clouds in ("16 x 2,048", "1 x 65,536")
    ]
    trees = [
        record("tree", workload=f"{clouds} uniform 3-D", threads=2)
        for clouds in ("16 x 4,096", "1 x 1,000,000")
    ]
    near = record("neighbors", workload="1 x 100,000, knn", threads=2)
    attention = [
        record(
            "attention",
            channels=16,
            ball=128,
            train=train,
            threads=1,
            allocator="default",
        )
        for train in (False, True)
    ]
    first, *steps = model
    rows = [
        [
            "model of 19 million weights, forward, 16 × 2048 points",
            f"the original's formulation, {seconds(of(first, 'original'))}",
            both(ratio(first, "ours")),
        ],
        [
            "training step, 16 × 2048 points; 1 × 65,536",
            "; ".join(seconds(of(r, "original")) for r in steps),
            both(*(ratio(r, "ours") for r in steps)),
        ],
        [
            "memory of that step",
            "; ".join(gigabytes(of(r, "original")) for r in memory),
            both(*(ratio(r, "ours") for r in memory)),
        ],
        [
            "tree, 16 × 4096 points; 1 × 1,000,000",
            "`balltree-erwin`",
            both(*(ratio(r, "ours, order only") for r in trees)),
        ],
        [
            "16 nearest neighbours, 1 × 100,000 points",
            "SciPy's cKDTree",
            both(ratio(near, "ours")),
        ],
        [
            "ball attention, 16 channels a head, balls of 128, one thread, forward; "
            "+ backward",
            "SDPA with a dense bias",
            both(*(ratio(r, "ours, native") for r in attention)),
        ],
    ]
    return markdown(["", "against", "ratio"], rows, *cases)


def main() -> None:
    r"""Writes the tables into the guides, or reports which are out of date."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.tables")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--demo", type=Path, help="'table.json' that the demo wrote")
    args = parser.parse_args()
    if args.demo:
        about = {"case": "demo", "title": "What `make demo` ends with"}
        rows = json.loads(args.demo.read_text())
        report.write(
            {**about, "machine": machine.describe(), "rows": rows}, RESULTS, MACHINE
        )
    stale = [path for path in GUIDES if written(path.read_text()) != path.read_text()]
    for path in stale:
        if not args.check:
            path.write_text(written(path.read_text()))
        print(f"{'out of date' if args.check else 'written'}: {path.relative_to(ROOT)}")
    if args.check and stale:
        sys.exit(1)


if __name__ == "__main__":
    main()
