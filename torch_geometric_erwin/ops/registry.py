r"""One way to choose an implementation of an operation, which says why.

An implementation is a module, or whatever else has :obj:`why_not`, which says why it
cannot serve a call, and :obj:`run`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional, Protocol


class Implementation(Protocol):
    r"""What serves calls of an operation."""

    @property
    def why_not(self) -> Callable[..., str]:
        r"""Why it cannot serve a call, empty if it can."""

    @property
    def run(self) -> Callable[..., Any]:
        r"""Serves a call."""


def serves_all(*args: Any) -> str:
    r"""Why the implementation of last resort cannot serve a call: it can."""
    return ""


@dataclass
class Functions:
    r"""An implementation that is no module."""

    run: Callable[..., Any]
    why_not: Callable[..., str] = serves_all


#: Every operation that has several implementations, and whose module was imported.
OPERATIONS: dict[str, "Registry"] = {}


class Registry(dict[str, Implementation]):
    r"""The implementations of an operation by name, the preferred ones first.

    The last one can serve every call. All take the same arguments, and are asked with
    those, or the first of them.

    Args:
        operation: What :func:`explain` calls it.
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
        r"""For each implementation why it cannot serve a call, empty if it can.

        Args:
            *args: What the implementations ask for.
        """
        return {name: module.why_not(*args) for name, module in self.items()}

    def choose(self, *args: Any, wanted: Optional[str] = None) -> str:
        r"""The wanted implementation, or the first that can serve a call.

        Args:
            *args: What the implementations ask for.
            wanted: The name of one.

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
    r"""For each implementation of an operation why it cannot serve a call, empty if it
    can: the first of these does.

    Args:
        operation: One of :data:`OPERATIONS`.
        *args: What its implementations ask for.

    Example:
        >>> import torch
        >>> from torch_geometric_erwin.ops import linear
        >>> explain("linear", torch.rand(2, 3), torch.rand(4, 3))["onednn"]
        'a product this small is done before oneDNN has started'
    """
    return OPERATIONS[operation].explain(*args)
