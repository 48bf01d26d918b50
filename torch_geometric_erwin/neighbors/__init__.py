r"""Exact neighbour search over a ball tree: graphs, two sets, interpolation."""

from torch_geometric_erwin.neighbors.cross import knn, radius
from torch_geometric_erwin.neighbors.graphs import FLOWS, knn_graph, radius_graph
from torch_geometric_erwin.neighbors.interpolate import knn_interpolate
from torch_geometric_erwin.neighbors.search import MANY

__all__ = [
    "FLOWS",
    "MANY",
    "knn",
    "knn_graph",
    "knn_interpolate",
    "radius",
    "radius_graph",
]
