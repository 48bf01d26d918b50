import re

import pytest
import torch
from torch.utils import _pytree as pytree
from torch_geometric.data import Batch, Data, HeteroData

from torch_geometric_erwin import TreeConfig, global_perm
from torch_geometric_erwin.data.storage import (
    attach_tree,
    is_tree_attribute,
    read_tree,
    store_ptr,
)
from torch_geometric_erwin.transforms import BallTree
from torch_geometric_erwin.tree.builder import build_tree

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
def test_read_tree_returns_what_attach_tree_wrote(config):
    for data in [cloud(13), cloud(0), batch_of(SIZES), batch_of([3]), batch_of([0, 0])]:
        tree = tree_of(data, config)
        attach_tree(data, data.stores[0], tree)
        assert_same(read_tree(data, config), tree)
        ptr = store_ptr(data)
        ptr = torch.tensor([0, data.num_nodes]) if ptr is None else ptr
        read_tree(data, config).validate(data.num_nodes, config, ptr)
        for name, value in data.to_dict().items():
            if is_tree_attribute(name) and name not in ("tree_config", "tree_code"):
                small = torch.bool if name == "perm_mask" else torch.int32
                assert value.dtype == small


def test_read_tree_of_a_node_store():
    config = TreeConfig(4, (2,))
    data = HeteroData()
    data["atom"].pos = torch.rand(7, 3)
    attach_tree(data, data["atom"], tree_of(data["atom"], config))
    assert_same(read_tree(data["atom"], config), tree_of(data["atom"], config))


def test_read_tree_without_a_tree():
    assert read_tree(cloud(3), TreeConfig(4, ())) is None
    assert read_tree(batch_of(SIZES), TreeConfig(4, ())) is None


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
            read_tree(data, config)


def test_a_batch_with_trees_for_two_configurations_is_refused():
    transforms = [BallTree(4, [2]), BallTree(8, [2])]
    batch = Batch.from_data_list([t(cloud(9)) for t in transforms])
    for transform in transforms:
        with pytest.raises(ValueError, match="the data's tree was built for"):
            read_tree(batch, transform.config)


@pytest.mark.parametrize("layout", ["balanced", "perfect"])
def test_global_perm(layout):
    transform = BallTree(4, [2], layout=layout)
    batch = transform(batch_of(SIZES))
    tree = read_tree(batch, transform.config)
    assert torch.equal(global_perm(batch), tree.global_perm())
    assert global_perm(batch).dtype == torch.int64
    expected = [
        start + p
        for start, n in zip(batch.ptr.tolist(), SIZES)
        for p in transform(cloud(n)).perm.tolist()
    ]
    assert global_perm(batch).tolist() == expected
    single = transform(cloud(9))
    assert torch.equal(global_perm(single), single.perm)


def test_global_perm_without_a_tree():
    with pytest.raises(ValueError, match="no tree; apply the transform 'BallTree'"):
        global_perm(batch_of(SIZES))


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


def test_a_stale_global_perm_is_refused():
    data = BallTree(8)(cloud(40))
    with pytest.raises(ValueError, match="does not fit its data"):
        global_perm(data.subgraph(torch.arange(30)))
    with pytest.raises(ValueError, match="does not fit its data"):
        global_perm(data.subgraph(torch.arange(40).flip(0)))


def test_an_attribute_of_the_users_is_no_tree():
    data = cloud(3)
    data.perm = torch.arange(3)
    assert read_tree(data, TreeConfig(4, ())) is None
    with pytest.raises(ValueError, match="the data has no tree"):
        global_perm(data)


def test_data_of_an_earlier_version():
    """Its numbers were one for the whole configuration, and the number of nodes."""
    config, data = TreeConfig(4, [2]), batch_of(SIZES)
    attach_tree(data, data.stores[0], tree_of(data, config))
    expected = read_tree(data, config)
    data.tree_code = torch.tensor([[2**60, n] for n in SIZES])
    assert_same(read_tree(data, config), expected)

    def rows(data):
        return read_tree(data, config).to_rows(data.pos)

    compiled = torch.compile(rows, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="by an earlier version; apply"):
        compiled(data)
