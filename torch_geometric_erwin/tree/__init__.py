r"""One exact ragged tree: what is configured, divided, ordered and handed to layers.

:class:`TreeConfig` is what a tree is built for; a partition, the lengths of clouds,
balls and groups, follows from it and the sizes of the clouds; an order follows from the
positions; :class:`Tree` is both, and :class:`Level` what a layer sees of one level.
"""

from torch_geometric_erwin.tree.builder import ball_tree
from torch_geometric_erwin.tree.config import TreeConfig
from torch_geometric_erwin.tree.level import Level
from torch_geometric_erwin.tree.tree import Tree

__all__ = ["Level", "Tree", "TreeConfig", "ball_tree"]
