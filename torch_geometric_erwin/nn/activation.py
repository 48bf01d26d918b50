r"""Making activations by name."""

from collections.abc import Callable
from typing import Any, Optional, Union

from torch import Tensor
from torch.nn import Module
from torch_geometric.nn.resolver import activation_resolver

from torch_geometric_erwin.utils.checks import check_instance, made_by

#: A name, a module, a class of modules, or a function of a tensor.
Activation = Union[str, Module, Callable[..., Any]]


class Function(Module):
    r"""A function as a module.

    Args:
        function: The function.
        **kwargs: Its arguments after the first.

    Example:
        >>> import torch
        >>> Function(torch.clamp, min=0)(torch.tensor([-1.0, 1.0]))
        tensor([0., 1.])
    """

    def __init__(self, function: Callable[..., Tensor], **kwargs: Any) -> None:
        super().__init__()
        self.function = function
        self.kwargs = kwargs

    def forward(self, x: Tensor) -> Tensor:
        r"""Runs the forward pass of the module."""
        return self.function(x, **self.kwargs)

    def __repr__(self) -> str:
        return f"{getattr(self.function, '__name__', self.function)}()"


def make_activation(act: Activation, kwargs: Optional[dict[str, Any]] = None) -> Module:
    r"""Makes an activation by its name, or by a callable.

    Args:
        act: A name that PyG's :obj:`activation_resolver` knows, a module, a class of
            modules, or a function of a tensor.
        kwargs: Further arguments of the activation.

    Raises:
        TypeError: If it is none of these, or takes other arguments.
        ValueError: If no activation has that name.

    Example:
        >>> make_activation("leaky_relu", {"negative_slope": 0.2})
        LeakyReLU(negative_slope=0.2)
    """
    kwargs = {} if kwargs is None else kwargs
    check_instance("act_kwargs", kwargs, dict)
    if isinstance(act, str):
        try:
            found = activation_resolver(act, **kwargs)
        except (TypeError, ValueError) as error:
            raise type(error)(f"'act' must be an activation ({error})") from None
        return found if isinstance(found, Module) else Function(found, **kwargs)
    if isinstance(act, Module):
        return act
    if not callable(act):
        raise TypeError(f"'act' must be a name, a module or a callable (got {act!r})")
    if not isinstance(act, type):
        return Function(act, **kwargs)
    module = made_by("act", act, f"the arguments {[*kwargs]}", **kwargs)
    if not isinstance(module, Module):
        raise TypeError(f"'act' must make a module (got '{type(module).__name__}')")
    return module
