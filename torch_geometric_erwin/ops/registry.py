r"""Choosing an implementation of an operation, and explaining the choice.

An implementation is a module, or another object, with two functions: :obj:`run` serves
a call, and :obj:`why_not` says why it cannot serve one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional, Protocol


class Implementation(Protocol):
    r"""An implementation of an operation."""

    @property
    def why_not(self) -> Callable[..., str]:
        r"""Says why it cannot serve a call; empty if it can."""

    @property
    def run(self) -> Callable[..., Any]:
        r"""Serves a call."""


def serves_all(*args: Any) -> str:
    r"""Returns an empty text: the :obj:`why_not` of what can serve every call."""
    return ""


@dataclass
class Functions:
    r"""An implementation that consists of two functions and is not a module."""

    run: Callable[..., Any]
    why_not: Callable[..., str] = serves_all


#: All operations with several implementations whose modules have been imported.
OPERATIONS: dict[str, "Registry"] = {}


class Registry(dict[str, Implementation]):
    r"""The implementations of an operation by name, the preferred ones first.

    The last one can serve every call. :obj:`run` takes the same arguments in all of
    them, and :obj:`why_not` takes these, or the first ones of these.

    Args:
        operation: The operation's name, for :func:`explain`.
        **implementations: The implementations.

    Example:
        >>> few = Functions(min, lambda *args: "" if len(args) < 3 else "it takes 2")
        >>> registry = Registry("least", few=few, any=Functions(min))
        >>> registry.choose(2, 5), registry.choose(2, 5, 1)
        ('few', 'any')
        >>> explain("least", 2, 5, 1)
        {'few': 'it takes 2', 'any': ''}
        >>> del OPERATIONS["least"]
    """

    def __init__(self, operation: str, **implementations: Implementation) -> None:
        super().__init__(implementations)
        OPERATIONS[operation] = self

    def explain(self, *args: Any) -> dict[str, str]:
        r"""Says for each implementation why it cannot serve a call; empty if it can.

        Args:
            *args: The arguments of :obj:`why_not`.
        """
        return {name: module.why_not(*args) for name, module in self.items()}

    def choose(self, *args: Any, wanted: Optional[str] = None) -> str:
        r"""Returns the wanted implementation, or the first that can serve a call.

        Args:
            *args: The arguments of :obj:`why_not`.
            wanted: The name of an implementation.

        Raises:
            ValueError: If the wanted one does not exist or cannot serve the call.
        """
        if wanted is None:
            return next(n for n, module in self.items() if not module.why_not(*args))
        if wanted not in self:
            raise ValueError(f"'backend' must be one of {[*self]} (got {wanted!r})")
        reason = self[wanted].why_not(*args)
        if reason:
            raise ValueError(f"the backend '{wanted}' cannot run: {reason}")
        return wanted


def explain(operation: str, *args: Any) -> dict[str, str]:
    r"""Says for each implementation of an operation why it cannot serve a call.

    The text is empty if it can. The first of those that can serves the call.

    Args:
        operation: One of :data:`OPERATIONS`.
        *args: The arguments of :obj:`why_not`.

    Example:
        >>> import torch
        >>> from torch_geometric_erwin.ops import linear
        >>> explain("linear", torch.rand(2, 3), torch.rand(4, 3))["onednn"]
        'a product this small is done before oneDNN has started'
    """
    return OPERATIONS[operation].explain(*args)
