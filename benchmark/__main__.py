r"""``python -m benchmark NAME...``, from the checkout."""

import argparse
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from benchmark import machine, report
from benchmark.cases import all_cases
from benchmark.runner import ALLOCATORS, ROOT, run_case, work

RESULTS, IMAGES = ROOT / "benchmark" / "results", ROOT / "docs" / "images" / "benchmark"
QUICK = ROOT / "build" / "benchmark"


def main() -> None:
    r"""Reads the command line and runs the cases."""
    cases = all_cases()
    parser = argparse.ArgumentParser(prog="python -m benchmark", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a case, or 'all'")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads")
    parser.add_argument("--repeats", type=int, help="repeats of every workload")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller sizes")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of a call")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--out", type=Path, help=f"folder (default: {RESULTS})")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(cases, args.worker)
        return
    if args.list or not args.names:
        for case in cases.values():
            print(f"{case.name:<18} {case.title}")
        return
    names = [*cases] if args.names == ["all"] else args.names
    for name in names:
        if name not in cases:
            parser.error(f"there is no case {name!r}; choose from {', '.join(cases)}")
    size, default = ("quick", QUICK) if args.quick else ("full", RESULTS)
    folder = args.out or default
    images = IMAGES if folder == RESULTS else folder
    repeats = args.repeats or (3 if args.quick else None)
    cores = os.cpu_count() or 1
    broken: list[str] = []
    for name in names:
        case = cases[name]
        threads = args.threads or sorted({1, cores} if case.serial else {cores})
        about = machine.describe()
        start = time.monotonic()
        records = run_case(case, size, threads, repeats, args.limit, args.only)
        if not records:
            tqdm.write(f"{case.title} ({name}): nothing to measure here\n")
            continue
        allocators = {n: ALLOCATORS[n] for n in case.allocators}
        result: report.Record = {
            "case": name,
            "title": case.title,
            "size": size,
            "machine": about,
            "allocators": allocators,
            "seconds": round(time.monotonic() - start, 1),
            "records": records,
        }
        if any(r["measure"] == "time" and "flops" in r["params"] for r in records):
            result["peak_flops"] = {n: machine.fma_peak(n) for n in threads}
        if case.plot == "scaling":
            result["exponents"] = report.exponents(result)
        for line in report.lines(result):
            tqdm.write(line)
        for label, value in result.get("exponents", {}).items():
            tqdm.write(f"  time grows as n^{value:.2f}: {label}")
        paths = [report.write(result, folder, machine.slug(gpu=name.endswith("_cuda")))]
        paths += [p] if (p := report.draw(result, case.plot, images)) else []
        places = " and ".join(str(path) for path in paths)
        tqdm.write(f"  {result['seconds']:.0f} s; written to {places}\n")
        broken += [
            f"{name}, {record['workload']}: {label}"
            for record in records
            for label, o in record["implementations"].items()
            if label.startswith("ours") and o["status"] == "failed"
        ]
    if broken:
        sys.exit("failed: " + "; ".join(broken))


if __name__ == "__main__":
    main()
