r"""Erwin, the ball-tree transformer, as a plugin for PyTorch Geometric."""

from importlib.metadata import version

# Importing `nn` registers every operator `torch.ops.erwin`, so that a program that
# `torch.export.save` wrote loads in a process that imports only the package.
from torch_geometric_erwin import data, datasets, nn, transforms, visualization
from torch_geometric_erwin.cuda_graph import CapturedStep
from torch_geometric_erwin.data.padding import masked_mean, pad_batch
from torch_geometric_erwin.data.reorder import to_original
from torch_geometric_erwin.neighbors import (
    knn,
    knn_graph,
    knn_interpolate,
    radius,
    radius_graph,
)
from torch_geometric_erwin.tree import Level, Tree, TreeConfig, ball_tree
from torch_geometric_erwin.utils.checks import batch_to_ptr

__version__ = version("torch-geometric-erwin")

__all__ = [
    "CapturedStep",
    "Level",
    "Tree",
    "TreeConfig",
    "ball_tree",
    "batch_to_ptr",
    "data",
    "datasets",
    "knn",
    "knn_graph",
    "knn_interpolate",
    "masked_mean",
    "nn",
    "pad_batch",
    "radius",
    "radius_graph",
    "to_original",
    "transforms",
    "visualization",
]
