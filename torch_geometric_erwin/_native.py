r"""Finds the native library and declares its C interface (``csrc/erwin.h``).

Nothing else in the package touches :mod:`ctypes`. ctypes checks nothing: callers pass
contiguous tensors of the right dtype, device and size.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_void_p,
    pythonapi,
)
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Optional

import torch
from torch import Tensor

ABI_VERSION = 7
MAX_LEVELS = 16
LAYOUTS = {"balanced": 0, "perfect": 1}
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
CPU_ISAS = {"baseline": 0, "avx2": 1, "avx512": 2}

_STATUS = {
    1: "invalid argument",
    2: "not supported by this build",
    3: "workspace too small",
    4: "out of memory",
    5: "internal error",
    6: "interrupted",
}
_OUT_OF_MEMORY, _INTERNAL_ERROR, _INTERRUPTED = 4, 5, 6


HOST = -1  # the device of a context beside the ordinals of GPUs


class Context(Structure):
    r"""Where and how a call runs (``erwin_context``)."""

    _fields_ = [
        ("device", c_int32),
        ("num_threads", c_int32),
        ("stream", c_void_p),
        ("interrupted", c_void_p),
    ]


class Layout(Structure):
    r"""The static configuration of a tree (``erwin_layout``)."""

    _fields_ = [
        ("kind", c_int32),
        ("levels", c_int32),
        ("ball_sizes", c_int64 * MAX_LEVELS),
        ("strides", c_int64 * MAX_LEVELS),
    ]


class TreeBounds(Structure):
    r"""What the host knows of a batch on a device (``erwin_tree_bounds``)."""

    _fields_ = [
        *[("clouds", c_int64), ("points", c_int64), ("largest", c_int64)],
        ("rows", c_int64 * MAX_LEVELS),
    ]


class Heads(Structure):
    r"""A tensor :obj:`[rows, heads, channels]` (``erwin_heads``)."""

    _fields_ = [("data", c_void_p), ("row_stride", c_int64), ("head_stride", c_int64)]


class Attention(Structure):
    r"""The arguments of ball attention (``erwin_attention``)."""

    _fields_ = [
        *[("isa", c_int32), ("dtype", c_int32), ("pos_dtype", c_int32)],
        ("scale", c_float),
        *[("rows", c_int64), ("heads", c_int64), ("channels", c_int64)],
        *[("dim", c_int64), ("balls", c_int64)],
        *[("ball_len", c_void_p), ("perm", c_void_p)],
        *[("pos", c_void_p), ("sigma", c_void_p)],
        *[("q", Heads), ("k", Heads), ("v", Heads)],
    ]


class Message(Structure):
    r"""A call of message passing (``erwin_message``)."""

    _fields_ = [
        ("isa", c_int32),
        ("pos_dtype", c_int32),
        ("eps", c_float),
        ("nodes", c_int64),
        ("edges", c_int64),
        ("channels", c_int64),
        ("dim", c_int64),
        ("source", c_void_p),
        ("target", c_void_p),
        ("target_ptr", c_void_p),
        ("target_order", c_void_p),
        ("source_ptr", c_void_p),
        ("source_order", c_void_p),
        ("source_rows", c_void_p),
        ("target_rows", c_void_p),
        ("pos", c_void_p),
        ("weight", c_void_p),
        ("norm_weight", c_void_p),
        ("norm_bias", c_void_p),
    ]


_CONTEXT, _LAYOUT, _POINTERS = POINTER(Context), POINTER(Layout), POINTER(c_void_p)
_ATTENTION, _HEADS = POINTER(Attention), POINTER(Heads)
_MESSAGE, _BOUNDS = POINTER(Message), POINTER(TreeBounds)
# Kept: ctypes would make a type anew every time.
_PER_LEVEL, _TOTAL = c_void_p * MAX_LEVELS, c_int64 * (2 * MAX_LEVELS)
_CLOUDS = [c_void_p, c_int64]  # ptr, clouds
_SEARCH = [_CONTEXT, _LAYOUT, c_int32, c_void_p, *_CLOUDS, c_int64, c_void_p, c_void_p]
_SIGNATURES = {
    "erwin_is_finite": [c_int32, c_void_p, c_int64, c_void_p],
    "erwin_permutations": [
        *[c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p],
    ],
    "erwin_tree_sizes": [_LAYOUT, *_CLOUDS, c_void_p, c_void_p],
    "erwin_tree_tables": [_LAYOUT, *_CLOUDS, _POINTERS, _POINTERS],
    "erwin_tree_workspace": [_LAYOUT, c_int32, *_CLOUDS, c_int64, c_void_p],
    "erwin_tree_build": [
        *[_CONTEXT, _LAYOUT, c_int32, c_void_p, *_CLOUDS, c_int64],
        *[c_void_p, c_void_p, c_int64, c_void_p, c_void_p, _POINTERS],
    ],
    "erwin_tree_device_workspace": [
        *[_CONTEXT, _LAYOUT, c_int32, c_int64, _BOUNDS, c_int32, c_void_p],
    ],
    "erwin_tree_build_device": [
        *[_CONTEXT, _LAYOUT, c_int32, c_void_p, c_void_p, c_int64, _BOUNDS],
        *[c_void_p, c_void_p, c_int64, c_void_p, c_void_p, _POINTERS],
    ],
    "erwin_neighbors_workspace": [
        *[_CONTEXT, _LAYOUT, c_int32, *_CLOUDS, c_int64, c_void_p]
    ],
    "erwin_knn": [*_SEARCH, c_int64, c_int32, c_void_p, c_int64, c_void_p, c_void_p],
    "erwin_radius_count": [
        *[*_SEARCH, c_double, c_int64, c_int32],
        *[c_void_p, c_int64, c_void_p, _POINTERS],
    ],
    "erwin_radius_fill": [
        *[*_SEARCH, c_double, c_int64, c_int32],
        *[c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_void_p],
    ],
    "erwin_attention_workspace": [_CONTEXT, _ATTENTION, c_int32, c_void_p],
    "erwin_attention_forward": [
        *[_CONTEXT, _ATTENTION, c_void_p, c_int64],
        *[_HEADS, c_void_p],
    ],
    "erwin_attention_backward": [
        *[_CONTEXT, _ATTENTION, c_void_p, c_int64, _HEADS, c_void_p],
        *[_HEADS, _HEADS, _HEADS, _HEADS, c_void_p, c_void_p],
    ],
    "erwin_group": [c_void_p, c_int64, c_int64, c_void_p, c_void_p],
    "erwin_message_forward": [_CONTEXT, _MESSAGE, c_void_p],
    "erwin_message_workspace": [_MESSAGE, c_void_p],
    "erwin_message_backward": [
        *[_CONTEXT, _MESSAGE, c_void_p, c_void_p, c_int64],
        *[c_void_p, c_void_p, c_void_p],
    ],
}


_forked = False  # whether this process was forked from one that had loaded the package


def _after_fork() -> None:
    global _forked
    _forked = True
    # Nor are PyTorch's threads there, and its next parallel operator, wherever it is
    # called, would wait for them. Workers of a `DataLoader` do the same.
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def library() -> ctypes.CDLL:
    r"""Loads the library once per process, or raises :obj:`ImportError`."""
    # An editable install redirects modules, so the file need not lie beside this one.
    spec = find_spec(f"{__package__}._kernels")
    if spec is None or spec.origin is None:
        raise ImportError(
            "the native library of torch_geometric_erwin is missing; install the "
            "package with 'pip install .' instead of importing its source folder"
        )
    lib = ctypes.CDLL(spec.origin)
    if lib.erwin_abi_version() != ABI_VERSION:
        raise ImportError(
            f"'{spec.origin}' has ABI {lib.erwin_abi_version()}, expected "
            f"{ABI_VERSION}; reinstall torch_geometric_erwin"
        )
    return lib


@cache
def _function(name: str) -> Callable[..., int]:
    function = getattr(library(), name)
    function.argtypes, function.restype = _SIGNATURES[name], c_int32
    return function


# What long calls ask, on the thread that made them: a builtin, which is called with the
# GIL and runs no bytecode, so that no handler of a signal can raise inside of it. It is
# true once a signal, and in the main thread alone.
_interrupted = CFUNCTYPE(c_int32)(pythonapi.PyOS_InterruptOccurred)
_INTERRUPTED_ADDRESS = ctypes.cast(_interrupted, c_void_p).value


def call(name: str, *args: object) -> None:
    r"""Calls an entry point.

    A call that Ctrl-C stops is left by what the signal's handler raises, or else made
    once more.

    Raises:
        MemoryError: If it returns ``ERWIN_OUT_OF_MEMORY``.
        RuntimeError: If it returns another status than ``ERWIN_OK``.
    """
    function = _function(name)
    if (status := function(*args)) == _INTERRUPTED:
        pythonapi.PyErr_SetInterrupt()  # the library's question took the signal
        for arg in args:  # once more, to the end: or every signal would begin it anew
            if isinstance(arg, Context):
                arg.interrupted = None
        status = function(*args)
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"{name}: {_STATUS[status]}")
    if status != 0:
        what = _STATUS.get(status, f"status {status}")
        last_error = library().erwin_last_error
        last_error.restype = c_char_p
        if status == _INTERNAL_ERROR and last_error():
            what += f" ({last_error().decode()})"
        raise RuntimeError(f"{name}: {what}")


def context(tensor: Tensor) -> Context:
    r"""The context of a call on :obj:`tensor`'s device.

    A forked process gets one thread, and one thread never starts or wakes another: the
    threads of the parent are not there, and it would wait for them.
    """
    num_threads = 1 if _forked else torch.get_num_threads()
    if tensor.device.type == "cpu":
        # Only the main thread learns of signals, and another one must not ask while the
        # interpreter comes to its end.
        is_main = threading.current_thread() is threading.main_thread()
        interrupted = _INTERRUPTED_ADDRESS if is_main else None
        return Context(HOST, num_threads, None, interrupted)
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return Context(tensor.get_device(), num_threads, stream)


def cpu_isa() -> str:
    r"""The instruction set of ball attention and message passing.

    It is the widest that the build and the machine have, unless the variable that
    limits PyTorch's own kernels, ``ATEN_CPU_CAPABILITY``, names a narrower one; trees
    and searches follow it too.
    """
    widest = library().erwin_cpu_isa()
    level = os.environ.get("ATEN_CPU_CAPABILITY", "")
    limit = CPU_ISAS.get("baseline" if level == "default" else level, widest)
    return [*CPU_ISAS][min(limit, widest)]


def workspace(size: int) -> Tensor:
    r"""Memory of the host for a call, wherever new tensors go by default."""
    return torch.empty(size, dtype=torch.uint8, device="cpu")


@contextmanager
def found() -> Iterator[c_void_p]:
    r"""Where a search leaves what it found (``erwin_found``) until it is freed."""
    pointer = c_void_p()
    free = library().erwin_found_free
    free.argtypes, free.restype = [c_void_p], None
    try:
        yield pointer
    finally:
        free(pointer)


def heads(x: Tensor) -> Heads:
    r"""The struct of a tensor :obj:`[rows, heads, channels]`, channels contiguous."""
    return Heads(x.data_ptr(), x.stride(0), x.stride(1))


def is_finite(x: Tensor) -> bool:
    r"""Whether no value is infinite or NaN, found without PyTorch's threads."""
    finite = c_int32()
    call("erwin_is_finite", DTYPES[x.dtype], x.data_ptr(), x.numel(), byref(finite))
    return bool(finite.value)


