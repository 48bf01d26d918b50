r"""Calling any message-passing layer with the arguments that it takes."""

from collections.abc import Callable
from functools import lru_cache
from inspect import Parameter, signature
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.nn import Sequential
from torch_geometric.typing import Adj, SparseTensor

from torch_geometric_erwin.utils.checks import (
    check_devices,
    check_edges,
    check_instance,
)

# What layers call their edges, and what no layer calls its features.
_EDGES = ("edge_index", "adj_t", "adj")
_OTHERS = (*_EDGES, "pos", "batch", "edge_attr")


class _Parameters(NamedTuple):
    # The parameters of a layer's forward pass.
    names: tuple[str, ...]
    required: tuple[str, ...]  # those without a default
    positional: tuple[str, ...]  # those that are passed by position
    features: Optional[str]  # the one that gets the features
    is_open: bool  # whether there is a '**kwargs'


def call_conv(
    conv: Module,
    x: Tensor,
    pos: Optional[Tensor] = None,
    edge_index: Optional[Adj] = None,
    edge_attr: Optional[Tensor] = None,
    *,
    batch: Optional[Tensor] = None,
    **kwargs: Any,
) -> Any:
    r"""Calls a layer with the arguments that its :meth:`forward` takes, by their names.

    The layer may be any of PyG's (:class:`~torch_geometric.nn.conv.GCNConv` takes the
    features and :obj:`edge_index`, :class:`~torch_geometric.nn.conv.PointNetConv` also
    :obj:`pos`, :class:`~torch_geometric.nn.conv.GINEConv` also :obj:`edge_attr`), or
    one that a user wrote. The parameter :obj:`x` gets the features, or the first one
    that is not for anything else. Positions, edges and :obj:`batch` are always there,
    so they are passed to layers that name them. :obj:`edge_attr` and further arguments
    are given on purpose, so a layer that cannot take one is an error.

    A layer that names nothing, because its parameters are :obj:`*args` and
    :obj:`**kwargs`, is called with the features, the edges and the given arguments.

    Args:
        conv: The layer.
        x: The node features.
        pos: The node positions; they are converted to the dtype of the features.
        edge_index: The edges, also as a sparse adjacency matrix if the layer takes one.
        edge_attr: The features of the edges.
        batch: The cloud of every node.
        **kwargs: Further arguments of the layer, such as :obj:`edge_weight`;
            :obj:`None` counts as not given.

    Shapes:
        - **x:** :math:`(N, C)`; **pos:** :math:`(N, D)`; **edge_index:**
          :math:`(2, E)`; **edge_attr:** :math:`(E, *)`; **batch:** :math:`(N)`;
          **output:** what the layer returns.

    If the layer itself fails, the error tells what it was called with.

    Raises:
        TypeError: If an argument that the layer needs was not given, or it does not
            take one that was, such as :obj:`edge_attr` without an :obj:`edge_dim`.

    Example:
        >>> from torch_geometric.nn import GATv2Conv, GCNConv
        >>> x, pos = torch.rand(3, 8), torch.rand(3, 2)
        >>> edge_index = torch.tensor([[0, 1], [1, 2]])
        >>> call_conv(GCNConv(8, 4), x, pos, edge_index).shape
        torch.Size([3, 4])
        >>> conv = GATv2Conv(8, 4, edge_dim=1)
        >>> call_conv(conv, x, pos, edge_index, edge_attr=torch.rand(2, 1)).shape
        torch.Size([3, 4])
    """
    parameters = _parameters(conv)
    given = {n: v for n, v in kwargs.items() if v is not None}
    if edge_attr is not None:
        given["edge_attr"] = edge_attr
        if not _has_edge_dim(conv):
            size = edge_attr.size(1) if edge_attr.dim() > 1 else 1
            raise TypeError(
                f"{_name(conv)} was built without 'edge_dim', so it takes no "
                f"'edge_attr', which was given: build it with 'edge_dim={size}'"
            )
    if not parameters.names:
        return _called(conv, (x, edge_index), given)
    for name in given:
        if name not in parameters.names and not parameters.is_open:
            raise TypeError(
                f"{_name(conv)} takes no '{name}', which was given (it takes "
                f"{', '.join(parameters.names)})"
            )
    edges = next((name for name in _EDGES if name in parameters.names), "edge_index")
    pos = None if pos is None else pos.to(x.dtype)
    at_hand = {parameters.features: x, "pos": pos, edges: edge_index, "batch": batch}
    for name in parameters.names:
        if at_hand.get(name) is not None:
            given[name] = at_hand[name]
    for name in parameters.required:
        if name not in given:
            raise TypeError(f"{_name(conv)} needs '{name}', which was not given")
    first = []
    for name in parameters.positional:
        if name not in given:
            break
        first.append(given.pop(name))
    return _called(conv, (*first,), given)


def takes_argument(conv: Module, name: str) -> bool:
    r"""Whether :func:`call_conv` can pass an argument of some name to a layer.

    Args:
        conv: The layer.
        name: The name of the argument.

    Example:
        >>> from torch_geometric.nn import GCNConv
        >>> [takes_argument(GCNConv(8, 8), n) for n in ("edge_weight", "edge_attr")]
        [True, False]
    """
    parameters = _parameters(conv)
    return parameters.is_open or name in parameters.names


