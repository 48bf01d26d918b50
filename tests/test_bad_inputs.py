"""Public functions, called with what they do not take: an error that names it.

`TENSORS` says what is done to one tensor of a valid call at a time, `NUMBERS` what is
given in place of a number. `tests/ops/test_contract.py` does the same to operators.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch_geometric.data import Data

from torch_geometric_erwin import (
    Level,
    ball_tree,
    batch_to_ptr,
    knn_graph,
    pad_batch,
    radius_graph,
)
from torch_geometric_erwin.nn import (
    BallAttention,
    BallPooling,
    BallUnpooling,
    Erwin,
    ErwinBlock,
    MPNNConv,
    ball_attention,
)
from torch_geometric_erwin.transforms import BallTree, TreeKNNGraph, TreeRadiusGraph

N = 20
ERRORS = (TypeError, ValueError)


def released(t):
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def halved(t):
    t = t.clone()
    t.untyped_storage().resize_(t.untyped_storage().nbytes() // 2)
    return t


def fake(t):
    with FakeTensorMode() as mode:
        return mode.from_tensor(t)


TENSORS = {
    "list": lambda t: t.tolist(),
    "array": lambda t: t.numpy(),
    "text": lambda t: "x",
    "data": lambda t: Data(),
    "meta": lambda t: t.to("meta"),
    "fake": fake,
    "released": released,
    "halved": halved,
    "sparse": lambda t: t.to_sparse(),
    "complex": lambda t: t.to(torch.complex64),
    "bool": lambda t: t.bool(),
    "int32": lambda t: t.int(),
    "scalar": lambda t: t.flatten()[0],
    "one more axis": lambda t: t[None],
    "short": lambda t: t.narrow(-1, 0, t.size(-1) - 1),
    "zero tensor": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
}
# What is right or, where nothing else says how many there are, cannot be told.
RIGHT = {
    *[(name, "pos", "short") for name in ("ball_tree", "update", "knn", "radius")],
    *[(name, "pos", "short") for name in ("levels", "Level.build")],
    *[("to_rows", "x", kind) for kind in ("complex", "bool", "int32", "short")],
    *[("to_nodes", "rows", kind) for kind in ("complex", "bool", "int32", "short")],
    ("ball_attention", "pos", "short"),
    ("BallTree", "pos", "short"),
    ("batch_to_ptr", "batch", "short"),
    ("MPNNConv", "edge_index", "short"),
    ("MPNNConv", "edge_index", "int32"),
    ("Erwin", "edge_index", "short"),
    ("Erwin of a batch", "edge_index", "short"),
    ("Erwin of Data", "edge_index", "short"),
}


@cache
def calls():
    torch.manual_seed(0)
    pos, x = torch.rand(N, 3), torch.rand(N, 8)
    ptr, batch = torch.tensor([0, 12, N]), torch.tensor([0] * 12 + [1] * 8)
    tree = ball_tree(pos, ptr, ball_sizes=4, strides=[2])
    q, k, v = torch.rand(3, N, 2, 4).unbind()
    ball_len, perm = tree.ball_len[0], tree.global_perm_rot(0)
    balls = {"ball_len": ball_len, "perm": perm}
    edge_index = torch.randint(0, 12, (2, 40))
    model = Erwin(8, [8, 8], 2, ball_sizes=4, mp_steps=1).eval()

    def of_data(**kwargs):
        return model(model.tree_transform()(Data(**kwargs)))

    def build(pos, ball_len, perm, ptr=None):
        return Level.build(pos, ball_len, ball_size=4, ptr=ptr, perm_rot=perm)

    def on_level(module):
        return lambda x, **kwargs: module(x, build(**kwargs).rotated())

    def on_levels(module, *names):
        """Of rows, positions and the lengths of groups."""

        def function(pos, group_len, **rows):
            fine, coarse = tree.levels(pos)
            levels = {"fine": fine, "coarse": replace(coarse, group_len=group_len)}
            return module(**rows, **{name: levels[name] for name in names})

        return function

    rows = {"x": x, "pos": pos}
    groups = {"pos": pos, "group_len": tree.group_len[0]}
    return {
        "ball_tree": (
            lambda pos, ptr: ball_tree(pos, ptr, ball_sizes=4, ties="coordinates"),
            {"pos": pos, "ptr": ptr},
        ),
        "update": (tree.update, {"pos": pos}),
        "validate": (
            lambda ptr: tree.validate(N, tree.config, ptr),
            {"ptr": ptr},
        ),
        "levels": (tree.levels, {"pos": pos}),
        "to_rows": (tree.to_rows, {"x": x}),
        "to_nodes": (tree.to_nodes, {"rows": x}),
        "Level.build": (build, {"pos": pos, "ptr": ptr, **balls}),
        "knn": (
            lambda pos, ptr: knn_graph(pos, 3, ptr, tree=tree),
            {"pos": pos, "ptr": ptr},
        ),
        "radius": (
            lambda pos, ptr: radius_graph(pos, 0.5, ptr),
            {"pos": pos, "ptr": ptr},
        ),
        "batch_to_ptr": (batch_to_ptr, {"batch": batch}),
        "ball_attention": (
            lambda **kwargs: ball_attention(**kwargs, ball_size=4),
            {"q": q, "k": k, "v": v, "pos": pos, "sigma": -torch.ones(2), **balls},
        ),
        "BallAttention": (on_level(BallAttention(8, 2, 4)), {**rows, **balls}),
        "ErwinBlock": (on_level(ErwinBlock(8, 2, 4)), {**rows, **balls}),
        "MPNNConv": (MPNNConv(8), {**rows, "edge_index": edge_index}),
        "BallPooling": (
            on_levels(BallPooling(8, 8, 2), "coarse"),
            {"x": x, **groups},
        ),
        "BallUnpooling": (
            on_levels(BallUnpooling(8, 8, 2), "fine", "coarse"),
            {"x": torch.rand(10, 8), "skip": x, **groups},
        ),
        "Erwin": (model, {**rows, "edge_index": edge_index, "ptr": ptr}),
        "Erwin of a batch": (model, {**rows, "edge_index": edge_index, "batch": batch}),
        "Erwin of Data": (of_data, {**rows, "edge_index": edge_index}),
        "BallTree": (lambda pos: BallTree(4)(Data(pos=pos)), {"pos": pos}),
    }


@pytest.mark.parametrize("name", [*calls()])
def test_valid_calls_are_served(name):
    function, kwargs = calls()[name]
    function(**kwargs)


@pytest.mark.filterwarnings("ignore:.*sparse.*")
@pytest.mark.parametrize("name", [*calls()])
def test_tensors_of_another_kind_are_refused(name):
    function, kwargs = calls()[name]
    accepted = []
    for argument, value in kwargs.items():
        for kind, damage in TENSORS.items():
            if (name, argument, kind) in RIGHT:
                continue
            try:
                function(**{**kwargs, argument: damage(value)})
                accepted.append((argument, kind))
            except ERRORS:
                pass
            except Exception as error:
                accepted.append((argument, kind, repr(error)[:100]))
    assert accepted == []


POS = torch.rand(N, 3)
TREE = ball_tree(POS, ball_sizes=4)
WRONG = [
    *["x", "", b"x", None, [], 1j, {}, object(), float("nan"), -float("inf"), -1],
    *[2.5, np.float64("nan"), np.array([2]), torch.tensor([2])],
]
FLAGS = [*WRONG[:7], 2, 1.0, float("nan"), "True"]
NUMBERS = {
    "k": (lambda v: knn_graph(POS, v), [*WRONG, True, 0]),
    "r": (lambda v: radius_graph(POS, v), [*WRONG[:11], True]),
    "loop": (lambda v: knn_graph(POS, 3, loop=v), FLAGS),
    "flow": (lambda v: knn_graph(POS, 3, flow=v), WRONG),
    "ball_sizes": (lambda v: ball_tree(POS, ball_sizes=v), [*WRONG, True, 0, 2**40]),
    "strides": (
        lambda v: ball_tree(POS, ball_sizes=[4, 4], strides=v),
        [*WRONG, True, 0, 2**40],
    ),
    "rotate": (
        lambda v: ball_tree(POS, ball_sizes=4, rotate=v),
        [*WRONG[:10], True, 361],
    ),
    "layout": (lambda v: ball_tree(POS, ball_sizes=4, layout=v), WRONG),
    "max_points": (
        lambda v: TREE.update(POS, max_points=v),
        [*[w for w in WRONG if w is not None], True, 3],
    ),
    "num_clouds": (
        lambda v: batch_to_ptr(torch.zeros(3, dtype=torch.int64), v),
        [*[w for w in WRONG if w is not None], True, 0],
    ),
    "num_nodes": (lambda v: TREE.pad(v, 3), [*WRONG, True, 3]),
    "TreeKNNGraph": (lambda v: TreeKNNGraph(3, loop=v), FLAGS),
    "TreeRadiusGraph": (lambda v: TreeRadiusGraph(1.0, loop=v), FLAGS),
    "pad_batch": (lambda v: pad_batch(BallTree(4)(Data(pos=POS)), 30, v), [*WRONG, 1]),
}


@pytest.mark.parametrize("name", [*NUMBERS])
def test_numbers_of_another_kind_are_refused(name):
    function, values = NUMBERS[name]
    accepted = []
    for value in values:
        try:
            function(value)
            accepted.append(value)
        except ERRORS:
            pass
    assert accepted == []