def no_permutation(perm: Tensor, lengths: Tensor) -> Optional[int]:
    r"""The first run of rows, of given lengths that sum to them, that is no permutation
    of its own numbers, found without PyTorch's threads; :obj:`None` if there is none.
    """
    longest = max(lengths.tolist(), default=0)
    seen, wrong = workspace(longest // 8 + 1), c_int64()
    call(
        "erwin_permutations",
        *(perm.data_ptr(), perm.size(0), lengths.data_ptr(), lengths.size(0)),
        *(seen.data_ptr(), byref(wrong)),
    )
    return wrong.value if wrong.value >= 0 else None


def layout(ball_sizes: Sequence[int], strides: Sequence[int], kind: str) -> Layout:
    r"""The configuration struct of a tree, which nobody changes."""
    return _layout(tuple(ball_sizes), tuple(strides), kind)


@lru_cache(maxsize=64)
def _layout(ball_sizes: tuple[int, ...], strides: tuple[int, ...], kind: str) -> Layout:
    return Layout(
        LAYOUTS[kind],
        len(ball_sizes),
        (c_int64 * MAX_LEVELS)(*ball_sizes),
        (c_int64 * MAX_LEVELS)(*strides),
    )


def pointers(tensors: Sequence[Tensor]) -> "ctypes.Array[c_void_p]":
    r"""An array with the address of each tensor's data, at most one a level."""
    return _PER_LEVEL(*[t.data_ptr() for t in tensors])


def tree_sizes(
    config: Layout, ptr: Tensor, rows: Tensor
) -> tuple[list[int], list[int]]:
    r"""Fills in the rows of every cloud on every level, and returns the rows and the
    balls that all clouds have on each.
    """
    total, levels = _TOTAL(), config.levels
    call(
        "erwin_tree_sizes",
        *(config, ptr.data_ptr(), ptr.size(0) - 1, rows.data_ptr(), total),
    )
    return total[:levels], total[levels : 2 * levels]


def size_of(name: str, *args: object) -> int:
    r"""Calls an entry point whose last argument receives one number of bytes."""
    size = c_int64()
    call(name, *args, byref(size))
    return size.value
