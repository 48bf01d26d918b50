"""Edges of coarse levels in heterogeneous data, compared with those of Data."""

import copy
import pickle

import pytest
import torch
from clouds import edged, randomised
from comparisons import assert_same
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader
from trees import random_pos

from torch_geometric_erwin import Tree
from torch_geometric_erwin.nn import Erwin, MPNNConv
from torch_geometric_erwin.transforms import BallTree, TreeKNNGraph
from torch_geometric_erwin.tree.reading import edge_store

BOND, NEAR = ("atom", "bond", "atom"), ("atom", "near", "atom")
SIZES = [9, 0, 1, 20, 2]


def alone(n):
    """The atoms and bonds of a molecule as Data."""
    data = edged(n)
    data.x = random_pos(n, 2, seed=1)
    return data


def molecule(n, near=True):
    atoms, data = alone(n), HeteroData()
    data["atom"].pos, data["atom"].x = atoms.pos, atoms.x
    data["residue"].pos = random_pos(n // 2, seed=3)
    data["element"].x = torch.rand(4, 2)  # without positions
    data[BOND].edge_index, data[BOND].edge_attr = atoms.edge_index, atoms.edge_attr
    inside = torch.stack([torch.arange(n // 2) * 2, torch.arange(n // 2)])
    data["atom", "in", "residue"].edge_index = inside
    if near:
        data[NEAR].edge_index = atoms.edge_index.flip(0)[:, n:]
    return data


CONFIGS = {
    "two levels": {"ball_sizes": 4, "strides": [2]},
    "no rotation": {"ball_sizes": 4, "strides": [2, 3], "rotate": 0.0},
    "perfect": {"ball_sizes": 4, "strides": [2], "layout": "perfect"},
    "prefix": {"ball_sizes": 4, "strides": [2], "prefix": "ball_"},
    "sorted": {"ball_sizes": 4, "strides": [2], "reorder": True},
}


@pytest.mark.parametrize("kwargs", CONFIGS.values(), ids=[*CONFIGS])
def test_equals_data(kwargs):
    transform, prefix = BallTree(**kwargs, edges=BOND), kwargs.get("prefix", "")
    single = [transform(molecule(n)) for n in SIZES]
    joined = Batch.from_data_list(single)
    whole = transform(Batch.from_data_list([*map(molecule, SIZES)]))
    atoms = Batch.from_data_list([*map(alone, SIZES)])
    expected = BallTree(**kwargs, edges=True)(atoms)
    tree = Tree.from_data(expected, prefix=prefix)
    copies = copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))
    for data in (joined, whole, *copies):
        assert_same(Tree.from_data(data["atom"], prefix=prefix), tree)
        assert torch.equal(data[BOND].edge_index, expected.edge_index)
        assert not Tree.from_data(data["residue"], prefix=prefix).edges
        assert edge_store(data["atom"]) is data[BOND]
        for own, given, n in zip(data.to_data_list(), single, SIZES, strict=True):
            part = BallTree(**kwargs, edges=True)(alone(n))
            for one in (own, given):
                ours = Tree.from_data(one["atom"], prefix=prefix)
                assert_same(ours, Tree.from_data(part, prefix=prefix))
            assert {*own["atom"]} == {*given["atom"]}
    for batch in DataLoader(single, batch_size=2):
        assert Tree.from_data(batch["atom"], prefix=prefix).edges


def test_one_type_of_edges_needs_no_name():
    data = molecule(20, near=False)
    del data["residue"], data["atom", "in", "residue"]
    transform = BallTree(4, [2], edges=True)
    tree = Tree.from_data(transform(data)["atom"])
    assert_same(tree, Tree.from_data(transform(alone(20))))
    data["residue"].pos = random_pos(9)
    data = TreeKNNGraph(2, edge_type=("residue", "next", "residue"))(data)
    data = transform(data)
    edges = data["residue", "next", "residue"].edge_index
    residues = Data(pos=data["residue"].pos, edge_index=edges)
    assert_same(Tree.from_data(data["atom"]), tree)
    assert_same(Tree.from_data(data["residue"]), Tree.from_data(transform(residues)))


@pytest.mark.parametrize("reorder", [False, True])
def test_edges_that_changed_are_refused(reorder):
    transform = BallTree(4, [2], edges=BOND, reorder=reorder)
    first, data, last = map(transform, map(molecule, (9, 30, 2)))
    changed = copy.copy(data)
    changed[BOND].edge_index = data[BOND].edge_index.flip(0)
    for whole, cloud in (
        (changed, 0),
        (Batch.from_data_list([first, changed, last]), 1),
    ):
        with pytest.raises(ValueError, match=f"edges of cloud {cloud} are not the 120"):
            Tree.from_data(whole["atom"])
        Tree.from_data(whole["residue"])
    other = copy.copy(data)
    other[NEAR].edge_index = data[BOND].edge_index.flip(0)  # of another type
    assert_same(Tree.from_data(other["atom"]), Tree.from_data(data["atom"]))
    del other[BOND]  # nobody can compare them any more
    assert_same(Tree.from_data(other["atom"]), Tree.from_data(data["atom"]))
    store = copy.copy(data["atom"])
    del other, data
    assert Tree.from_data(store).edges


def test_trees_of_edges_of_several_types_are_refused():
    parts = [BallTree(4, [2], edges=kind)(molecule(9)) for kind in (BOND, NEAR)]
    for part in parts:
        Tree.from_data(part["atom"])
    del parts[0][BOND].edge_attr, parts[0]["atom"].tree_edge_attr_1
    del parts[1][BOND].edge_attr
    batch = Batch.from_data_list(parts)
    message = r"edges of several types: \['atom__bond__atom', 'atom__near__atom'\]"
    with pytest.raises(ValueError, match=message):
        Tree.from_data(batch["atom"])


def test_a_tree_without_edges_replaces_one_that_has_them():
    data = BallTree(4, [2], edges=BOND)(molecule(9))
    assert data["atom"].tree_edge_type == "atom__bond__atom"
    data = BallTree(4, [2])(data)
    assert not any("tree_edge" in name for name in data["atom"])


def test_models_find_the_edges_of_a_node_store():
    options = {"ball_sizes": 4, "strides": 2, "conv": MPNNConv, "edge_dim": 2}
    model = randomised(Erwin(2, [8, 8], 3, mp_steps=1, **options)).eval().float()
    for prefix in ("", "ball_"):
        transform = BallTree(4, [2], edges=BOND, prefix=prefix)
        batch = Batch.from_data_list([transform(molecule(n)) for n in SIZES])
        plain = Batch.from_data_list([*map(alone, SIZES)])
        plain = BallTree(4, [2], edges=True)(plain)
        expected = model(plain)
        assert torch.equal(model(batch["atom"]), expected)
        given = {name: batch[BOND][name] for name in ("edge_index", "edge_attr")}
        assert torch.equal(model(batch["atom"], **given), expected)
    with pytest.raises(ValueError, match="'edge_index' is missing"):
        model(BallTree(4, [2])(molecule(9))["atom"])


REFUSED = {
    "several": (True, ValueError, r"one type .* 'atom' \(got \[\('atom', 'bond'"),
    "unknown": (
        ("atom", "to", "atom"),
        ValueError,
        r"'edges' must be one of the types",
    ),
    "no positions": (
        ("element",) * 3,
        ValueError,
        "needs a tree of 'element', whose pos",
    ),
}


@pytest.mark.parametrize(("edges", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_edges_that_data_lacks_are_refused(edges, error, message):
    data = molecule(9)
    data["element", "element", "element"].edge_index = torch.zeros(2, 0).long()
    with pytest.raises(error, match=message):
        BallTree(4, [2], edges=edges)(data)


def test_what_has_no_edges_is_refused():
    with pytest.raises(ValueError, match=r"nodes of type 'residue', 'data' has only"):
        BallTree(4, [2], edges=True)(molecule(9, near=False))
    data = molecule(9)
    del data[BOND].edge_index
    with pytest.raises(
        ValueError, match=r"'data\[\('atom', 'bond', 'atom'\)\]\.edge_in"
    ):
        BallTree(4, [2], edges=BOND)(data)
    with pytest.raises(
        TypeError, match=r"names a type of edges of HeteroData, 'data' m"
    ):
        BallTree(4, [2], edges=BOND)(alone(9))


@pytest.mark.parametrize(
    ("edges", "error", "message"),
    [
        (
            ("atom", "in", "residue"),
            ValueError,
            "'edges' must connect nodes of one type",
        ),
        (("atom", "atom"), TypeError, r"'edges' must be three words, such as .* \(got"),
        (("atom", 1, "atom"), TypeError, "'edges' must be three words"),
        ("atom", TypeError, r"'edges' must be a bool, or .* \(got 'atom'\)"),
        (1, TypeError, r"'edges' must be a bool, or .* \(got 1\)"),
    ],
)
def test_bad_edge_types(edges, error, message):
    with pytest.raises(error, match=message):
        BallTree(4, [2], edges=edges)


def test_repr_makes_the_transform_again():
    for transform in (BallTree(4, edges=[*BOND]), BallTree(4, edges=True), BallTree(4)):
        assert vars(eval(repr(transform))) == vars(transform)
    assert BallTree(4, edges=[*BOND]).edges == BOND
