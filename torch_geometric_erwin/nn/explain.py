r"""Models for PyG's explainers."""

from functools import partial
from inspect import signature
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import MessagePassing

from torch_geometric_erwin.nn.block import Block
from torch_geometric_erwin.tree import Level
from torch_geometric_erwin.utils.checks import check_instance


class Explainable(Module):
    r"""The model that :func:`explainable` returns: the same, called differently.

    Args:
        model: The model.

    Example:
        >>> from torch_geometric_erwin.nn import MPNN
        >>> Explainable(MPNN(1, 8, 2, num_layers=1))
        Explainable(MPNN(1, 8, 2, num_layers=1))
    """

    def __init__(self, model: Module) -> None:
        super().__init__()
        check_instance("model", model, Module, "a module")
        taken = signature(model.forward).parameters.values()
        names = [p.name for p in taken]
        if all(p.kind is not p.VAR_KEYWORD for p in taken):
            for name in ("pos", "edge_index"):
                if name not in names:
                    raise TypeError(
                        f"'model' must take 'pos' and 'edge_index' by name (got "
                        f"{model.__class__.__name__!r}, which takes {names})"
                    )
        self.model = model

    # Explainers call `train(self.training)` at the end, so the mode must be that of the
    # model, also if only the model's was changed.
    @property
    def training(self) -> bool:
        r"""Whether the model is in training mode."""
        model = getattr(self, "model", None)
        return model is None or model.training

    @training.setter
    def training(self, mode: bool) -> None:
        pass  # `train` sets the mode of the model too

    def forward(
        self,
        x: Optional[Tensor],
        edge_index: Optional[Tensor],
        pos: Optional[Tensor] = None,
        **kwargs: Any,
    ) -> Any:
        r"""Calls the model as :obj:`model(x, pos=pos, edge_index=edge_index)`.

        Args:
            x: The node features.
            edge_index: The edges.
            pos: The node positions.
            **kwargs: Further arguments of the model.
        """
        if pos is None:
            raise ValueError(
                "'pos' is missing: give it to the explainer by name, as "
                "'explainer(x, edge_index, pos=pos)'"
            )
        hooks = [
            module.register_forward_pre_hook(_leave_out_coarse, with_kwargs=True)
            for module in self.model.modules()
            if isinstance(module, Block) and module.conv is not None
        ]
        if (
            isinstance(x, Tensor)
            and isinstance(edge_index, Tensor)
            and x.dim() > 0
            and _is_list_of_edges(edge_index)
        ):
            leave_out = partial(_leave_out, _counts(edge_index, x.size(0)))
            for module in self.model.modules():
                if isinstance(module, MessagePassing) and module.explain is not False:
                    hook = module.register_forward_pre_hook(leave_out, with_kwargs=True)
                    hooks.append(hook)
        try:
            return self.model(x, pos=pos, edge_index=edge_index, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.model!r})"


def _is_list_of_edges(edge_index: Tensor) -> bool:
    # The model refuses what is neither this nor an adjacency matrix.
    is_dense = edge_index.layout is torch.strided
    return is_dense and edge_index.dim() == 2 and edge_index.size(0) == 2


def _counts(edge_index: Tensor, num_nodes: int) -> tuple[int, int]:
    # The numbers of edges that PyG's masks serve: with all edges, and with a loop at
    # every node in place of those that are given.
    is_edge = edge_index[0] != edge_index[1]
    return edge_index.size(1), int(is_edge.sum()) + num_nodes


def _leave_out(
    counts: tuple[int, int], layer: MessagePassing, args: Any, kwargs: Any
) -> None:
    # A mask of edges does not fit a layer on other edges, such as those of a coarse
    # level. PyG leaves out layers whose `explain` is False.
    given = signature(layer.forward).bind_partial(*args, **kwargs).arguments
    edges = given.get("edge_index")
    if isinstance(edges, Tensor) and edges.size(-1) not in counts:
        layer.explain = False


def _leave_out_coarse(block: Block, args: Any, kwargs: Any) -> None:
    # A coarse level may have as many edges as there are between nodes.
    level = kwargs.get("level", args[-1] if args else None)
    if isinstance(level, Level) and level.group_len is not None:
        assert block.conv is not None
        for layer in block.conv.modules():
            if isinstance(layer, MessagePassing):
                layer.explain = False


def explainable(model: Module) -> Module:
    r"""Adapts a model to :class:`torch_geometric.explain.Explainer`.

    Explainers call :obj:`model(x, edge_index, **kwargs)`, whereas layers on points take
    :obj:`(x, pos, edge_index)`. The result shares the model's weights. Everything after
    :obj:`edge_index` is given to the explainer by name: :obj:`pos`, and what the model
    takes besides, such as :obj:`batch` and :obj:`tree`. Message-passing layers on other
    edges, such as those of a coarse level, are left out: their :obj:`explain` becomes
    :obj:`False`.

    Args:
        model: :class:`~torch_geometric_erwin.nn.Erwin`,
            :class:`~torch_geometric_erwin.nn.MPNN`, or any module whose arguments are
            features first and, by name, :obj:`pos` and :obj:`edge_index`.

    Raises:
        TypeError: If it is not a module, or takes no :obj:`pos` or :obj:`edge_index`.

    Example:
        >>> import torch
        >>> from torch_geometric.explain import Explainer, GNNExplainer
        >>> from torch_geometric_erwin.nn import MPNN
        >>> explainer = Explainer(
        ...     explainable(MPNN(2, 8, 1, num_layers=1)),
        ...     GNNExplainer(epochs=2), explanation_type="model",
        ...     node_mask_type="object", edge_mask_type="object",
        ...     model_config=dict(mode="regression", task_level="node"))
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> out = explainer(torch.rand(3, 2), edge_index, pos=torch.rand(3, 3))
        >>> out.node_mask.shape, out.edge_mask.shape
        (torch.Size([3, 1]), torch.Size([2]))
    """
    return Explainable(model)
