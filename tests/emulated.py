"""Runs the CUDA kernels on the host. Calls with an emulated context use a separate
library, which is built from `tests/emulator` at the first such call."""

import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

from torch_geometric_erwin import _native

SOURCE = Path(__file__).parent / "emulator"
BUILD = Path(__file__).parents[1] / "build" / "emulator"


class Context(_native.Context):
    """A context of the emulator; its only device has number 0, like a first GPU."""

    def __init__(self, device: int = 0, num_threads: int = 1) -> None:
        super().__init__(device, num_threads, None)


def _build() -> Path:
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    cmake = shutil.which("cmake", path=places)
    assert cmake, "CMake builds the emulator of the CUDA kernels: pip install cmake"
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:  # workers of pytest start at the same time
        fcntl.flock(lock, fcntl.LOCK_EX)
        for step in ([cmake, "-S", SOURCE, "-B", BUILD], [cmake, "--build", BUILD]):
            result = subprocess.run(step, capture_output=True, text=True, check=False)
            assert result.returncode == 0, result.stdout + result.stderr
    return BUILD / "emulator.so"


@cache
def _library() -> ctypes.CDLL:
    # With sanitizers another library contains the emulator (tools/sanitize.sh).
    return ctypes.CDLL(os.environ.get("ERWIN_EMULATOR") or str(_build()))


@cache
def function(name: str) -> Callable[..., int]:
    """An entry point of the emulator's library."""
    entry = getattr(_library(), name)
    entry.argtypes, entry.restype = _native._SIGNATURES[name], ctypes.c_int32
    return entry


@contextmanager
def calls() -> Iterator[None]:
    """Redirects the calls with an emulated context to the library of the emulator."""
    of_package = _native._function

    def choose(name: str) -> Callable[..., int]:
        def call(*args: object) -> int:
            emulated = any(isinstance(arg, Context) for arg in args)
            return (function if emulated else of_package)(name)(*args)

        return call

    with patch.object(_native, "_function", choose):
        yield
