"""What a forward pass launches on a GPU, which on small clouds is all that it costs."""

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

# Views, allocations, questions.
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
# An RMS norm, one kernel on a GPU, where this PyTorch was built without CUDA.
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
    # The embedding of positions; queries, keys and values; and three more.
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
    # Positions are centred once for the main and the rotated tree of three levels,
    # whatever stages use them, and for two poolings, down and up. Each compares once.
    assert counts["lt"] == 2 * 3 + 2
    # Whether the nodes are those of the tree, the children of two coarsenings, and all
    # orders within the batch at once.
    assert counts["searchsorted"] == 1 + 2 + 1
    # The same, twice but for the first, and the offsets of the clouds on three levels.
    assert counts["cumsum"] == 1 + 2 * 2 + 2 + 1


def test_clouds_of_any_size_launch_the_same():
    full, any_size = model_launches([32, 64, 32]), model_launches([20, 0, 30, 1])
    for name in ("addmm", "ball_attention_packed", "silu"):
        assert any_size[name] == full[name]
    # Where not all balls are full, centring spreads rows over slots and reads them, for
    # six trees; twice positions and features are pooled, and features are unpooled.
    assert sum(any_size.values()) <= sum(full.values()) + (6 * 2 + 2 * 3) * 13
    assert model_launches([21, 3, 0, 17, 40]) == any_size
