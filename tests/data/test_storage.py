import re

import pytest
import torch
from torch.utils import _pytree as pytree
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader

from torch_geometric_erwin import Tree, TreeConfig
from torch_geometric_erwin.data.storage import (
    attach_tree,
    is_tree_attribute,
    stored_tree,
)
from torch_geometric_erwin.nn import Erwin
from torch_geometric_erwin.transforms import BallTree
from torch_geometric_erwin.tree.builder import build_tree
from torch_geometric_erwin.tree.reading import store_ptr

SIZES = [9, 0, 1, 20]


def cloud(n):
    generator = torch.Generator().manual_seed(n)
    return Data(pos=torch.randn(n, 2, generator=generator))


def batch_of(sizes):
    return Batch.from_data_list([cloud(n) for n in sizes])


def tree_of(data, config):
    return build_tree(data.pos, store_ptr(data), config)


def assert_same(a, b):
    assert a.config == b.config
    (x, spec), (y, other) = pytree.tree_flatten(a), pytree.tree_flatten(b)
    assert spec == other
    for s, t in zip(x, y, strict=True):
        assert s is t is None or (s.dtype == t.dtype and torch.equal(s, t))


def test_store_ptr():
    batch = batch_of(SIZES)
    assert store_ptr(batch).tolist() == [0, 9, 9, 10, 30]
    assert store_ptr(cloud(3)) is None
    sorted_batch = Data(pos=torch.zeros(3, 2), batch=torch.tensor([0, 0, 2]))
    assert store_ptr(sorted_batch).tolist() == [0, 2, 2, 3]
    data = HeteroData()
    data["atom"].pos = torch.zeros(3, 2)
    assert store_ptr(data["atom"]) is None
    assert store_ptr(Batch.from_data_list([data, data])["atom"]).tolist() == [0, 3, 6]


@pytest.mark.parametrize(
    "config",
    [
        TreeConfig(4, ()),
        TreeConfig((4, 4, 2), (2, 2)),
        TreeConfig((5, 3), (3,), rotate=0),
        TreeConfig((4, 4), (2,), layout="perfect"),
        TreeConfig((4, 4), (2,), rotate=0, layout="perfect"),
        TreeConfig((4, 4, 2), (2, 2), runs=[[3, 8], [], [2]]),
        TreeConfig((4, 4), (2,), rotate=0, layout="perfect", runs=[[], [16]]),
    ],
    ids=str,
)
def test_from_data_returns_what_attach_tree_wrote(config):
    for data in [cloud(13), cloud(0), batch_of(SIZES), batch_of([3]), batch_of([0, 0])]:
        tree = tree_of(data, config)
        attach_tree(data, data.stores[0], tree)
        assert_same(Tree.from_data(data, config), tree)
        ptr = store_ptr(data)
        ptr = torch.tensor([0, data.num_nodes]) if ptr is None else ptr
        Tree.from_data(data, config).validate(data.num_nodes, config, ptr)
        for name, value in data.to_dict().items():
            if is_tree_attribute(name) and name not in ("tree_config", "tree_code"):
                small = torch.bool if name == "perm_mask" else torch.int32
                assert value.dtype == small


def test_from_data_of_a_node_store():
    config = TreeConfig(4, (2,))
    data = HeteroData()
    data["atom"].pos = torch.rand(7, 3)
    attach_tree(data, data["atom"], tree_of(data["atom"], config))
    assert_same(Tree.from_data(data["atom"], config), tree_of(data["atom"], config))


def test_data_without_a_tree():
    config = TreeConfig(4, ())
    for data in [cloud(3), batch_of(SIZES), batch_of([3])]:
        assert stored_tree(data, config) is None
        for args in [(), (config,)]:
            with pytest.raises(ValueError, match="no tree; apply the transform"):
                Tree.from_data(data, *args)


def test_from_data_needs_no_configuration():
    for transform in [BallTree(4, [2, 2]), BallTree(4, layout="perfect", rotate=0)]:
        for data in [cloud(13), batch_of(SIZES)]:
            data = transform(data)
            expected = Tree.from_data(data, transform.config)
            assert_same(Tree.from_data(data), expected)


def test_trees_of_several_configurations_need_to_be_named():
    batch = Batch.from_data_list([BallTree(4)(cloud(9)), BallTree(8)(cloud(9))])
    with pytest.raises(ValueError, match="several configurations"):
        Tree.from_data(batch)
    data = BallTree(8, [2], prefix="other_")(BallTree(4)(cloud(9)))
    assert Tree.from_data(data).config == TreeConfig(4)
    assert Tree.from_data(data, prefix="other_").config == TreeConfig(8, [2])
    with pytest.raises(ValueError, match="no tree with prefix='x_', it must be one"):
        Tree.from_data(data, prefix="x_")


