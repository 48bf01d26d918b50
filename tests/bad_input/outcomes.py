"""The outcome of a call with a spoiled argument: a clear error, a result, or else."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bad_input.calls import Call
from bad_input.kinds import FREE, REFUSED, SAME, Kind
from torch.utils import _pytree as pytree
from torch_geometric.data.data import BaseData

import torch_geometric_erwin

PACKAGE = Path(torch_geometric_erwin.__file__).parent
ERRORS = (TypeError, ValueError)
# Words with which messages say what would be right, what is missing or what to do.
ADVICE = re.compile(
    r"must|need|missing|expected|takes|takes no|apply|give|choose|convert|"
    r"is on|fits?\b|has \d|remove|cannot|needs|not|is empty|is for"
)


class Outcome(NamedTuple):
    kind: str  # "clear error", "works" or "anything else"
    text: str


def blamed(error: Exception) -> Path:
    """The file that raised it."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return Path(trace.tb_frame.f_code.co_filename)


def values(result: Any) -> list[Any]:
    """The tensors and constants of a result, in one list."""
    if isinstance(result, BaseData):
        result = {k: result[k] for k in sorted(result.keys())}
    return pytree.tree_leaves(result)


def difference(actual: Any, expected: Any) -> str:
    """How two results differ; empty if they are equal."""
    one, other = values(actual), values(expected)
    if len(one) != len(other):
        return f"{len(one)} values, not {len(other)}"
    for a, b in zip(one, other):
        if not isinstance(b, torch.Tensor):
            if a != b:
                return f"{a!r}, not {b!r}"
        elif not isinstance(a, torch.Tensor) or a.shape != b.shape:
            return f"another shape than {[*b.shape]}"
        elif a.dtype != b.dtype:
            return f"{a.dtype}, not {b.dtype}"
        elif not torch.allclose(
            a.detach().double(), b.detach().double(), rtol=1e-5, atol=1e-5
        ):
            return "other values"
    return ""


def is_finite(result: Any) -> bool:
    floats = [
        t
        for t in values(result)
        if isinstance(t, torch.Tensor) and t.is_floating_point()
    ]
    return all(bool(t.float().isfinite().all()) for t in floats)


def run(call: Call, changes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    given = {name: argument.value for name, argument in call.arguments.items()}
    # Either offsets or the batch are given, and the other is computed.
    given = {**given, **changes}
    for suffix in ("", "_x", "_y"):
        ptr, batch = f"ptr{suffix}", f"batch{suffix}"
        if ptr in given and batch in given:
            del given[ptr if batch in changes else batch]
    return call.function(**given)


def is_clear(error: Exception, names: tuple[str, ...]) -> str:
    """What is unclear about an error; empty if it is clear."""
    text = str(error)
    if not isinstance(error, ERRORS):
        return "the class of the error"
    if not blamed(error).is_relative_to(PACKAGE):
        return f"raised in {blamed(error).name}"
    # The name as a word, or as the start of one: 'perm' in 'perm_rot_0'.
    if not any(re.search(rf"\b{re.escape(n)}(\b|_)", text) for n in names):
        return "it names no argument"
    if not ADVICE.search(text):
        return "it does not say what is right"
    return ""


#: Kinds after which two arguments disagree on a size: a message may name either.
DISAGREEMENTS = (
    *("empty", "a row less", "a row more", "an entry less", "an entry more"),
    *("one more axis", "axes swapped", "of other rows"),
)

#: Parts of trees, levels and data, by the names in kinds.
PARTS = (
    *("perm_rot", "perm", "node_ptr", "level", "ball_len", "group_len", "config"),
    *("ball_size", "ptr", "pos", "offset", "children", "tree_node", "tree_code"),
    *("tree_config", "edge_index", "edge", "states", "boundary_mask", "x", "y"),
)


def parts(kind: str) -> list[str]:
    """The part of an argument that a kind spoils; a message may name it."""
    kind = kind.removeprefix("without ").replace(" ", "_")
    return [part for part in PARTS if re.match(rf"{part}(s?_|s?$)", kind)]


def outcome(call: Call, name: str, kind: Kind, expected: Any) -> Outcome:
    """Makes a call with one spoiled argument and classifies what happens."""
    argument = call.arguments[name]
    value = kind.spoil(argument.value)
    wanted = FREE if kind.name in argument.fine else kind.expected
    names = (name, *argument.names, *parts(kind.name))
    if kind.name in DISAGREEMENTS:
        names = (*names, *call.arguments)
    try:
        result = run(call, {name: value})
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        unclear = is_clear(error, names)
        if wanted == SAME:
            return Outcome("anything else", f"refused: {text}")
        if unclear:
            return Outcome("anything else", f"{unclear}: {text}")
        return Outcome("clear error", text)
    if wanted == REFUSED:
        return Outcome("anything else", "accepted")
    if wanted == SAME:
        wrong = difference(result, expected)
        if wrong:
            return Outcome("anything else", f"another result: {wrong}")
    elif kind.name not in NOT_FINITE and not is_finite(result):
        return Outcome("anything else", "a result that is not finite")
    return Outcome("works", "")


#: Kinds with numbers that are not finite, or so large that they overflow.
NOT_FINITE = (
    *("NaN", "infinity", "overflow", "all overflow", "pos NaN", "pos infinite"),
    *("states NaN", "states infinite"),
)
