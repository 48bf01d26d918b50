r"""Attention inside balls: the operator, and its implementations, one a file."""

from torch_geometric_erwin.ops.ball_attention import (
    native,
    reference,
    sdpa,
    triton,
)
from torch_geometric_erwin.ops.registry import Registry

#: In order of preference, the fastest first.
BACKENDS = Registry(
    "ball_attention", native=native, triton=triton, sdpa=sdpa, reference=reference
)
