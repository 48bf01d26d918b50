r"""Erwin, the ball-tree transformer, as a plugin for PyTorch Geometric."""

from importlib.metadata import version

from torch_geometric_erwin.neighbors import knn_graph, radius_graph
from torch_geometric_erwin.tree import Tree, TreeConfig, ball_tree
from torch_geometric_erwin.utils.checks import batch_to_ptr
from torch_geometric_erwin.utils.cuda_graph import CapturedStep
from torch_geometric_erwin.utils.padding import masked_mean, pad_batch
from torch_geometric_erwin.utils.storage import global_perm, read_tree

__version__ = version("torch-geometric-erwin")

__all__ = [
    "CapturedStep",
    "Tree",
    "TreeConfig",
    "ball_tree",
    "batch_to_ptr",
    "global_perm",
    "knn_graph",
    "masked_mean",
    "pad_batch",
    "radius_graph",
    "read_tree",
]