@pytest.mark.parametrize(
    "other",
    [
        TreeConfig(8, (2,)),
        TreeConfig(4, (4,)),
        TreeConfig(4, ()),
        TreeConfig(4, (2,), rotate=30),
        TreeConfig(4, (2,), layout="perfect"),
        TreeConfig(4, (2,), runs=[[2], []]),
    ],
    ids=str,
)
def test_a_tree_for_another_configuration_is_refused(other):
    config = TreeConfig(4, (2,))
    separate = [cloud(9), cloud(5)]
    for data, c in zip(separate, [other, config], strict=True):
        attach_tree(data, data.stores[0], tree_of(data, c))
    for data in [separate[0], batch_of(SIZES)]:
        attach_tree(data, data.stores[0], tree_of(data, other))
        message = f"built for '{other}', needed is '{config}'; apply 'model.tree_trans"
        with pytest.raises(ValueError, match=re.escape(message)):
            Tree.from_data(data, config)


def test_a_batch_with_trees_for_two_configurations_is_refused():
    transforms = [BallTree(4, [2]), BallTree(8, [2])]
    batch = Batch.from_data_list([t(cloud(9)) for t in transforms])
    for transform in transforms:
        with pytest.raises(ValueError, match="the data's tree was built for"):
            Tree.from_data(batch, transform.config)


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
def test_global_perm(layout):
    transform = BallTree(4, [2], layout=layout)
    batch = transform(batch_of(SIZES))
    tree = Tree.from_data(batch, transform.config)
    assert torch.equal(Tree.from_data(batch).global_perm(), tree.global_perm())
    assert Tree.from_data(batch).global_perm().dtype == torch.int64
    expected = [
        start + p
        for start, n in zip(batch.ptr.tolist(), SIZES)
        for p in transform(cloud(n)).perm.tolist()
    ]
    assert Tree.from_data(batch).global_perm().tolist() == expected
    single = transform(cloud(9))
    assert torch.equal(Tree.from_data(single).global_perm(), single.perm)


def test_an_attribute_of_the_user_is_kept():
    data = cloud(9)
    own = {
        "perm_rotation": 1,
        "levels": 2,
        "ball_length": 3,
        "level_1": 4,
        "run_len": 5,
    }
    data.update(own)
    data = BallTree(4, [2])(BallTree(4, [2, 2])(data))
    assert {name: data[name] for name in own} == own


def test_a_stale_tree_is_refused():
    data = BallTree(8)(cloud(40))
    with pytest.raises(ValueError, match="does not fit its data"):
        Tree.from_data(data.subgraph(torch.arange(30)))
    with pytest.raises(ValueError, match="does not fit its data"):
        Tree.from_data(data.subgraph(torch.arange(40).flip(0)))


def test_an_attribute_of_the_users_is_no_tree():
    data = cloud(3)
    data.perm = torch.arange(3)
    assert stored_tree(data, TreeConfig(4, ())) is None
    with pytest.raises(ValueError, match="the data has no tree"):
        Tree.from_data(data)


def test_data_of_an_earlier_version():
    """Its numbers were one for the whole configuration, and the number of nodes."""
    config, data = TreeConfig(4, [2]), batch_of(SIZES)
    attach_tree(data, data.stores[0], tree_of(data, config))
    expected = Tree.from_data(data, config)
    data.tree_code = torch.tensor([[2**60, n] for n in SIZES])
    assert_same(Tree.from_data(data, config), expected)

    def rows(data):
        return Tree.from_data(data, config).to_rows(data.pos)

    compiled = torch.compile(rows, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="by an earlier version; apply"):
        compiled(data)


FOREIGN = ["perm", "level", "ball_len_0", "perm_rot_1", "tree_code", "tree_config"]
# Which a tree of two levels does not have, but others have.
FOREIGN += ["perm_mask", "tree_real", "ball_len_7", "run_len_0_8", "tree_edge_count"]


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("collated", [False, True])
def test_foreign_attributes_are_not_overwritten(name, collated):
    """Such as a permeability `perm`, or the refinement `level` of a mesh."""
    data = batch_of([9, 20]) if collated else cloud(20)
    own = torch.rand(data.num_nodes, 1)
    data[name] = own
    with pytest.raises(ValueError, match=f"'{name}' of the data is not of a tree"):
        BallTree(4, [2])(data)
    assert data[name] is own
    out = BallTree(4, [2], prefix="ball_")(data)
    assert out[name] is own
    expected = tree_of(data, TreeConfig(4, [2]))
    assert_same(Tree.from_data(out, prefix="ball_"), expected)


