"""What a forward pass launches on a GPU: with small clouds, that is its whole cost."""

from collections import Counter

import pytest
import torch
from clouds import ragged
from devices import without_values
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch_geometric.data import Batch

pytest.importorskip("triton", reason="Triton is not installed")

from torch_geometric_erwin import Level
from torch_geometric_erwin.nn import Erwin, ErwinBlock

# Views, allocations and queries launch no kernel.
NOT_LAUNCHED = {"view", "_unsafe_view", "t", "transpose", "expand", "slice", "select"}
NOT_LAUNCHED |= {
    "unsqueeze",
    "squeeze",
    "detach",
    "unbind",
    "split",
    "split_with_sizes",
}
NOT_LAUNCHED |= {"empty", "new_empty", "device", "promote_types"}
# The operators of an RMS norm in a PyTorch without CUDA; on a GPU it is one kernel.
NORM = {"pow": 1, "mean": 1, "add_": 1, "rsqrt": 1, "mul": 2}


class Launches(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        if name not in NOT_LAUNCHED:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


def without_norms(counts, norms):
    if norms != counts.pop("_fused_rms_norm", 0):
        for name, each in NORM.items():
            counts[name] -= norms * each
    return {name: count for name, count in counts.items() if count != 0}


@pytest.mark.parametrize("rotated", [False, True])
def test_a_block_launches_its_layers(rotated):
    rows, balls = 50, torch.tensor([8, 8, 8, 8, 8, 8, 2])
    perm = torch.randperm(rows) if rotated else None
    level = Level.build(torch.rand(rows, 3), balls, ball_size=8, perm_rot=perm)
    block = ErwinBlock(32, heads=2, ball_size=8).eval()
    args = torch.rand(rows, 32), level.rotated()
    assert (args[1].perm is not None) == rotated
    with without_values("cuda") as move:
        block, args = move(block), tree_map_only(torch.Tensor, move, args)
        with Launches() as launches:
            block(*args)
    # Products: the embedding of positions; queries, keys and values; and three more.
    products = {"addmm": 5, "ball_attention_packed": 1}
    gate = {"silu": 1, "mul": 1}
    assert without_norms(launches.counts, norms=2) == {**products, **gate, "add": 3}


def model_launches(sizes):
    torch.manual_seed(0)
    model = Erwin(2, [16, 32, 64], out_channels=3, ball_sizes=8, mp_steps=1).eval()
    clouds = ragged(sizes, dtype=torch.float32).to_data_list()
    batch = Batch.from_data_list([model.tree_transform()(data) for data in clouds])
    with without_values("cuda") as move:
        model, batch = move(model), move(batch)
        with Launches() as launches:
            model(batch)
    return without_norms(launches.counts, norms=2 * 10)


def test_tables_are_made_once():
    counts = model_launches([32, 64, 32])
    # Positions are centred once for the main and the rotated tree of each of three
    # levels, although several stages use them, and once for each of two poolings, used
    # both down and up. Each centring has one comparison.
    assert counts["lt"] == 2 * 3 + 2
    # One search to check that the nodes are those of the tree, two for the children of
    # two coarsenings, and one for all orders within the batch.
    assert counts["searchsorted"] == 1 + 2 + 1
    # One sum for the first of these searches, two for each of the others, and one for
    # the offsets of the clouds on all levels.
    assert counts["cumsum"] == 1 + 2 * 2 + 2 + 1


def test_clouds_of_any_size_launch_the_same():
    full, any_size = model_launches([32, 64, 32]), model_launches([20, 0, 30, 1])
    for name in ("addmm", "ball_attention_packed", "silu"):
        assert any_size[name] == full[name]
    # If not all balls are full, rows are scattered to slots and gathered again: for
    # centring in six trees, for pooling positions and features twice, and for unpooling
    # features twice.
    assert sum(any_size.values()) <= sum(full.values()) + (6 * 2 + 2 * 3) * 13
    assert model_launches([21, 3, 0, 17, 40]) == any_size
