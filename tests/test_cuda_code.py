"""The code that nvcc generates for the kernels; needs nvcc but no GPU."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CUDA = Path(__file__).parents[1] / "csrc" / "cuda"

pytestmark = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="needs the CUDA compiler"
)


@pytest.fixture(scope="module", params=["tree.cu", "neighbors.cu"])
def ptx(request, tmp_path_factory):
    output = tmp_path_factory.mktemp("ptx") / "code.ptx"
    command = ["nvcc", "-std=c++17", "-O3", "--fmad=false", "-arch=sm_90", "-ptx"]
    subprocess.run([*command, CUDA / request.param, "-o", output], check=True)
    return output.read_text()


def test_every_access_names_its_memory(ptx):
    # Generic loads mean that the compiler does not know which pointers point to shared
    # memory; they are slower.
    accesses = re.findall(r"^\s*(?:@\S+ )?((?:ld|st|atom|red)\.\S+)", ptx, re.MULTILINE)
    generic = [a for a in accesses if not re.search(r"\.(global|shared|param)\b", a)]
    assert accesses
    assert not generic


def test_nothing_is_read_as_constant(ptx):
    # Not allowed, because kernels read memory that the same launch may write.
    assert "ld.global.nc" not in ptx


def test_arguments_fit(ptx):
    # All drivers and GPUs support 4096 bytes of arguments.
    entries = re.findall(r"\.entry [^(]+\(([^)]*)\)", ptx)
    sizes = [
        sum(
            int(n or 1) * {"8": 1, "16": 2, "32": 4, "64": 8}[bits]
            for bits, n in re.findall(r"\.[bufs](\d+) \w+(?:\[(\d+)\])?", entry)
        )
        for entry in entries
    ]
    assert len(sizes) >= 10
    assert max(sizes) <= 4096
    assert max(sizes) > 500
