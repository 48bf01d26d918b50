r"""Layers and models for batches of clouds of any size."""

from torch_geometric_erwin.nn.attention import (
    AttentionWeights,
    BallAttention,
    attention_weights,
    ball_attention,
    choose_backend,
    explain_backends,
    make_mixer,
)
from torch_geometric_erwin.nn.block import Block, ErwinBlock
from torch_geometric_erwin.nn.conv import HybridConv, MPNNConv
from torch_geometric_erwin.nn.drop_path import DropPath
from torch_geometric_erwin.nn.explain import explainable
from torch_geometric_erwin.nn.models import MPNN, Erwin, ErwinStage, MPNNEmbedding
from torch_geometric_erwin.nn.norm import BatchNorm, GraphNorm
from torch_geometric_erwin.nn.pool import BallPooling, BallUnpooling
from torch_geometric_erwin.nn.pos_encoding import FourierEncoding, LinearEncoding
from torch_geometric_erwin.nn.rollout import Rollout
from torch_geometric_erwin.nn.swiglu import SwiGLU

__all__ = [
    "MPNN",
    "AttentionWeights",
    "BallAttention",
    "BallPooling",
    "BallUnpooling",
    "BatchNorm",
    "Block",
    "DropPath",
    "Erwin",
    "ErwinBlock",
    "ErwinStage",
    "FourierEncoding",
    "GraphNorm",
    "HybridConv",
    "LinearEncoding",
    "MPNNConv",
    "MPNNEmbedding",
    "Rollout",
    "SwiGLU",
    "attention_weights",
    "ball_attention",
    "choose_backend",
    "explain_backends",
    "explainable",
    "make_mixer",
]
