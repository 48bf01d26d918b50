r"""One way to choose an implementation of an operator, which says why.

An implementation is a module, or whatever else has :obj:`why_not`, which says why it
cannot serve a call, and :obj:`run`.
"""

from collections.abc import Callable
from typing import Any, Optional, Protocol


class Implementation(Protocol):
    r"""What serves calls of an operator."""

    why_not: Callable[..., str]
    run: Callable[..., Any]


class Registry(dict[str, Implementation]):
    r"""The implementations of an operator by name, the preferred ones first.

    The last one can serve every call.

    Example:
        >>> from types import SimpleNamespace as Module
        >>> few = Module(why_not=lambda n: "" if n < 3 else "it takes 2", run=min)
        >>> registry = Registry(few=few, any=Module(why_not=lambda n: "", run=max))
        >>> registry.choose(2), registry.choose(5), registry.explain(5)
        ('few', 'any', {'few': 'it takes 2', 'any': ''})
    """

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
