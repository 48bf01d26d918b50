r"""Attention layers."""

from torch_geometric_erwin.nn.attention.backends import (
    choose_backend,
    explain_backends,
)
from torch_geometric_erwin.nn.attention.ball_attention import (
    BallAttention,
    ball_attention,
)

__all__ = ["BallAttention", "ball_attention", "choose_backend", "explain_backends"]
