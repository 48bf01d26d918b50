r"""Attention inside balls on a GPU."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmark.cases.attention import (
    Balls,
    attend_by,
    close,
    dense,
    make_balls,
    moved,
    original,
)
from benchmark.runner import Case, Workload, cuda_seconds

_HEADS = 8
_DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


def _make_balls(
    n: int, d: int, ball: int, dtype: torch.dtype, train: bool, seed: int
) -> Balls:
    # The dense bias gets the dtype of sigma, so sigma has the dtype of the queries.
    return moved(make_balls(n, d, ball, False, seed), "cuda", dtype, train)


def _close(b: Balls, expected: list[Tensor], actual: list[Tensor]) -> None:
    half = b.grad.dtype != torch.float32
    close(b, expected, actual, limit=3e-2 if half else 2e-3)


def _workload(n: int, d: int, ball: int, name: str, train: bool) -> Workload:
    dtype = _DTYPES[name]
    # Bytes read and written: queries, keys, values and the output once; in a backward
    # pass also all gradients.
    size = (4 + 8 * train) * n * _HEADS * d * dtype.itemsize
    step = "forward + backward" if train else "forward"
    return Workload(
        f"{name}, d {d}, balls of {ball}, {step}",
        partial(_make_balls, n, d, ball, dtype, train),
        {
            "SDPA, dense bias": partial(attend_by, dense, "cuda"),
            "SDPA, the original's layout": partial(attend_by, original, "cuda"),
            "ours, triton": partial(attend_by, "triton", "cuda"),
        },
        "SDPA, dense bias",
        _close,
        {
            **{"points": n, "heads": _HEADS, "channels": d, "ball": ball},
            **{"dtype": name, "train": train, "bytes": size},
        },
        seconds=cuda_seconds,
    )


def attention_cuda(size: str) -> Iterator[Workload]:
    r"""A level of a large cloud; empty without a GPU."""
    if not torch.cuda.is_available():
        return
    n = 1024 if size == "tiny" else 65_536
    sizes = (
        [(32, 256)]
        if size != "full"
        else [(d, b) for d in (16, 32, 64) for b in (128, 256)]
    )
    for name in _DTYPES:
        for d, ball in sizes:
            for train in (False, True):
                yield _workload(n, d, ball, name, train)


CASES = [
    Case(
        "attention_cuda",
        "Attention inside balls on a GPU, 8 heads (needs one)",
        attention_cuda,
    ),
]