def parameters_of(function: Callable[..., Any]) -> list[Parameter]:
    r"""Returns the parameters of a function, or of a module's :meth:`forward`.

    Args:
        function: The function or the module.

    Example:
        >>> from torch_geometric.nn import Sequential
        >>> model = Sequential("x, batch", [(torch.nn.Linear(2, 2), "x -> x")])
        >>> [parameter.name for parameter in parameters_of(model)]
        ['x', 'batch']
    """
    if isinstance(function, Module):
        # `torch.compile` hides the parameters, and so does PyG.
        module = getattr(function, "_orig_mod", function)
        if isinstance(module, Sequential):
            names = tuple(module.signature.param_dict)
            return [Parameter(n, Parameter.POSITIONAL_OR_KEYWORD) for n in names]
        function = module.forward
    return [*signature(function).parameters.values()]


def takes_edge_attr(conv: Module) -> bool:
    r"""Whether a layer takes features of edges.

    Layers of PyG do if they were built with an :obj:`edge_dim`, though all of them have
    the argument.

    Args:
        conv: The layer.

    Example:
        >>> from torch_geometric.nn import GATv2Conv
        >>> [takes_edge_attr(GATv2Conv(8, 8, edge_dim=d)) for d in (None, 1)]
        [False, True]
    """
    return takes_argument(conv, "edge_attr") and _has_edge_dim(conv)


def check_adjacency(name: str, edge_index: Adj, x: Tensor) -> None:
    r"""Checks edges in any form that PyG's layers take.

    Args:
        name: The argument's name, for messages.
        edge_index: The edges, or a sparse adjacency matrix.
        x: The node features.

    Raises:
        TypeError: If it is something else, or not int64.
        ValueError: If it does not fit the nodes.

    Example:
        >>> check_adjacency("adj_t", torch.eye(2).to_sparse(), torch.rand(3, 8))
        Traceback (most recent call last):
        ValueError: 'adj_t' must have shape [3, 3] as a sparse matrix (got [2, 2])
    """
    if not isinstance(edge_index, (Tensor, SparseTensor)):
        raise TypeError(
            f"'{name}' must be a tensor of shape [2, E] or a sparse adjacency matrix "
            f"(got '{type(edge_index).__name__}')"
        )
    if not isinstance(edge_index, Tensor):
        return
    if edge_index.layout is torch.strided:
        check_edges(name, edge_index, x.size(0))
    elif [*edge_index.shape] != [x.size(0)] * 2:
        raise ValueError(
            f"'{name}' must have shape {[x.size(0)] * 2} as a sparse matrix (got "
            f"{[*edge_index.shape]})"
        )
    check_devices(x=x, **{name: edge_index})


def _has_edge_dim(conv: Module) -> bool:
    return getattr(conv, "edge_dim", 1) is not None  # most layers have no such thing


# Errors that a layer does not raise on purpose, as a rule.
_RAW = (AssertionError, AttributeError, RuntimeError, TypeError)


def _called(conv: Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    if torch.compiler.is_compiling():
        return conv(*args, **given)
    try:
        return conv(*args, **given)
    except _RAW as error:
        kind = type(error)
        if kind not in _RAW:
            raise  # such as of memory, which callers handle
        names = _parameters(conv).names
        free = [name for name in names if name not in given]
        named = {**dict(zip(free or ("x", "edge_index"), args)), **given}
        missing = [f"'{name}'" for name in free[len(args) :]]
        named = {n: named[n] for n in sorted(named, key=(*names, *named).index)}
        without = f", without {', '.join(missing)}" if missing else ""
        reason = f": {error}" if str(error) else ""
        raise kind(
            f"{_name(conv)} fails when it is called with "
            f"{', '.join(f'{n}={_shape(v)}' for n, v in named.items())}{without}"
            f"{reason}"
        ) from error


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype}{[*value.shape]}".removeprefix("torch.")
    return type(value).__name__


def _name(conv: Module) -> str:
    return f"'{type(conv).__name__}'"


def _parameters(conv: Module) -> _Parameters:
    check_instance("conv", conv, Module, "a module")
    conv = getattr(conv, "_orig_mod", conv)
    function = getattr(conv.forward, "__func__", None)
    hidden = function is None or isinstance(conv, Sequential)
    if hidden or torch.compiler.is_compiling():
        return _sorted(parameters_of(conv))
    return _inspected(function)


# The key is the function, not the bound method, so that no layer is kept alive.
@lru_cache(maxsize=256)
def _inspected(function: Callable[..., Any]) -> _Parameters:
    return _sorted([*signature(function).parameters.values()][1:])


def _sorted(parameters: list[Parameter]) -> _Parameters:
    stars = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    named = [p for p in parameters if p.kind not in stars]
    names = tuple(p.name for p in named)
    free = [name for name in names if name not in _OTHERS]
    features = "x" if "x" in names else (free[0] if free else None)
    # Features that come first are passed by position, where hooks look for them.
    return _Parameters(
        names,
        tuple(p.name for p in named if p.default is Parameter.empty),
        tuple(
            p.name
            for i, p in enumerate(named)
            if p.kind == Parameter.POSITIONAL_ONLY
            or (i == 0 and p.name == features and p.kind != Parameter.KEYWORD_ONLY)
        ),
        features,
        any(p.kind == Parameter.VAR_KEYWORD for p in parameters),
    )
