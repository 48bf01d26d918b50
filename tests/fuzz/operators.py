"""A fuzzer of the registered operators and of the public functions.

`python tests/fuzz/operators.py --seed S --cases N` runs the cases of the seeds S,
S + 1, ... in a child process. If the child crashes, the case is reported as a finding,
and a new child continues with the next seed.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 120  # time limit of a case


@dataclass
class Outcome:
    """The results of a run: the number of cases of every kind, and for each finding
    the first seed and the message."""

    kinds: Counter = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)
    failed: int = 0

    def add(self, finding: str, seed: int, text: str) -> None:
        self.failed += 1
        self.findings.setdefault(finding, f"--seed {seed}: {text}")


def run_cases(seed: int, cases: int) -> None:
    """Runs in the child: prints every case, what it calls and how it fails."""
    from bad_calls import bad_operators, bad_public
    from numpy.random import default_rng
    from valid_calls import attention, forces, message, neighbors, trees

    kinds = [trees, neighbors, attention, message, forces]
    kinds += [bad_public, bad_operators] * 3
    for case in range(seed, seed + cases):
        rng = default_rng(case)
        kind = kinds[rng.integers(len(kinds))]
        print(f"case {case} {kind.__name__}", flush=True)
        if hasattr(signal, "alarm"):
            signal.alarm(SECONDS)
        try:
            kind(rng)
        except Exception as error:  # every exception is a finding
            text = " ".join(str(error).split())[:200]
            print(f"failed {type(error).__name__} {text}", flush=True)


def drive(seed: int, cases: int) -> Outcome:
    """Runs cases in child processes."""
    outcome, end = Outcome(), seed + cases
    root = Path(__file__).resolve().parents[2]
    paths = [str(root / "tests"), str(root), *filter(None, [os.getenv("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    while seed < end:
        command = [sys.executable, __file__, "--child"]
        command += ["--seed", str(seed), "--cases", str(end - seed)]
        case, kind, call = None, "", ""
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        ) as child:
            for line in child.stdout:
                word, _, rest = line.rstrip("\n").partition(" ")
                if word == "case":
                    number, kind = rest.split(" ")
                    case, call = int(number), ""
                    outcome.kinds[kind] += 1
                elif word == "failed":
                    error, _, text = rest.partition(" ")
                    outcome.add(f"{kind}: {call}{error}", case, text)
                elif word == "":
                    call = f"{rest.strip()}: "
        if child.returncode == 0:
            break
        if case is None:
            raise RuntimeError(f"the child ended with {child.returncode} at once")
        outcome.add(f"{kind}: {call}the process ended", case, str(child.returncode))
        seed = case + 1
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run_cases(args.seed, args.cases)
        return 0
    outcome = drive(args.seed, args.cases)
    for kind, count in outcome.kinds.most_common():
        print(f"{count:9} {kind}")
    for finding, first in sorted(outcome.findings.items()):
        print(f"finding: {finding} ({first})")
    print(
        f"{args.cases} cases from seed {args.seed}, {outcome.failed} failed, "
        f"{len(outcome.findings)} findings"
    )
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())
