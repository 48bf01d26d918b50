"""Wrong arguments of hybrid layers, and far units of length."""

import pytest
import torch
from clouds import cloud
from hybrid_layers import B, C, args_of, batch_of, layer_of
from torch_geometric.nn import GCNConv

from torch_geometric_erwin import Tree, ball_tree
from torch_geometric_erwin.nn import BallAttention, HybridConv


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"conv": 3}, TypeError, r"'conv' must be a module or None \(got 3\)"),
        ({"attention": "all"}, ValueError, "'attention' must be one of"),
        ({"heads": 3}, ValueError, "'heads' must divide"),
        ({"attn_kwargs": {"dropout": 0.5}}, TypeError, "takes no 'dropout', which"),
        ({"attention": 4}, TypeError, r"'attention' .*\(got 4\); .*'heads=4'"),
        ({"norm": "group"}, ValueError, "'norm' must be one of"),
        ({"norm_kwargs": {"mode": 1}}, TypeError, "'mode'"),
        ({"act": "sharp"}, ValueError, "'act' must be an activation"),
        ({"act": 3}, TypeError, "'act' must be a name, a module or a callable"),
        ({"act_kwargs": {"slope": 1}}, TypeError, "'act' must be an activation"),
        ({"dropout": 1.0}, ValueError, "'dropout' must be at least 0 and below 1"),
        ({"rotated": 1}, TypeError, "'rotated' must be a bool"),
    ],
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        HybridConv(**{"channels": C, "conv": None, **kwargs})


def test_bad_inputs():
    layer = layer_of("gcn", rotated=True).double()
    batch = batch_of()
    args = args_of(batch)
    ptr = batch.ptr

    def tree_of(**kwargs) -> Tree:
        return ball_tree(batch.pos, ptr=ptr, **{"ball_sizes": B, **kwargs})

    for more, message in (
        ({"tree": tree_of(ball_sizes=16)}, r"at most 'ball_size=8' .*\(got 16\)"),
        ({"tree": tree_of(rotate=0)}, "'tree' must have a rotated tree"),
        (
            {"tree": ball_tree(batch.pos[:9], ball_sizes=B)},
            "the tree does not fit its data: 'perm' has 9 entries for 61 nodes",
        ),
        ({"ptr": ptr, "batch": batch.batch}, "'batch' and 'ptr' say the same"),
        (
            {"ptr": ptr, "batch": batch.batch, "tree": tree_of()},
            "'batch' and 'ptr' say the same",
        ),
        (
            {"tree": tree_of(), "batch": torch.zeros_like(batch.batch)},
            "'batch' or 'ptr' must be of the clouds that the tree was built for",
        ),
        (
            {"tree": tree_of(), "ptr": torch.tensor([0, 61])},
            "'batch' or 'ptr' must be of the clouds that the tree was built for",
        ),
        ({"batch": batch.batch[1:]}, "'batch' must have an entry for each of 61 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(*args, **more)
    x, pos, edge_index = args
    with pytest.raises(TypeError, match=r"'x' is torch\.float32, the weights are"):
        layer(x.float(), pos, edge_index)
    with pytest.raises(ValueError, match=r"'pos' must have 3 .*'dim=2'"):
        layer(x, pos[:, :2], edge_index)
    with pytest.raises(ValueError, match="'edge_index' must name one of 61 nodes"):
        layer(x, pos, edge_index + 30)
    with pytest.raises(TypeError, match=r"arguments are \(x, pos, edge_index, batch"):
        layer(x, edge_index, batch.batch)  # the order of `GPSConv`
    with pytest.raises(TypeError, match="'GCNConv' takes no 'edge_attr'"):
        layer(*args, edge_attr=batch.edge_attr)
    with pytest.raises(TypeError, match="'GCNConv' needs 'edge_index'"):
        layer(x, pos)
    with pytest.raises(TypeError, match="there is none that takes 'edge_attr'"):
        HybridConv(C, None).double()(x, pos, edge_attr=batch.edge_attr)
    wide = HybridConv(C, GCNConv(C, 2 * C)).double()
    with pytest.raises(ValueError, match=r"'conv\(x\)' must have shape \[61, 8\]"):
        wide(*args)


def test_relative_distances_do_not_depend_on_the_unit():
    layer = HybridConv(
        C, None, heads=2, ball_size=B, attn_kwargs={"distance": "relative"}
    )
    layer.double()
    assert isinstance(layer.attention, BallAttention)
    data = cloud(30, channels=C)
    tree = ball_tree(data.pos, ball_sizes=B)
    outs = [layer(data.x, unit * data.pos, tree=tree) for unit in (1, 1000)]
    torch.testing.assert_close(*outs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("unit", [1e-4, 1e4])
def test_far_units_are_told_once(unit):
    data = cloud(30, channels=C)
    layer = HybridConv(C, None, heads=2, ball_size=B, rotated=True).double()
    pos = unit * data.pos
    with pytest.warns(
        UserWarning, match="balls extend over about .*'relative'"
    ) as told:
        layer(data.x, pos)
    assert told[0].filename == __file__
    number = float(str(told[0].message).split("about ")[1].split(",")[0])
    (extents,) = ball_tree(pos, ball_sizes=B).extents(pos)
    assert number == pytest.approx(float(extents.median()), rel=0.1)
    layer(data.x, pos)  # a warning is an error


def test_far_units_under_transforms():
    data = cloud(30, channels=C)
    tree, pos = ball_tree(data.pos, ball_sizes=B), 1e4 * data.pos
    for call in (
        lambda layer: torch.func.grad(lambda p: layer(data.x, p).sum())(pos),
        lambda layer: torch.vmap(lambda p: layer(data.x, p, tree=tree))(pos[None]),
    ):
        layer = HybridConv(C, None, heads=2, ball_size=B, norm="layer").double()
        with pytest.warns(UserWarning, match="balls extend over about"):
            call(layer)


def test_units_that_are_no_reason_to_warn():
    data = cloud(30, channels=C)
    relative = {"distance": "relative"}
    for factor, kwargs in (
        (10.0, {}),
        (1e4, {"attn_kwargs": relative}),
        (1e4, {"attention": lambda *sizes: Scaled()}),  # has a unit of its own
        (0.0, {}),
    ):
        layer = HybridConv(C, None, heads=2, ball_size=B, **kwargs).double()
        layer(data.x, factor * data.pos)
    layer(data.x[:0], data.pos[:0])
    layer(data.x[:1], 1e6 * data.pos[:1])


class Scaled(torch.nn.Module):
    def forward(self, x, level):
        return x
