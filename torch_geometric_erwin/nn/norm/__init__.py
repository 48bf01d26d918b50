r"""Normalisation layers."""

from torch_geometric_erwin.nn.norm.batch_norm import BatchNorm

__all__ = ["BatchNorm"]
