"""The script that checks the CUDA code, as far as it can run without a GPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools import sanitize_cuda
from torch_geometric_erwin.ops import triton

SCRIPT = Path(__file__).parents[2] / "benchmark" / "gpu_check.sh"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would pass")
def test_a_group_that_fails_is_told(tmp_path):
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    result = subprocess.run(
        ["bash", SCRIPT, "memcheck"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert re.search(r"^  memcheck +fail  \d+ s$", result.stdout, re.MULTILINE)
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert record["device"] == "no GPU"
    assert record["memcheck"]["verdict"] == "fail"
    assert (tmp_path / "memcheck.log").exists()


def test_what_the_sanitizer_runs_is_right(monkeypatch):
    # Runs on the host; a GPU would get the same calls.
    monkeypatch.setattr(sanitize_cuda, "DEVICE", "cpu")
    sanitize_cuda.trees()
    sanitize_cuda.neighbors()
    sanitize_cuda.attention()
    sanitize_cuda.blocks()
    sanitize_cuda.model()


@pytest.mark.parametrize(
    ("kernel", "verdict"), [("at::native::fill", "pass"), ("erwin::cuda::load", "fail")]
)
def test_only_our_kernels_count(kernel, verdict, tmp_path):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"""#!/usr/bin/env bash
[ "$1" = --help ] && echo "  --kernel-name arg" && exit
echo "$@"
[ "$2" = initcheck ] || exit 0
echo "=========     at void {kernel}<float>(float *)+0x10"
exit 86
""")
    tool.chmod(0o755)
    environment = {
        **os.environ,
        "OUT": str(tmp_path),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
    }
    subprocess.run(
        ["bash", SCRIPT, "racecheck", "initcheck"],
        env=environment,
        capture_output=True,
        check=False,
    )
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert record["racecheck"]["verdict"] == "pass"
    assert record["initcheck"]["verdict"] == verdict
    filtered = (tmp_path / "racecheck.log").read_text()
    folder = Path(triton.__file__).parent
    code = "".join(path.read_text() for path in folder.glob("*.py"))
    kernels = {n for n in re.findall(r"\ndef (\w+)\(", code) if n.endswith("_kernel")}
    assert len(kernels) > 5
    for name in ("erwin", *kernels):
        assert f"--kernel-name kns={name} " in filtered
    # initcheck must also see what PyTorch's kernels write.
    assert "kns=" not in (tmp_path / "initcheck.log").read_text()
