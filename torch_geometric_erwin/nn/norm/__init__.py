r"""Normalisation layers."""

from torch_geometric_erwin.nn.norm.batch_norm import BatchNorm
from torch_geometric_erwin.nn.norm.graph_norm import GraphNorm
from torch_geometric_erwin.nn.norm.resolver import Norm, make_norm, normalise

__all__ = ["BatchNorm", "GraphNorm", "Norm", "make_norm", "normalise"]
