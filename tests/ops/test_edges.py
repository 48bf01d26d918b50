import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_geometric_erwin.ops.edges import Edges, sorted_groups


@given(st.lists(st.integers(0, 6)), st.integers(7, 9))
def test_group_is_a_stable_sort(keys, groups):
    key = torch.tensor(keys, dtype=torch.int64)
    ptr, order = torch.ops.erwin.group(key, groups)
    assert torch.equal(order, key.sort(stable=True).indices)
    assert torch.equal(ptr.diff(), torch.bincount(key, minlength=groups))
    assert int(ptr[0]) == 0
    for same, expected in zip(sorted_groups(key, groups), (ptr, order), strict=True):
        assert torch.equal(same, expected)
        assert same.dtype == torch.int64


@pytest.mark.parametrize("keys", [[], [3, 0, 3, 1]])
def test_opcheck(keys):
    key = torch.tensor(keys, dtype=torch.int64)
    torch.library.opcheck(torch.ops.erwin.group.default, (key, 4))


@pytest.mark.parametrize("node", [-1, 4])
def test_refuses_a_node_that_is_not_there(node):
    with pytest.raises(ValueError, match=rf"nodes from 0 to 3 \(got {node}\)"):
        torch.ops.erwin.group(torch.tensor([0, node, 3]), 4)


def test_edges_are_sorted_once_by_each_end():
    edges = Edges(torch.tensor([[1, 0, 1], [0, 2, 2]]), 3)
    assert [t.tolist() for t in edges.by(0)] == [[0, 1, 3, 3], [1, 0, 2]]
    assert [t.tolist() for t in edges.by(1)] == [[0, 1, 1, 3], [0, 1, 2]]
    assert edges.by(0) is edges.by(0)
    assert edges.by(1) is edges.by(1)
