"""Random calls with one wrong argument: they must raise an error."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from numpy.random import Generator
from torch import Tensor

from torch_geometric_erwin import (
    Level,
    ball_tree,
    batch_to_ptr,
    knn,
    knn_graph,
    radius,
    radius_graph,
)
from torch_geometric_erwin.nn.attention.ball_attention import ball_attention

PUBLIC_ERRORS = (TypeError, ValueError)
# Errors that PyTorch itself raises before or while it calls an operator.
OPERATOR_ERRORS = (*PUBLIC_ERRORS, RuntimeError, IndexError)


def _without_storage(x: Tensor) -> Tensor:
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


# Ways to spoil any tensor that has rows.
ANY_TENSOR: dict[str, Callable[[Tensor], Any]] = {
    "on meta": lambda x: x.to("meta"),
    "without storage": _without_storage,
    "complex": lambda x: x.to(torch.complex64),
    "bool": lambda x: x.bool(),
    "int32": lambda x: x.int(),
    "a row less": lambda x: x[1:],
    "no rows": lambda x: x[:0],
    "an axis more": lambda x: x[None],
    "a number": lambda x: x.flatten()[0],
}


def _set(x: Tensor, value: float) -> Tensor:
    x = x.clone()
    x.view(-1)[1] = value
    return x


POSITIONS = {
    "NaN": lambda x: _set(x, float("nan")),
    "infinite": lambda x: _set(x, float("inf")),
}
INDICES = {
    "-1": lambda x: _set(x, -1),
    "far away": lambda x: _set(x, 2**62),
    "twice": lambda x: _set(x, int(x[0]) if x.numel() > 3 else -1),
}
COUNTS = {"0": 0, "-1": -1, "1.5": 1.5, "text": "3", "None": None, "a list": [3]}


def _public(rng: Generator) -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    n = int(rng.integers(6, 60))
    pos = torch.from_numpy(rng.standard_normal((n, 3))).float()
    ptr, qkv = torch.tensor([0, 4, n]), torch.from_numpy(rng.random((3, n, 2, 4)))
    q, k, v = qkv.float()
    attention = {"q": q, "k": k, "v": v, "pos": pos, "ball_len": ptr.diff()}
    attention |= {"sigma": torch.ones(2), "ball_size": 64, "perm": torch.arange(n)}
    level = {"pos": pos, "ball_len": ptr.diff(), "ball_size": 64, "ptr": ptr}
    level["perm_rot"] = torch.arange(n)
    return [
        (ball_tree, {"pos": pos, "ptr": ptr, "ball_sizes": 8, "strides": [2]}),
        (knn_graph, {"pos": pos, "k": 3, "ptr": ptr}),
        (radius_graph, {"pos": pos, "r": 0.5, "ptr": ptr, "max_num_neighbors": 4}),
        (knn, {"x": pos, "y": -pos, "k": 3, "ptr_x": ptr, "ptr_y": ptr}),
        (radius, {"x": pos, "y": -pos, "r": 0.5, "ptr_x": ptr, "ptr_y": ptr}),
        (batch_to_ptr, {"batch": torch.arange(n) // 4}),
        (ball_attention, attention),
        (Level.build, level),
    ]


def _operators(rng: Generator) -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    n, edges = int(rng.integers(6, 60)), 30
    random = lambda *shape: torch.from_numpy(rng.random(shape)).float()  # noqa: E731
    pos, ptr = random(n, 3), torch.tensor([0, 4, n])
    balls = {"ball_sizes": [8], "strides": []}
    perm = torch.cat([torch.arange(4), torch.arange(n - 4)])
    search = {"pos": pos, "ptr": ptr, "perm": perm, **balls}
    pair = {"x": pos, "ptr_x": ptr, "perm_x": perm, **balls}
    pair |= {"y": random(n, 3), "ptr_y": ptr, "perm_y": perm}
    tree = {**search, "rotate": 45.0, "layout": "balanced"}
    del tree["perm"]
    ball = {"pos": pos, "ball_len": ptr.diff(), "sigma": random(2)}
    ball |= {"perm": torch.arange(n), "ball_size": 64, "scale": 0.5}
    qkv = dict(zip("qkv", random(3, n, 2, 4)))
    key = torch.from_numpy(rng.integers(0, n, edges))
    op = torch.ops.erwin
    group, order = op.group(key, n)
    rows = {"source_rows": random(n, 5), "target_rows": random(n, 5), "pos": pos}
    rows |= {"weight": random(5, 3), "norm_weight": random(5), "norm_bias": random(5)}
    rows |= {"eps": 1e-5, "source": key, "target": key}
    rows |= {"target_ptr": group, "target_order": order}
    leaving = {"source_ptr": group, "source_order": order}
    out, lse, centred, ends = op.ball_attention(**qkv, **ball)
    grads = {"grad": out, "out": out, "lse": lse, "centred": centred, "ends": ends}
    return [
        (op.ball_tree, tree),
        (op.ball_tree_order, {**tree, "num_rows": [n], "max_points": n}),
        (op.knn, {**search, "k": 3, "loop": False}),
        (op.cross_knn, {**pair, "k": 3}),
        (op.cross_radius, {**pair, "radius": 0.5, "cap": -1}),
        (op.radius, {**search, "radius": 0.5, "cap": -1, "loop": False}),
        (op.ball_attention, {**qkv, **ball}),
        (op.ball_attention_packed, {"qkv": random(n, 3, 2, 4), **ball}),
        (op.ball_attention_backward, {**grads, **qkv, **ball, "pos_grad": True}),
        (op.group, {"key": key, "groups": n}),
        (op.message, {**rows, **dict.fromkeys(leaving)}),
        (op.message_backward, {**rows, **leaving, "grad": random(n, 5)}),
    ]


def _faults(name: str, value: Any, searched: bool) -> dict[str, Callable[[], Any]]:
    """Ways to spoil an argument; `searched`: whether the call reads positions."""
    if isinstance(value, Tensor):
        faults = dict(ANY_TENSOR)
        if not value.is_floating_point():
            faults |= INDICES
        elif name == "pos" and searched:
            faults |= POSITIONS
        return {what: partial(f, value) for what, f in faults.items()}
    if isinstance(value, int) and not isinstance(value, bool):
        return {what: partial(_itself, x) for what, x in COUNTS.items()}
    return {}


def _itself(x: Any) -> Any:
    return x


# Changes that leave an argument valid, or change one that the call does not read.
_ALLOWED = {
    *[("cap", "0"), ("cap", "-1"), ("max_num_neighbors", "None")],
    *[("key", what) for what in ("twice", "a row less", "no rows", "on meta")],
    *[("batch", what) for what in ("twice", "a row less", "no rows", "far away")],
    *[(name, "twice") for name in ("source", "target", "ball_len")],
    *[(name, "twice") for name in ("source_ptr", "target_ptr")],
    *[(name, what) for name in ("max_points", "ball_size") for what in ("0", "-1")],
    *[(end, what) for end in ("centred", "ends") for what in ANY_TENSOR | INDICES],
    *[(torch.ops.erwin.message, "target", what) for what in INDICES],
}


def _refused(
    call: Callable[..., Any], arguments: dict[str, Any], errors: Any, rng: Generator
) -> None:
    searched = "ball_len" not in arguments and "target" not in arguments
    faults = [
        (name, what, make)
        for name, value in arguments.items()
        for what, make in _faults(name, value, searched).items()
        if (name, what) not in _ALLOWED and (call, name, what) not in _ALLOWED
    ]
    name, what, make = faults[rng.integers(len(faults))]
    described = f"{getattr(call, '__name__', call)} of '{name}' {what}"
    print(f"  {described}", flush=True)  # so that a crash can be named
    try:
        call(**{**arguments, name: make()})
    except errors as error:
        if not str(error):
            raise AssertionError("an error without a message") from error
    else:
        raise AssertionError("no error")


def bad_public(rng: Generator) -> None:
    """Public functions raise a TypeError or a ValueError."""
    calls = _public(rng)
    call, arguments = calls[rng.integers(len(calls))]
    _refused(call, arguments, PUBLIC_ERRORS, rng)


def bad_operators(rng: Generator) -> None:
    """Registered operators that are called directly raise an error."""
    calls = _operators(rng)
    call, arguments = calls[rng.integers(len(calls))]
    _refused(call, arguments, OPERATOR_ERRORS, rng)
