r"""Times public calls of the checkout against those of an earlier commit.

``python -m tools.compare_versions 309911a`` builds the library of that commit for the
CPU in a separate folder and starts one process for each version. For every case and
every repeat, both run one after the other on the same inputs. It prints the time of the
earlier version divided by ours (above one, ours is faster) and writes the results to
``benchmark/results/versions-<machine>.json``.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
Call = Callable[[], object]

_WIDTHS: dict[str, Any] = {
    "hidden_channels": [32, 64, 128],
    "ball_sizes": [128, 128, 128],
    "enc_depths": [2, 2, 2],
    "dec_depths": [2, 2],
}


def _cloud(clouds: int, points: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(clouds * points)
    pos = torch.rand(clouds * points, 3, generator=generator)
    return pos, torch.arange(clouds + 1) * points


def _tree(clouds: int, points: int, rotate: float) -> Call:
    from torch_geometric_erwin import ball_tree

    pos, ptr = _cloud(clouds, points)
    strides = [2, 2, 2, 2]
    return lambda: ball_tree(
        pos, ptr=ptr, ball_sizes=128, strides=strides, rotate=rotate
    )


def _neighbors(clouds: int, points: int, name: str) -> Call:
    import torch_geometric_erwin as package

    pos, ptr = _cloud(clouds, points)
    if name == "knn":
        return lambda: package.knn_graph(pos, 16, ptr=ptr)
    radius = (16 / points / 4.19) ** (1 / 3)  # for 16 points in the sphere
    return lambda: package.radius_graph(pos, radius, ptr=ptr)


def _attention(clouds: int, points: int, backward: bool) -> Call:
    from torch_geometric_erwin import ball_tree
    from torch_geometric_erwin.nn import ball_attention

    pos, ptr = _cloud(clouds, points)
    tree = ball_tree(pos, ptr=ptr, ball_sizes=[256], rotate=0.0)
    generator = torch.Generator().manual_seed(0)
    shape = (3, pos.size(0), 8, 32)
    q, k, v = torch.randn(shape, generator=generator).requires_grad_(backward).unbind()
    sigma = torch.full((8,), -1.0, requires_grad=backward)
    args = (q, k, v, pos, tree.ball_len[0], sigma)

    def run() -> None:
        out = ball_attention(*args, ball_size=256)
        if backward:
            out.sum().backward(retain_graph=True)

    return run


def _model(clouds: int, points: int, backward: bool) -> Call:
    from torch_geometric_erwin import knn_graph
    from torch_geometric_erwin.nn import Erwin

    pos, ptr = _cloud(clouds, points)
    edge_index = knn_graph(pos, 8, ptr=ptr)
    torch.manual_seed(0)
    # In old versions "batch" was the only norm; now it is not the default.
    has_norm = "norm" in signature(Erwin).parameters
    norm: dict[str, Any] = {"norm": "batch"} if has_norm else {}
    model = Erwin(3, out_channels=3, **_WIDTHS, **norm).train(backward)

    def run() -> None:
        with torch.set_grad_enabled(backward):
            out = model(pos, pos, edge_index, ptr=ptr)
        if backward:
            out.square().mean().backward()

    return run


#: Functions that make the timed call, by the name of the case.
CASES: dict[str, Callable[[], Call]] = {}
_KINDS: tuple[tuple[str, Callable[..., Call], dict[str, Any]], ...] = (
    ("tree", _tree, {"plain": 0.0, "rotated": 45.0}),
    ("neighbors", _neighbors, {"knn": "knn", "radius": "radius"}),
    ("attention", _attention, {"forward": False, "training": True}),
    ("model", _model, {"forward": False, "training": True}),
)
for _name, _make, _options in _KINDS:
    for _sizes in ((16, 1024), (16, 4096), (1, 65_536)):
        for _label, _option in _options.items():
            _case = f"{_name} {_label}, {_sizes[0]} x {_sizes[1]:,}"
            CASES[_case] = partial(_make, *_sizes, _option)


def serve(path: str) -> None:
    r"""Times the cases named on standard input, with the package at a path."""
    sys.meta_path[:] = [f for f in sys.meta_path if "Redirect" not in type(f).__name__]
    sys.path.insert(0, path)
    import torch_geometric_erwin

    assert Path(torch_geometric_erwin.__file__).is_relative_to(path)
    run: Call = lambda: None  # noqa: E731
    for line in sys.stdin:
        word, _, argument = line.strip().partition(" ")
        if word == "threads":
            torch.set_num_threads(int(argument))
        elif word == "case":
            run = CASES[argument]()
            run()
        start = time.perf_counter()
        if word == "time":
            for _ in range(int(argument)):
                run()
        print(time.perf_counter() - start, flush=True)


class _Version:
    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-m", "tools.compare_versions", "--serve", str(path)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True
        )

    def ask(self, question: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(question, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def checkout(commit: str, folder: Path) -> Path:
    r"""Writes the files of a commit to a folder and builds its library for the CPU.

    Args:
        commit: The commit.
        folder: The folder in which a folder for the commit is made.
    """
    path = folder / commit
    path.mkdir()
    archive = ["git", "-C", str(ROOT), "archive", commit]
    source = subprocess.run(archive, check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "x", "-C", str(path)], input=source, check=True)
    folder = path / "build" / "versions"
    configure = ["cmake", "-S", str(path), "-B", str(folder)]
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CUDA_COMPILER=NOTFOUND"]
    subprocess.run([*configure, *options], check=True, stdout=subprocess.DEVNULL)
    jobs = str(os.cpu_count())
    command = ["cmake", "--build", str(folder), "-j", jobs]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    library = next(folder.rglob("_kernels.so"))
    (path / "torch_geometric_erwin" / library.name).write_bytes(library.read_bytes())
    return path


def compare(ours: Path, theirs: Path, threads: int, repeats: int) -> dict[str, dict]:
    r"""Median milliseconds of every case in both versions.

    Args:
        ours: A checkout with its library.
        theirs: Another one.
        threads: The number of threads.
        repeats: How often each case is timed in each version.
    """
    versions = [_Version(ours), _Version(theirs)]
    results = {}
    for version in versions:
        version.ask(f"threads {threads}")
    for name in CASES:
        for version in versions:
            version.ask(f"case {name}")
        once = min(version.ask("time 1") for version in versions)
        count = max(1, round(0.05 / once))  # several short calls are timed together
        times: list[list[float]] = [[], []]
        for i in range(repeats):
            for j in (0, 1) if i % 2 == 0 else (1, 0):
                times[j].append(versions[j].ask(f"time {count}") / count)
        own, other = (1e3 * statistics.median(values) for values in times)
        results[name] = {"ours_ms": own, "theirs_ms": other, "ratio": other / own}
        print(f"{name:40} {own:10.3f} {other:10.3f} {other / own:7.2f}", flush=True)
    return results


def main() -> None:
    r"""Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", nargs="?", help="the earlier commit")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return
    from benchmark import machine

    with TemporaryDirectory() as folder:
        ours, theirs = (checkout(c, Path(folder)) for c in ("HEAD", args.commit))
        results = compare(ours, theirs, args.threads, args.repeats)
    ratios = [result["ratio"] for result in results.values()]
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    print(f"geometric mean {mean:.2f}, least {min(ratios):.2f}")
    record = {
        "machine": machine.describe(),
        "against": args.commit,
        "threads": args.threads,
        "repeats": args.repeats,
        "geometric_mean": mean,
        "least": min(ratios),
        "cases": results,
    }
    target = ROOT / "benchmark" / "results" / f"versions-{machine.slug()}.json"
    target.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
