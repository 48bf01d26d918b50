r"""Checks of modules, callables and other objects."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.nn.modules.module import _has_any_global_hook

_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)

_HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
)


def check_instance(name: str, value: object, kind: Any, text: str = "") -> None:
    r"""Checks the class of an argument.

    Args:
        name: The argument's name, for messages.
        value: The argument.
        kind: The class, or a tuple of classes.
        text: What the message calls the class. (default: its name)

    Raises:
        TypeError: If it is of another class.

    Example:
        >>> check_instance("mlp", 3, Module, "a module")
        Traceback (most recent call last):
        TypeError: 'mlp' must be a module (got 3)
    """
    if not isinstance(value, kind):
        text = text or f"a {kind.__name__}"
        given = repr(value)
        # The text of data, a tree or a tensor is too long for a message.
        if len(given) > 60 or isinstance(value, Tensor):
            given = f"'{type(value).__name__}'"
        raise TypeError(f"'{name}' must be {text} (got {given})")


def made_by(
    name: str, make: Callable[..., Any], what: str, *args: Any, **kwargs: Any
) -> Any:
    r"""Calls an argument that is callable; the error names it if it takes others.

    Args:
        name: The argument's name, for messages.
        make: The callable.
        what: The arguments that it is called with, in words, for messages.
        *args: These arguments.
        **kwargs: Further arguments, which a user chose for it.

    Raises:
        TypeError: If it cannot be called with them.

    Example:
        >>> import torch
        >>> made_by("norm", torch.nn.LayerNorm, "a number of channels", 8).eps
        1e-05
        >>> made_by("norm", torch.nn.LayerNorm, "a number of channels", 8, p=0.5)
        ... # doctest: +ELLIPSIS
        Traceback (most recent call last):
        TypeError: 'norm' takes no 'p', which was given (LayerNorm takes eps, ...)
    """
    try:
        form = signature(make)
    except ValueError:  # a function written in C may have no signature
        return make(*args, **kwargs)
    try:
        form.bind(*args, **kwargs)
    except TypeError as error:
        parameters = form.parameters.values()
        free = [p.name for p in parameters if p.kind not in _VARIADIC][len(args) :]
        wrong = [key for key in kwargs if key not in free]
        if wrong and all(p.kind is not Parameter.VAR_KEYWORD for p in parameters):
            kind = getattr(make, "__name__", repr(make))
            takes = f"takes {', '.join(free)}" if free else "takes no more"
            raise TypeError(
                f"'{name}' takes no '{wrong[0]}', which was given ({kind} {takes})"
            ) from None
        raise TypeError(f"'{name}' must take {what} (got {make}: {error})") from None
    return make(*args, **kwargs)


def check_call(name: str, module: Module, what: str, *args: Any) -> None:
    r"""Checks that a module can be called with so many arguments.

    Args:
        name: The argument's name, for messages.
        module: The module.
        what: The arguments that it is called with, in words, for messages.
        *args: As many values.

    Raises:
        TypeError: If it takes more or fewer.

    Example:
        >>> import torch
        >>> check_call("mlp", torch.nn.Tanh(), "two rows", None, None)
        Traceback (most recent call last):
        TypeError: 'mlp' must take two rows (got Tanh: too many positional arguments)
    """
    try:
        signature(module.forward).bind(*args)
    except TypeError as error:
        kind = type(module).__name__
        raise TypeError(f"'{name}' must take {what} (got {kind}: {error})") from None
    except ValueError:  # a compiled module may have no signature
        pass


def is_plain(module: Module, kind: type[Module]) -> bool:
    r"""Whether calling a module runs the :obj:`forward` of a class, and no hook.

    Args:
        module: The module.
        kind: The class.

    Example:
        >>> import torch
        >>> is_plain(torch.nn.SiLU(), torch.nn.SiLU)
        True
    """
    return (
        type(module) is kind
        and "forward" not in vars(module)
        and not any(getattr(module, name) for name in _HOOKS)
        and not _has_any_global_hook()
    )