@pytest.mark.parametrize("reorder", [False, True])
def test_a_tree_with_a_prefix_is_like_any_other(reorder):
    kwargs = {"ball_sizes": 4, "strides": [2], "reorder": reorder}
    clouds = [cloud(n) for n in (9, 20, 1)]
    plain = [BallTree(**kwargs)(c) for c in clouds]
    named = [BallTree(**kwargs, prefix="my_")(c) for c in clouds]
    batch = Batch.from_data_list(named)
    expected = Tree.from_data(Batch.from_data_list(plain))
    assert_same(Tree.from_data(batch, prefix="my_"), expected)
    assert_same(stored_tree(batch, expected.config), expected)
    for a, b in zip(batch.to_data_list(), plain, strict=True):
        assert_same(Tree.from_data(a, prefix="my_"), Tree.from_data(b))
    again = BallTree(8, prefix="my_")(batch)  # replaces the tree
    assert Tree.from_data(again, prefix="my_").config == TreeConfig(8)
    names = [*again.keys()]
    assert [k for k in names if "perm_rot" in k] == ["my_perm_rot_0"]


@pytest.mark.parametrize("prefixes", [("small_", "large_"), ("", "b_"), ("b_", "")])
def test_a_model_finds_the_tree_of_its_configuration(prefixes):
    torch.manual_seed(0)
    models = [Erwin(0, [8, 8], 1, ball_sizes=b, dim=2, mp_steps=0) for b in (4, 8)]
    data = plain = batch_of(SIZES)
    for model, prefix in zip(models, prefixes, strict=True):
        c = model.tree_config
        data = BallTree(c.ball_sizes, c.strides, prefix=prefix)(data)
    for model in models:
        assert torch.equal(model(data), model(plain))
        assert stored_tree(data, model.tree_config).config == model.tree_config


@pytest.mark.parametrize("prefix", ["", "my_"])
def test_an_attribute_with_the_end_of_a_name_is_no_tree(prefix):
    data = batch_of(SIZES)
    data.subtree_node = torch.zeros(data.num_nodes)
    config = TreeConfig(4, [2])
    assert stored_tree(data, config) is None
    out = BallTree(4, [2], prefix=prefix)(data)
    assert_same(stored_tree(out, config), tree_of(data, config))


@pytest.mark.parametrize("prefixes", [("", "my_"), ("my_", ""), ("a_", "b_")])
def test_the_tree_of_a_configuration_is_found_beside_another(prefixes):
    data = batch_of(SIZES)
    configs = TreeConfig(4, [2]), TreeConfig(8)
    for config, prefix in zip(configs, prefixes, strict=True):
        data = BallTree(config.ball_sizes, config.strides, prefix=prefix)(data)
    for config in configs:
        assert_same(stored_tree(data, config), tree_of(batch_of(SIZES), config))
    with pytest.raises(ValueError, match="needed is 'balls=16"):
        stored_tree(data, TreeConfig(16))


@pytest.mark.parametrize(
    "name", ["perm", "level", "ball_len_0", "tree_node", "tree_code"]
)
def test_a_tree_of_which_a_part_was_left_out(name):
    """`exclude_keys` of a loader drops attributes while it collates."""
    clouds = [BallTree(4, [2])(cloud(n)) for n in (9, 20)]
    batch = next(iter(DataLoader(clouds, batch_size=2, exclude_keys=[name])))
    for read in (Tree.from_data, lambda b: Tree.from_data(b, TreeConfig(4, [2]))):
        with pytest.raises(ValueError, match=f"'{name}'.*must be kept"):
            read(batch)
    with pytest.raises(ValueError, match=f"'{name}'.*must be kept"):
        stored_tree(batch, TreeConfig(4, [2]))


def test_a_batch_without_offsets_has_its_empty_clouds():
    """The vector `batch` alone does not tell of clouds without nodes at the end."""
    sizes = [9, 0, 4, 0, 0]
    batch = BallTree(4, [2])(batch_of(sizes))
    expected = Tree.from_data(batch)
    del batch.ptr
    assert store_ptr(batch).tolist() == [0, 9, 9, 13, 13, 13]
    assert_same(Tree.from_data(batch), expected)
    fresh = batch_of(sizes)
    del fresh.ptr
    assert_same(Tree.from_data(BallTree(4, [2])(fresh)), expected)
    data = HeteroData()
    data["atom"].pos = torch.rand(3, 2)
    none = HeteroData()
    none["atom"].pos = torch.rand(0, 2)
    batch = Batch.from_data_list([data, none])
    del batch["atom"].ptr
    assert store_ptr(batch["atom"]).tolist() == [0, 3, 3]
