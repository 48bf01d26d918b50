"""What a forward pass launches on a GPU, which on small clouds is all that it costs."""

from collections import Counter

import pytest
import torch
from clouds import ragged
from devices import without_values
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.data import Batch

pytest.importorskip("triton", reason="Triton is not installed")

from torch_geometric_erwin.nn import Erwin, ErwinBlock
from torch_geometric_erwin.ops import triton

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
@pytest.mark.parametrize("small", [False, True])
def test_a_block_launches_its_layers(small, rotated, monkeypatch):
    monkeypatch.setattr(triton, "SMALL", 1 << 20 if small else 0)
    rows, balls = 50, torch.tensor([8, 8, 8, 8, 8, 8, 2])
    perm = torch.randperm(rows) if rotated else None
    block = ErwinBlock(32, heads=2, ball_size=8).eval()
    args = torch.rand(rows, 32), torch.rand(rows, 3), balls, perm, torch.rand(rows, 3)
    with without_values("cuda") as move:
        block, args = move(block), [None if t is None else move(t) for t in args]
        with Launches() as launches:
            block(*args)
    # Queries, keys and values, and three more.
    products = {"addmm": 4, "ball_attention_packed": 1}
    if small:
        assert without_norms(launches.counts, norms=2) == {
            **products,
            "addmm": 5,
            "add": 3,
            "silu": 1,
            "mul": 1,
        }
    else:
        assert without_norms(launches.counts, norms=1) == {
            **products,
            "add_linear": 1,
            "add_norm": 1,
            "gate": 1,
            "add": 1,
        }


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
    # Five stages with a main and a rotated tree; two poolings, down and up.
    assert counts["centre"] == 2 * 5 + 2 * 2
    # Whether the nodes are those of the tree, and every order within the batch at once.
    assert counts["searchsorted"] == 2
    assert counts["cumsum"] == 3


def test_clouds_of_any_size_cost_little_more():
    full, any_size = model_launches([32, 64, 32]), model_launches([20, 0, 30, 1])
    for name in ("addmm", "centre", "ball_attention_packed", "silu"):
        assert any_size[name] <= full[name] + 8
    # Two poolings, down and up, spread children over slots.
    assert sum(any_size.values()) <= sum(full.values()) + 4 * 14
