r"""Transforms on PyG data: the ball tree, and graphs by exact neighbour search."""

from torch_geometric_erwin.transforms.ball_tree import BallTree
from torch_geometric_erwin.transforms.graph import TreeKNNGraph, TreeRadiusGraph

__all__ = ["BallTree", "TreeKNNGraph", "TreeRadiusGraph"]
