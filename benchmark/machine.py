r"""The machine, date and versions with which a benchmark ran."""

import ctypes
import os
import platform
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Optional

import torch

from torch_geometric_erwin import _native

_PACKAGES = [
    "torch-geometric-erwin",
    "triton",
    "torch-geometric",
    "numpy",
    "scipy",
    "scikit-learn",
    "balltree-erwin",
    "torch-cluster",
    "pyg-lib",
]


def describe() -> dict[str, Any]:
    r"""The machine, the versions of all packages, the commit and the date."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "isa": _native.cpu_isa(),  # instruction set of the native kernels
        "memory": _memory(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "packages": {
            "torch": torch.__version__,  # with its build, as in 2.11.0+cu130
            **{name: v for name in _PACKAGES if (v := _version(name))},
        },
        "openmp": bool(_native.library().erwin_has_openmp()),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def slug(gpu: bool = False) -> str:
    r"""A name of the machine for files, such as ``amd-epyc-2-cores``.

    Args:
        gpu: Whether the name is that of the GPU.
    """
    text = f"{cpu_model()} {os.cpu_count()} cores".lower()
    if gpu and torch.cuda.is_available():
        text = torch.cuda.get_device_name().lower()
    for words in (r"\(r\)|\(tm\)", r"\bcpu\b", r"@.*?ghz", r"\d+-core processor"):
        text = re.sub(words, " ", text)
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def cpu_model() -> str:
    r"""The name that the processor reports."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [l.partition(":")[2].strip() for l in lines if l.startswith("model name")]
    return names[0] if names else platform.machine()


def fma_peak(threads: int, rounds: int = 10_000_000) -> Optional[float]:
    r"""Measures float32 operations per second with multiply-adds in registers.

    Args:
        threads: The number of threads.
        rounds: The length of the loop; the best of three runs counts.

    Returns:
        The number, or :obj:`None` without a C compiler.
    """
    source = Path(__file__).parent / "peak.c"
    flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
    with TemporaryDirectory() as folder:
        library = Path(folder) / "peak.so"
        command = [os.environ.get("CC", "cc"), *flags, str(source), "-o", str(library)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        loop = ctypes.CDLL(str(library)).multiply_add
    loop.restype, loop.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.c_void_p]

    def run(_: int) -> float:  # ctypes releases the interpreter's lock
        return loop(rounds, (ctypes.c_float * 2)(0.999, 1e-3))

    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            start = time.perf_counter()
            operations = sum(pool.map(run, range(threads)))
            best = max(best, operations / (time.perf_counter() - start))
    return best


def commit(checkout: Path = Path(__file__).parent) -> str:
    r"""The commit of the checkout; ``-dirty`` says that files differ from it, other
    than results, which the benchmark before may have written.

    Args:
        checkout: A folder of the checkout.
    """
    results = ("benchmark/results", "docs/images/benchmark")
    others = [":/", *(f":(top,exclude){folder}" for folder in results)]
    try:
        own = _git(checkout, "rev-parse", "--short=10", "HEAD")
        status = ("status", "--porcelain", "--untracked-files=no", "--", *others)
        changed = _git(checkout, *status)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{own}-dirty" if changed else own


def _git(checkout: Path, *command: str) -> str:
    result = subprocess.run(
        ["git", *command],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


def _memory() -> Optional[int]:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _version(package: str) -> Optional[str]:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
