r"""Finds the native library and declares its C interface (``csrc/erwin.h``).

All calls of the library go through this file. :mod:`ctypes` checks nothing, so callers
must pass contiguous tensors of the right dtype, device and size.
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

ABI_VERSION = 8
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


HOST = -1  # the host as the device of a context; GPUs have their ordinals


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
    r"""Bounds of the sizes of a batch on a device (``erwin_tree_bounds``)."""

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


class Queries(Structure):
    r"""Points whose neighbours are searched (``erwin_queries``)."""

    _fields_ = [
        ("layout", POINTER(Layout)),
        ("pos", c_void_p),
        ("ptr", c_void_p),
        ("perm", c_void_p),
    ]


_CONTEXT, _LAYOUT, _POINTERS = POINTER(Context), POINTER(Layout), POINTER(c_void_p)
_ATTENTION, _HEADS = POINTER(Attention), POINTER(Heads)
_MESSAGE, _BOUNDS = POINTER(Message), POINTER(TreeBounds)
_QUERIES = POINTER(Queries)
# Defined once, because ctypes would create these types again in every call.
_PER_LEVEL, _TOTAL = c_void_p * MAX_LEVELS, c_int64 * (2 * MAX_LEVELS)
_CLOUDS = [c_void_p, c_int64]  # ptr, clouds
_SEARCH = [
    *[_CONTEXT, _LAYOUT, c_int32, c_void_p, *_CLOUDS, c_int64, c_void_p],
    *[_QUERIES, c_void_p],
]
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
        *[_CONTEXT, _LAYOUT, c_int32, *_CLOUDS, c_int64, _QUERIES, c_void_p]
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
    # PyTorch's threads do not exist in the child either. Its next parallel operator,
    # wherever it is called, would wait for them forever. A `DataLoader` sets one thread
    # in its workers, too.
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@cache
def library() -> ctypes.CDLL:
    r"""Loads the library once per process, or raises :obj:`ImportError`."""
    # In an editable install, the library may be in another folder than this file.
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


# The function by which long calls ask, on the thread that made them, whether Ctrl-C was
# pressed. It is a C function of Python that is called with the GIL and runs no
# bytecode, so that no handler of a signal can raise inside of it. It returns true once
# for every signal, and only in the main thread.
_interrupted = CFUNCTYPE(c_int32)(pythonapi.PyOS_InterruptOccurred)
_INTERRUPTED_ADDRESS = ctypes.cast(_interrupted, c_void_p).value


def call(name: str, *args: object) -> None:
    r"""Calls an entry point.

    If Ctrl-C interrupts a call, the handler of the signal runs. The exception that it
    raises is passed on. If it raises none, the call is made again.

    Raises:
        MemoryError: If it returns ``ERWIN_OUT_OF_MEMORY``.
        RuntimeError: If it returns another status than ``ERWIN_OK``.
    """
    function = _function(name)
    if (status := function(*args)) == _INTERRUPTED:
        # The library's question has reset the signal, so that it must be set again.
        pythonapi.PyErr_SetInterrupt()
        # The second call cannot be interrupted. Otherwise it would begin again at every
        # signal, and might never end.
        for arg in args:
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
    r"""Returns the context of a call on :obj:`tensor`'s device.

    In a forked process a call gets one thread. The threads of the parent process do not
    exist there, so that a call with several threads would wait for them forever.
    """
    num_threads = 1 if _forked else torch.get_num_threads()
    if tensor.device.type == "cpu":
        # Only the main thread receives signals, and other threads must not call Python
        # while the interpreter shuts down.
        is_main = threading.current_thread() is threading.main_thread()
        interrupted = _INTERRUPTED_ADDRESS if is_main else None
        return Context(HOST, num_threads, None, interrupted)
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return Context(tensor.get_device(), num_threads, stream)


def cpu_isa() -> str:
    r"""Returns the instruction set of ball attention and message passing.

    It is the widest that the build and the machine have, unless the environment
    variable ``ATEN_CPU_CAPABILITY``, which limits PyTorch's own kernels, names a
    narrower one. The variable limits trees and searches too.
    """
    widest = library().erwin_cpu_isa()
    level = os.environ.get("ATEN_CPU_CAPABILITY", "")
    limit = CPU_ISAS.get("baseline" if level == "default" else level, widest)
    return [*CPU_ISAS][min(limit, widest)]


def workspace(size: int) -> Tensor:
    r"""Allocates memory for a call on the host, whatever the default device is."""
    return torch.empty(size, dtype=torch.uint8, device="cpu")


@contextmanager
def found() -> Iterator[c_void_p]:
    r"""Gives a search a place for its results (``erwin_found``), and frees it after."""
    pointer = c_void_p()
    free = library().erwin_found_free
    free.argtypes, free.restype = [c_void_p], None
    try:
        yield pointer
    finally:
        free(pointer)


def heads(x: Tensor) -> Heads:
    r"""Returns the struct of a tensor [rows, heads, channels], channels contiguous."""
    return Heads(x.data_ptr(), x.stride(0), x.stride(1))


def is_finite(x: Tensor) -> bool:
    r"""Whether all values are finite; PyTorch's threads are not used."""
    finite = c_int32()
    call("erwin_is_finite", DTYPES[x.dtype], x.data_ptr(), x.numel(), byref(finite))
    return bool(finite.value)


def no_permutation(perm: Tensor, lengths: Tensor) -> Optional[int]:
    r"""Returns the first segment of rows that is not a permutation of 0, 1, ...

    Segments have the given lengths, which sum to the number of rows. The result is
    :obj:`None` if all are permutations. PyTorch's threads are not used.
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
    r"""Returns the configuration struct of a tree, cached: it must not be changed."""
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
    r"""Returns an array of the addresses of tensors' data, at most one per level."""
    return _PER_LEVEL(*[t.data_ptr() for t in tensors])


def tree_sizes(
    config: Layout, ptr: Tensor, rows: Tensor
) -> tuple[list[int], list[int]]:
    r"""Fills in the number of rows of every cloud on every level.

    Returns the numbers of rows and of balls that all clouds have on every level.
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
