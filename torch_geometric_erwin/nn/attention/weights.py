r"""The attention weights of a whole model."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from torch_geometric_erwin.tree import Level
from torch_geometric_erwin.utils.checks import check_instance


class AttentionWeights(NamedTuple):
    r"""The weights of one layer in a call of :func:`attention_weights`.

    Args:
        name: The layer's name in the model.
        edge_index: The pairs that attend, source and target: nodes on level 0 of a
            tree (where :obj:`level.node` is known), otherwise rows of the level.
        alpha: The weight of every pair, per head; those of one target sum to one.
        level: The level that the layer saw.

    Shapes:
        - **edge_index:** :math:`(2, E)`; **alpha:** :math:`(E, H)`.

    Example:
        >>> from torch_geometric_erwin import Level
        >>> pairs, alpha = torch.tensor([[0], [0]]), torch.ones(1, 4)
        >>> level = Level.build(torch.rand(1, 3), torch.tensor([1]), ball_size=8)
        >>> AttentionWeights("attention", pairs, alpha, level).alpha.shape
        torch.Size([1, 4])
    """

    name: str
    edge_index: Tensor
    alpha: Tensor
    level: Level


def attention_weights(
    model: Module, /, *args: Any, **kwargs: Any
) -> list[AttentionWeights]:
    r"""Calls a model and returns the weights with which its layers attend.

    Every :class:`~torch_geometric_erwin.nn.BallAttention` in the model is observed, and
    every mixer of your own that has a method :obj:`attention_weights(x, level)`. A
    compiled model runs without its compiled code.

    Args:
        model: The model, or any module with such layers.
        *args: What the model is called with.
        **kwargs: What the model is called with.

    Returns:
        The weights in the order of the calls. They have a gradient if it is enabled.

    Raises:
        TypeError: If it is not a module.
        ValueError: If the model calls no such layer.

    Example:
        >>> from torch_geometric_erwin.nn import Erwin
        >>> model = Erwin(0, [8, 16], ball_sizes=4, mp_steps=0, enc_depths=1)
        >>> for layer in attention_weights(model, None, torch.rand(8, 3)):
        ...     print(layer.name, layer.level.num_rows, [*layer.alpha.shape])
        encoder.0.blocks.0.attention 8 [32, 1]
        encoder.1.blocks.0.attention 4 [16, 1]
        decoder.0.blocks.0.attention 8 [32, 1]
        decoder.0.blocks.1.attention 8 [32, 1]
    """
    check_instance("model", model, Module, "a module")
    found: list[AttentionWeights] = []
    hooks = []
    for name, module in model.named_modules():
        if callable(getattr(module, "attention_weights", None)):

            def observe(module: Any, args: Any, kwargs: Any, name: str = name) -> None:
                # Only what is called with a level is a mixer.
                level = kwargs.get("level", args[-1] if args else None)
                if isinstance(level, Level):
                    pairs, alpha = module.attention_weights(*args, **kwargs)
                    found.append(
                        AttentionWeights(name, *node_pairs(pairs, alpha, level), level)
                    )

            hook = module.register_forward_pre_hook(observe, with_kwargs=True)
            hooks.append(hook)
    try:
        with torch.compiler.set_stance("force_eager"):
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError(
            "'model' must call a layer that has 'attention_weights(x, level)', such as "
            f"BallAttention (got {model.__class__.__name__!r}, which calls none)"
        )
    return found


def node_pairs(pairs: Tensor, alpha: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    r"""Returns weights between rows as weights between nodes, where these are known.

    If a node has several rows, only the first one counts as a target, because models
    take its output.

    Args:
        pairs: The pairs of rows that attend, source and target.
        alpha: The weight of every pair.
        level: The level of the rows.

    Shapes:
        - **pairs:** :math:`(2, E)`; **alpha:** :math:`(E, H)`; **output:**
          :math:`(2, E')` and :math:`(E', H)`.

    Example:
        >>> from torch_geometric_erwin import ball_tree
        >>> pos = torch.tensor([[2.0], [0.0], [1.0]])
        >>> level, = ball_tree(pos, ball_sizes=4).levels(pos)
        >>> pairs = torch.tensor([[0, 1], [0, 2]])
        >>> node_pairs(pairs, torch.ones(2, 1), level)[0].tolist()
        [[1, 2], [1, 0]]
    """
    if level.node is None:
        return pairs, alpha
    first = torch.ones_like(level.node, dtype=torch.bool)
    first[1:] = level.node[1:] != level.node[:-1]
    is_read = first[pairs[1]]
    return level.node[pairs[:, is_read]], alpha[is_read]
