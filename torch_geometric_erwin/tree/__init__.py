r"""Ball trees over ragged batches of clouds.

:class:`TreeConfig` is the configuration of a tree. A partition, which holds the lengths
of clouds, balls and groups, follows from it and the sizes of the clouds. An order of
rows follows from the positions. A :class:`Tree` consists of a partition and an order,
and a :class:`Level` is what a layer gets of one level.
"""

import torch_geometric_erwin.tree.pytrees  # noqa: F401  (registers both classes)
from torch_geometric_erwin.tree.builder import ball_tree
from torch_geometric_erwin.tree.config import TreeConfig
from torch_geometric_erwin.tree.level import Level
from torch_geometric_erwin.tree.tree import Tree

__all__ = ["Level", "Tree", "TreeConfig", "ball_tree"]
