r"""Mixers: layers that exchange information between the rows of a level."""

from torch_geometric_erwin.nn.attention.backends import (
    choose_backend,
    explain_backends,
)
from torch_geometric_erwin.nn.attention.ball_attention import (
    BallAttention,
    ball_attention,
)
from torch_geometric_erwin.nn.attention.resolver import Mixer, make_mixer
from torch_geometric_erwin.nn.attention.weights import (
    AttentionWeights,
    attention_weights,
)

__all__ = [
    "AttentionWeights",
    "BallAttention",
    "Mixer",
    "attention_weights",
    "ball_attention",
    "choose_backend",
    "explain_backends",
    "make_mixer",
]
