"""Runs `interpreted*.py` in a new process: Triton reads the setting at its import."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest


def release(package):
    return tuple(int(n) for n in version(package).split(".")[:2])


def run(tests, kind):
    pytest.importorskip("triton", reason="Triton is not installed")
    if release("triton") < (3, 7) and release("numpy") >= (2, 4):
        pytest.skip("Triton before 3.7 interprets no loop beside NumPy 2.4")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-m", kind, *tests]
    # A warning of Triton before 3.7 with an older NumPy.
    command += ["-W", "ignore:Conversion of an array:DeprecationWarning"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-10_000:] + run.stderr[-1_000:]
    assert re.search(r"^\d{2,} passed", run.stdout, re.MULTILINE), run.stdout


FILES = sorted(Path(__file__).parent.glob("interpreted*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kernels_in_the_interpreter(path):
    run([path], "not slow")


@pytest.mark.slow
def test_slow_kernels_in_the_interpreter():
    run(FILES, "slow")
