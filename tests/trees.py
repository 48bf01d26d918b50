"""Configurations of trees, clouds of difficult sizes, and random points."""

from collections.abc import Sequence

import numpy as np
import torch

B = 8
ALL_SIZES = list(range(5 * B + 4))  # clouds of 0 to 5B + 3 points
MIXED = [0, 37, 1, 0, 64, 2, 100, 3, 0]
CONFIGS = [  # ball sizes, strides
    ((8,), ()),
    ((8, 8), (2,)),
    ((8, 8, 8), (2, 2)),
    ((8, 8, 8), (4, 2)),
    ((8, 8), (3,)),
    ((8, 8, 8), (1, 2)),
    ((9, 9, 9), (3, 3)),
    ((7, 7), (2,)),
    ((1, 1), (2,)),
    ((4, 4, 4), (2, 6)),  # a row of the last level spans more points than a ball
    ((8, 5, 3, 1), (2, 2, 2)),  # no ball size is a power of two times the first
    ((4, 8, 16), (2, 2)),
    ((16, 16, 16, 8, 4), (2, 2, 2, 2)),
]
PERFECT = [(b, s) for b, s in CONFIGS if all(v & (v - 1) == 0 for v in (*b, *s))]
LAYOUTS = [("balanced", *c) for c in CONFIGS] + [("perfect", *c) for c in PERFECT]


def offsets(sizes: Sequence[int]) -> torch.Tensor:
    """The row offsets of clouds of these sizes."""
    return torch.tensor([0, *np.cumsum(sizes, dtype=int)])


def random_pos(
    n: int, dim: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Normal points, the same ones in every dtype up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64).to(dtype)
