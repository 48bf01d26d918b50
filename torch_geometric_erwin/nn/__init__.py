r"""Layers and models; tensors in and out, clouds of any size by :obj:`ptr`."""

from torch_geometric_erwin.nn.attention import (
    BallAttention,
    ball_attention,
    choose_backend,
    explain_backends,
)
from torch_geometric_erwin.nn.block import ErwinBlock
from torch_geometric_erwin.nn.conv import MPNNConv
from torch_geometric_erwin.nn.models import MPNN, Erwin, ErwinStage, MPNNEmbedding
from torch_geometric_erwin.nn.norm import BatchNorm
from torch_geometric_erwin.nn.pool import BallPooling, BallUnpooling
from torch_geometric_erwin.nn.swiglu import SwiGLU

__all__ = [
    "MPNN",
    "BallAttention",
    "BallPooling",
    "BallUnpooling",
    "BatchNorm",
    "Erwin",
    "ErwinBlock",
    "ErwinStage",
    "MPNNConv",
    "MPNNEmbedding",
    "SwiGLU",
    "ball_attention",
    "choose_backend",
    "explain_backends",
]
