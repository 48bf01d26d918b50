"""The original implementation's outputs, gradients and statistics, reproduced.

Every file holds one run of the original in float64, with random weights: the inputs,
the tree and the outputs.
"""

from pathlib import Path

import pytest
import torch
from torch_geometric.data import Data

from torch_geometric_erwin.nn import Erwin
from torch_geometric_erwin.nn.models.reference import (
    convert_config,
    convert_state_dict,
)

DATA = Path(__file__).parents[2] / "data"
SHARED = Path(__file__).parents[4] / "shared" / "parity"
TINY = ["d2_rot0_mp0", "d2_rot45_levels3", "d3_rot30_flat", "d3_rot45_mp2"]
LARGE = ["d2_rot45_mp0_odd", "d2_rot45_mp3_stride1", "d3_rot0_mp0_p2one"]
LARGE += ["d3_rot45_mp0_latent", "d3_rot45_mp3_odd", "d3_rot45_mp3_strides42"]
CASES = [DATA / f"tiny_{name}.pt" for name in TINY]
CASES += [SHARED / f"{name}.pt" for name in LARGE]

# The two sides sum in different orders: 1e-6 allows a few hundred rounding errors in
# the float32 files, 1e-4 those of the layers of a float32 model.
PRECISIONS = [(torch.float64, 1e-6), (torch.float32, 1e-4)]
every_precision = pytest.mark.parametrize("dtype, tolerance", PRECISIONS, ids=str)


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def case(request):
    if not request.param.exists():
        pytest.skip("the larger cases are not part of this repository")
    return torch.load(request.param, weights_only=True)


def load(name):
    return torch.load(DATA / f"tiny_{name}.pt", weights_only=True)


def model_of(case, dtype=torch.float64):
    model = Erwin.from_reference(case["config"], case["state_dict"])
    return model.to(dtype).eval()


def data_of(case, dtype=torch.float64):
    names = ["batch", "edge_index", "tree_idx", "tree_mask", "tree_idx_rot"]
    return Data(
        x=case["x"].to(dtype).requires_grad_(),
        pos=case["pos"].to(dtype),
        **{name: case[name] for name in names},
    )


def rows_of(out, case):
    """The features of an output; the cloud of every coarse row must agree."""
    if case["config"]["decode"]:
        return out
    assert torch.equal(out[1], case["batch_out"])
    return out[0]


def assert_close(actual, expected, tolerance, floor=0.0, name=""):
    """Compares in the Euclidean norm, relative to that of the expected value."""
    assert actual.shape == expected.shape, name
    error = (actual.double() - expected.double()).norm()
    assert error <= tolerance * expected.double().norm() + floor, name


@every_precision
def test_output(case, dtype, tolerance):
    out = model_of(case, dtype)(data_of(case, dtype))
    assert rows_of(out, case).dtype == dtype
    assert_close(rows_of(out, case), case["out64"], tolerance)


def stages_of(model, strides):
    """The modules whose outputs the original calls stages."""
    last = len(model.encoder) - 1
    stages = {"embed": model.embed, "bottleneck": model.encoder[last]}
    for l, stride in enumerate(strides):
        stages[f"encoder.{l}"] = model.pools[l] if stride > 1 else model.encoder[l]
    for l, stage in enumerate(model.decoder):
        stages[f"decoder.{last - 1 - l}"] = stage  # the coarsest is first
    return stages


@every_precision
def test_stages(case, dtype, tolerance):
    model, outputs = model_of(case, dtype), {}
    for name, module in stages_of(model, case["config"]["strides"]).items():

        def keep(module, inputs, output, name=name):
            outputs[name] = output[0] if isinstance(output, tuple) else output

        module.register_forward_hook(keep)
    model(data_of(case, dtype))
    assert set(outputs) == set(case["stages64"])
    for name, expected in case["stages64"].items():
        assert_close(outputs[name], expected, tolerance, name=name)


@every_precision
def test_gradients(case, dtype, tolerance):
    model, data = model_of(case, dtype), data_of(case, dtype)
    rows_of(model(data), case).square().mean().backward()
    assert_close(data.x.grad, case["dx64"], tolerance, name="x")
    # Weights are renamed, reordered and joined; so are their gradients.
    expected = convert_state_dict({**case["state_dict"], **case["grads64"]}, model)
    largest = max(grad.norm() for grad in case["grads64"].values())
    for name, parameter in model.named_parameters():
        # If terms cancel, the sum still has the rounding errors of the terms.
        floor = 0.01 * tolerance * largest
        assert_close(parameter.grad, expected[name], tolerance, floor, name)


@every_precision
def test_training(case, dtype, tolerance):
    model = model_of(case, dtype).train()
    out = rows_of(model(data_of(case, dtype)), case)
    assert_close(out, case["train_out64"], tolerance)
    expected = convert_state_dict({**case["state_dict"], **case["train_bn"]}, model)
    buffers = dict(model.named_buffers())
    assert buffers.pop("length_scale") == 1
    assert buffers
    for name, buffer in buffers.items():
        assert_close(buffer, expected[name], tolerance, name=name)


@pytest.mark.parametrize("name", TINY)
def test_conversion_uses_every_weight_once(name):
    case = load(name)
    model = Erwin(**convert_config(case["config"]))
    converted = convert_state_dict(case["state_dict"], model)
    assert {*converted, "length_scale"} == set(model.state_dict())
    # The original also builds a pooling layer for a stride of 1, but never runs it.
    unused = [
        f"encoder.{l}.pool."
        for l, stride in enumerate(case["config"]["strides"])
        if stride == 1
    ]
    theirs = {
        name: weight
        for name, weight in case["state_dict"].items()
        if not name.startswith(tuple(unused))
    }
    count = sum(weight.numel() for weight in theirs.values())
    assert sum(weight.numel() for weight in converted.values()) == count


def test_missing_weight():
    case = load("d3_rot45_mp2")
    del case["state_dict"]["bottleneck.blocks.1.BMSA.qkv.weight"]
    with pytest.raises(KeyError, match=r"bottleneck\.blocks\.1\.BMSA\.qkv\.weight"):
        Erwin.from_reference(case["config"], case["state_dict"])


def test_weights_of_other_configuration():
    case = load("d3_rot45_mp2")
    config = {**case["config"], "mlp_ratio": 4}
    with pytest.raises(RuntimeError, match="size mismatch"):
        Erwin.from_reference(config, case["state_dict"])


def test_tree_of_other_clouds_is_refused():
    case = load("d3_rot45_mp2")
    model, data = model_of(case), data_of(case)
    data.tree_idx = data.tree_idx[:-1]
    with pytest.raises(ValueError, match=r"'tree_idx' must have 96 .*\(got 95\)"):
        model(data)


def test_tree_that_names_points_of_another_cloud_is_refused():
    case = load("d3_rot45_mp2")
    model, data = model_of(case), data_of(case)
    data.tree_idx = data.tree_idx.roll(1)
    with pytest.raises(ValueError, match="does not fit its data"):
        model(data)


def test_a_negative_angle_is_no_rotation_there():
    config = {"c_in": 4, "c_hidden": [8], "ball_sizes": [8], "strides": []}
    config.update(enc_num_heads=[2], enc_depths=[2], dec_num_heads=[], dec_depths=[])
    assert convert_config({**config, "rotate": -30})["rotate"] == 0.0
    assert convert_config({**config, "rotate": 30})["rotate"] == 30.0
