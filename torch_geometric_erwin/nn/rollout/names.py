r"""Calling models and functions with the arguments that they name."""

from collections.abc import Callable
from inspect import Parameter
from typing import Any, NamedTuple

from torch_geometric_erwin.nn.conv.call import parameters_of

# Without them there is one cloud, or no tree: `None` says so.
_MAY_BE_NONE = ("batch", "ptr", "tree")


class Taken(NamedTuple):
    r"""The arguments that a model or a function is called with by name."""

    owner: str  # for messages
    names: tuple[str, ...]
    required: tuple[str, ...]  # those without a default

    def of(self, **given: Any) -> dict[str, Any]:
        r"""Returns the arguments to call it with.

        Args:
            **given: All that there are; :obj:`None` is what the data does not have.

        Raises:
            ValueError: If one is missing that has no default.

        Example:
            >>> taken = taken_names("graph", lambda pos, batch: ..., ["batch", "tree"])
            >>> taken.of(batch=None, tree=None)
            {'batch': None}
        """
        for name in self.required:
            if given[name] is None and name not in _MAY_BE_NONE:
                raise ValueError(f"'{name}' is missing, which '{self.owner}' needs")
        return {
            name: given[name]
            for name in self.names
            if given[name] is not None or name in self.required
        }


def taken_names(owner: str, function: Callable[..., Any], known: list[str]) -> Taken:
    r"""Returns which arguments a model or a function takes.

    One that has a :obj:`**kwargs` takes all. Offsets and clouds say the same: of
    :obj:`ptr` and :obj:`batch` it gets the first one that it names.

    Args:
        owner: What messages call it.
        function: The model or the function. Its first argument is not looked at.
        known: The names of all arguments that there may be.

    Raises:
        TypeError: If it needs another one.

    Example:
        >>> from functools import partial
        >>> from torch_geometric_erwin import knn_graph
        >>> graph = partial(knn_graph, k=8)
        >>> taken_names("graph", graph, ["batch", "ptr", "tree"]).names
        ('ptr', 'tree')
    """
    parameters = parameters_of(function)
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    named = {p.name: p for p in parameters if p.kind in by_name}
    for name in [*named][1:]:
        if name not in known and _is_required(named[name]):
            raise TypeError(
                f"'{owner}' needs '{name}', which it does not get: after its first "
                f"argument it gets what it names of {known}"
            )
    names = [name for name in known if name in named]
    if any(p.kind == Parameter.VAR_KEYWORD for p in parameters):
        names = [n for n in known if n in names or n != "batch"]
        if "batch" in named and "ptr" not in named:
            names.remove("ptr")
    required = [name for name in names if _is_required(named.get(name))]
    if "batch" in names and "ptr" in names:
        other = "ptr" if "batch" in required else "batch"
        if other not in required:
            names.remove(other)
    return Taken(owner, tuple(names), tuple(required))


def _is_required(parameter: Any) -> bool:
    return parameter is not None and parameter.default is Parameter.empty
