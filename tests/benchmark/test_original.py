"""The original's formulation equals recorded runs of the original, and our Erwin."""

from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data

from benchmark.original import Original, OriginalTree, build_tree
from torch_geometric_erwin import Tree
from torch_geometric_erwin.nn import Erwin

DATA = Path(__file__).parents[1] / "data"
SHARED = Path(__file__).parents[3] / "shared" / "parity"
TINY = ["d2_rot0_mp0", "d2_rot45_levels3", "d3_rot30_flat", "d3_rot45_mp2"]
LARGE = ["d2_rot45_mp0_odd", "d2_rot45_mp3_stride1", "d3_rot0_mp0_p2one"]
LARGE += ["d3_rot45_mp0_latent", "d3_rot45_mp3_odd", "d3_rot45_mp3_strides42"]
CASES = [DATA / f"tiny_{name}.pt" for name in TINY]
CASES += [SHARED / f"{name}.pt" for name in LARGE]


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error <= tolerance


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request):
    if not request.param.exists():
        pytest.skip("the larger cases are not part of this repository")
    return torch.load(request.param, weights_only=True)


# The recorded runs used float32 weights and inputs but computed in float64. So only
# rounding errors of float64 remain, enlarged by cancellation in cdist's matrix form.
@pytest.mark.parametrize("train", [False, True])
def test_recorded_runs(case, train):
    model = Original(case["config"]).double()
    # For a stride of 1 the recorded run has weights of a pooling layer that never runs.
    assert not model.load_state_dict(case["state_dict"], strict=False).missing_keys
    names = ("tree_idx", "tree_mask", "tree_idx_rot")
    tree = OriginalTree(*(case[name] for name in names))
    pos, x = (case[name].double() for name in ("pos", "x"))
    out = model.train(train)(x, pos, case["batch"], case["edge_index"], tree)
    assert_close(out, case["train_out64" if train else "out64"], 1e-6)
    if not train:
        grads = torch.autograd.grad(out.square().mean(), [*model.parameters()])
        largest = max(grad.norm() for grad in case["grads64"].values())
        for (name, _), grad in zip(model.named_parameters(), grads):
            error = (grad - case["grads64"][name].double()).norm()
            assert error <= 1e-6 * largest, name


CONFIG = {
    "c_in": 4,
    "c_hidden": [8, 16, 32],
    "ball_sizes": [16, 16, 8],  # up to 25 rows, distances are direct differences
    "enc_num_heads": [1, 2, 4],
    "enc_depths": [2, 2, 2],
    "dec_num_heads": [1, 2],
    "dec_depths": [2, 2],
    "strides": [2, 4],
    "rotate": 45,
}


def inputs(dtype, sizes=(128, 256)):
    torch.manual_seed(0)
    n = sum(sizes)
    batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    edge_index = torch.randint(n, (2, 4 * n))
    x, pos = torch.randn(n, 4, dtype=dtype), torch.rand(n, 3, dtype=dtype)
    return {"x": x, "pos": pos, "batch": batch, "edge_index": edge_index}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-7), (None, 1e-5)])
def test_our_erwin(dtype, tolerance):
    data = inputs(dtype)
    torch.manual_seed(1)
    original = Original(CONFIG).to(dtype)
    erwin = Erwin.from_reference(CONFIG, original.state_dict()).to(dtype)
    ptr = torch.tensor([0, 128, 384])
    batch = erwin.tree_transform()(Data(ptr=ptr, **data))
    tree = Tree.from_data(batch, erwin.tree_config)
    rotated = [tree.global_perm_rot(l) for l in range(3)]
    theirs = OriginalTree(tree.global_perm(), tree.mask, rotated)
    for train in (False, True):
        expected = original.train(train)(**data, tree=theirs)
        assert_close(erwin.train(train)(batch), expected, tolerance)


def test_its_own_tree():
    pytest.importorskip("balltree", reason="balltree-erwin is not installed")
    data = inputs(None)
    original = Original(CONFIG).eval()
    erwin = Erwin.from_reference(CONFIG, original.state_dict()).eval()
    tree = build_tree(data["pos"], data["batch"], CONFIG)
    ours = Data(
        **data, tree_idx=tree.order, tree_mask=tree.mask, tree_idx_rot=tree.rotated
    )
    assert_close(erwin(ours), original(**data), 1e-5)
