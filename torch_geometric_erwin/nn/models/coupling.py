r"""A warning if the clouds of a batch depend on one another in training."""

import warnings
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn import Module

from torch_geometric_erwin.tree import Tree

_WARNED: WeakSet[Module] = WeakSet()


def warn_of_coupling(model: Module, pos: Tensor, tree: Tree) -> None:
    r"""Warns once per model if gradients of positions depend on other clouds.

    In training, a norm over all rows of a batch makes every output depend on every
    position, so that a force has contributions from other clouds.

    Args:
        model: The model.
        pos: The positions.
        tree: Their tree.

    Example:
        >>> from torch_geometric_erwin import ball_tree
        >>> pos = torch.rand(4, 3, requires_grad=True)
        >>> tree = ball_tree(pos, ptr=torch.tensor([0, 2, 4]), ball_sizes=2)
        >>> warn_of_coupling(torch.nn.LayerNorm(3), pos, tree)
    """
    coupled = model.training and pos.requires_grad and tree.level.size(0) > 1
    if torch.compiler.is_compiling() or not coupled or model in _WARNED:
        return
    _WARNED.add(model)
    norms = (torch.nn.BatchNorm1d, torch.nn.SyncBatchNorm)
    if any(isinstance(module, norms) for module in model.modules()):
        warnings.warn(
            "in training, a norm over the batch makes the gradient of a cloud's "
            "positions depend on the other clouds; norm='graph' or 'layer' does not",
            stacklevel=5,  # names the line that calls the model
        )
