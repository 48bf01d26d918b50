"""A tree whose positions were replaced or shuffled by hand causes a warning."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader

from torch_geometric_erwin import Tree, ball_tree
from torch_geometric_erwin.nn import Erwin
from torch_geometric_erwin.transforms import BallTree
from torch_geometric_erwin.tree.fit import warn_of_order

MESSAGE = "does not suit its positions: 'pos' was replaced"


def positions(n, dim, kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pos = torch.randn(n, dim, generator=generator)
    if kind == "uniform":
        return torch.rand(n, dim, generator=generator)
    if kind == "stretched":
        return pos * 0.1 ** torch.arange(dim)
    if kind == "graded":
        return pos.sign() * pos.abs() ** 6
    if kind == "far":
        return pos + 1e5
    if kind == "line":
        return pos[:, :1].expand(n, dim).contiguous()
    return pos


KINDS = ["normal", "uniform", "stretched", "graded", "far", "line"]


def warned(pos, tree_of, **kwargs):
    data = BallTree(8, [2], **kwargs)(Data(pos=tree_of))
    data.pos = pos
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Tree.from_data(data)
    return any(MESSAGE in str(w.message) for w in caught)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [64, 1000])
def test_shuffled_rows_are_seen(kind, dim, n):
    pos = positions(n, dim, kind)
    shuffled = pos[torch.randperm(n, generator=torch.Generator().manual_seed(1))]
    for layout in ("balanced", "perfect"):
        assert warned(shuffled, pos, layout=layout)
        assert not warned(pos, pos, layout=layout)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 2, 3, 8])
def test_other_positions_are_seen(kind, dim):
    assert warned(positions(500, dim, kind, 1), positions(500, dim, kind, 0))


@given(
    st.integers(0, 200), st.integers(1, 40), st.sampled_from(KINDS), st.integers(0, 99)
)
@settings(deadline=None, max_examples=100)
def test_no_warning_for_the_own_positions(n, dim, kind, seed):
    pos = positions(n, dim, kind, seed)
    assert not warned(pos, pos)
    assert not warned(0.5 * pos - 3.0, pos)


def test_no_warning_for_a_small_motion():
    pos = positions(1000, 3, "normal")
    spacing = 0.1  # about the distance of the nearest nodes
    moved = pos + spacing * positions(1000, 3, "normal", seed=1)
    assert not warned(moved, pos)


@pytest.mark.parametrize("n", [16, 20, 30, 64])
@pytest.mark.parametrize("dim", [2, 3])
def test_no_warning_for_a_small_motion_of_many_small_clouds(n, dim):
    pos = torch.rand(500 * n, dim, generator=torch.Generator().manual_seed(0))
    tree = ball_tree(pos, ptr=torch.arange(0, 500 * n + 1, n), ball_sizes=8)
    moved = pos + 0.05 * torch.randn(pos.shape, generator=torch.Generator())
    warn_of_order(tree, moved)


def test_no_warning_for_few_or_coincident_nodes():
    for pos in (torch.rand(63, 3), torch.ones(90, 3), torch.rand(90, 9)):
        assert not warned(pos.flip(0), pos)


def test_one_cloud_of_a_batch_is_named():
    clouds = [Data(pos=torch.rand(n, 2)) for n in (200, 0, 80, 100)]
    batch = Batch.from_data_list([BallTree(8)(data) for data in clouds])
    ptr = batch.ptr.tolist()
    batch.pos[ptr[2] : ptr[3]] = batch.pos[ptr[2] : ptr[3]][torch.randperm(80)]
    with pytest.warns(UserWarning, match=f"the tree of cloud 2 {MESSAGE}") as caught:
        Tree.from_data(batch)
    assert caught[0].filename == __file__  # the line that reads the tree


def test_a_model_warns_and_names_the_line():
    torch.manual_seed(0)
    model = Erwin(0, [8, 8], 1, ball_sizes=8, dim=2, mp_steps=0).eval()
    data = model.tree_transform()(Data(pos=torch.rand(300, 2)))
    model(data)
    other = copy.copy(data)
    other.pos = data.pos[torch.randperm(300)]
    for call in (
        lambda: model(other),
        lambda: model(next(iter(DataLoader([other])))),
        lambda: model(None, other.pos, tree=Tree.from_data(data)),
    ):
        with pytest.warns(UserWarning, match=MESSAGE) as caught:
            call()
        assert caught[0].filename == __file__


def test_no_warning_after_update():
    model = Erwin(0, [8, 8], 1, ball_sizes=8, dim=2, mp_steps=0).eval()
    c = model.tree_config
    pos = torch.rand(300, 2)
    tree = ball_tree(pos, ball_sizes=c.ball_sizes, strides=c.strides)
    pos = torch.rand(300, 2)
    model(None, pos, tree=tree.update(pos))
    with pytest.warns(UserWarning, match=MESSAGE):
        model(None, pos, tree=tree)
