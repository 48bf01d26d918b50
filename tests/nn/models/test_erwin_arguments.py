"""The arguments of Erwin: what follows from them, and what is refused."""

import copy
import pickle
from functools import partial

import pytest
import torch
from clouds import cloud, ragged
from erwins import (
    arguments,
    assert_close,
    make,
)

from torch_geometric_erwin.nn import Erwin


@pytest.mark.parametrize(
    "kwargs",
    [
        {"hidden_channels": [16, 32, 32], "ball_sizes": 8},
        {"hidden_channels": 16, "ball_sizes": [8, 8, 8]},
        {"hidden_channels": 16, "ball_sizes": 8, "strides": [2, 2]},
        {"hidden_channels": 16, "ball_sizes": 8, "enc_depths": [1, 2, 1]},
        {"hidden_channels": 16, "ball_sizes": 8, "enc_heads": [1, 2, 4]},
        {"hidden_channels": 16, "ball_sizes": 8, "dec_depths": (1, 1)},
        {"hidden_channels": 16, "ball_sizes": 8, "dec_heads": (2, 4)},
    ],
    ids=str,
)
def test_levels_follow_from_any_list(kwargs):
    model = Erwin(2, **kwargs)
    assert len(model.encoder) == len(model.hidden_channels) == 3
    assert len(model.decoder) == len(model.pools) == len(model.unpools) == 2
    config = model.tree_config
    assert config.ball_sizes == (8, 8, 8)
    assert config.strides == (2, 2)
    depths = kwargs.get("enc_depths", [2, 2, 2])
    assert [len(stage.blocks) for stage in model.encoder] == depths
    depths = kwargs.get("dec_depths", (2, 2))
    assert tuple(len(stage.blocks) for stage in model.decoder) == depths
    data = cloud(22, dtype=torch.float32)
    assert model(data).shape == (22, 16)


def test_default_heads_have_16_channels():
    model = Erwin(2, [8, 32, 64], ball_sizes=8)
    heads = [stage.blocks[0].attention.heads for stage in model.encoder]
    assert heads == [1, 2, 4]
    assert [stage.blocks[0].attention.heads for stage in model.decoder] == [1, 2]


@pytest.mark.parametrize("decode", [True, False])
def test_without_out_channels_there_is_no_head(decode):
    model = Erwin(2, [16, 32], ball_sizes=8, decode=decode)
    out = model(cloud(22, dtype=torch.float32))
    assert (out if decode else out[0]).size(1) == (16 if decode else 32)
    assert not [name for name, _ in model.named_parameters() if name.startswith("head")]


def test_tree_transform_fits():
    model = make((4, 2), ball_sizes=(16, 8, 4), rotate=-30.0, layout="perfect")
    assert model.tree_transform().config == model.tree_config
    data = model.tree_transform()(cloud(22))
    assert str(model.tree_config) == data.tree_config


def test_backend_reaches_every_block():
    reference, sdpa = make(backend="reference"), make(backend="sdpa")
    data = ragged([13, 1, 22])
    chosen = {m.backend for m in reference.modules() if hasattr(m, "backend")}
    assert chosen == {"reference"}
    assert_close(sdpa(data), reference(data), 1e-12)


def test_reset_parameters():
    torch.manual_seed(0)
    fresh = Erwin(**arguments(hidden_channels=[32, 64, 64]))
    model = copy.deepcopy(fresh)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name != "length_scale":  # the unit of length is set, not learned
                tensor.fill_(7)
    model.reset_parameters()
    state = model.state_dict()
    for name, expected in fresh.state_dict().items():
        if (expected == expected.view(-1)[0]).all():
            assert torch.equal(state[name], expected), name
        else:
            assert not torch.equal(state[name], expected), name
            assert state[name].abs().max() < 2 * expected.abs().max(), name


def test_repr():
    model = Erwin(2, [16, 32], out_channels=3, ball_sizes=8)
    assert repr(model) == (
        "Erwin(2, [16, 32], out_channels=3, ball_sizes=[8, 8], strides=[2])"
    )


class OwnMixer(torch.nn.Module):
    def __init__(self, channels, heads, ball_size, dim):
        super().__init__()


@pytest.mark.parametrize("kwargs, text", [
    ({"norm": "batch"}, "norm='batch'"),
    ({"block_norm": None}, "block_norm=None"),
    ({"norm": torch.nn.LayerNorm}, "norm=LayerNorm"),
    ({"distance": "relative"}, "distance='relative'"),
    ({"attention": [OwnMixer, "ball"]}, "attention=[OwnMixer, 'ball']"),
    ({"attention": partial(OwnMixer)}, "attention=partial"),
    (
        {"norm": "rms", "attention": OwnMixer},
        "attention=OwnMixer, norm='rms'",
    ),
], ids=str)  # fmt: skip
def test_repr_shows_what_is_not_the_default(kwargs, text):
    model = Erwin(2, [16, 32], out_channels=3, ball_sizes=8, **kwargs)
    assert repr(model).endswith(f"strides=[2], {text})")
    assert repr(pickle.loads(pickle.dumps(model))) == repr(model)


BAD = {
    "no list": ({"hidden_channels": 16}, "number of levels is unknown"),
    "empty list": ({"hidden_channels": []}, "'hidden_channels' must not be empty"),
    "lists disagree": (
        {"ball_sizes": [8, 8, 8]},
        r"'ball_sizes' must have one value or 2 \(got 3: .*'hidden_channels' is for 2",
    ),
    "in_channels": (
        {"in_channels": -1},
        r"'in_channels' must be at least 0 \(got -1\)",
    ),
    "hidden_channels": (
        {"hidden_channels": [16, 0]},
        r"'hidden_channels' must be at least 1 \(got 0\)",
    ),
    "out_channels": ({"out_channels": 0}, r"'out_channels' must be at least 1 \(got 0"),
    "ball_sizes": ({"ball_sizes": 0}, r"'ball_sizes' must be at least 1 \(got 0\)"),
    "number of ball_sizes": (
        {"ball_sizes": [8]},
        r"'ball_sizes' must have .* 2 \(got 1",
    ),
    "strides": ({"strides": [0]}, r"'strides' must be at least 1 \(got 0\)"),
    "number of strides": ({"strides": []}, r"'strides' must have one value or 1"),
    "enc_depths": ({"enc_depths": 0}, r"'enc_depths' must be at least 1 \(got 0\)"),
    "number of enc_depths": (
        {"enc_depths": [2]},
        "'enc_depths' must have one value or 2",
    ),
    "enc_heads": (
        {"enc_heads": [3, 2]},
        r"'enc_heads' must divide .* \(got 3 heads for 16",
    ),
    "number of enc_heads": ({"enc_heads": [2]}, "'enc_heads' must have one value or 2"),
    "no enc_heads": ({"enc_heads": 0}, r"'enc_heads' must be at least 1 \(got 0\)"),
    "dec_depths": ({"dec_depths": 0}, r"'dec_depths' must be at least 1 \(got 0\)"),
    "number of dec_depths": (
        {"dec_depths": []},
        "'dec_depths' must have one value or 1",
    ),
    "dec_heads": ({"dec_heads": 5}, r"'dec_heads' must divide .* \(got 5 heads for 16"),
    "number of dec_heads": ({"dec_heads": []}, "'dec_heads' must have one value or 1"),
    "dim": ({"dim": 0}, r"'dim' must be at least 1 \(got 0\)"),
    "rotate": (
        {"rotate": 400.0},
        r"'rotate' must be an angle in degrees \(got 400.0\)",
    ),
    "rotate is no number": ({"rotate": float("nan")}, r"'rotate'.*\(got nan\)"),
    "mp_steps": ({"mp_steps": -1}, r"'mp_steps' must be at least 0 \(got -1\)"),
    "mlp_ratio": ({"mlp_ratio": 0}, r"'mlp_ratio' must be at least 1 \(got 0\)"),
    "layout": ({"layout": "flat"}, r"'layout' must be one of .* \(got 'flat'\)"),
    "layout needs powers of two": (
        {"layout": "perfect", "strides": 3},
        r"layout='perfect' needs powers of two in 'strides' \(got 3\)",
    ),
    "backend": ({"backend": "flash"}, r"'backend' must be one of .* \(got 'flash'\)"),
    "checkpoint": (
        {"checkpoint": [True, False, True]},
        r"'checkpoint' must have one value or 2 \(got 3",
    ),
    "number of checkpoint": (
        {"checkpoint": [True]},
        r"'checkpoint' must have one value or 2 \(got 1: \[True\]\)",
    ),
    "channels over a stride of 1": (
        {"strides": 1},
        r"'hidden_channels' must not change over a stride of 1 \(got 16 and 32",
    ),
}


def with_defaults(kwargs):
    return {"in_channels": 2, "hidden_channels": [16, 32], "ball_sizes": 8, **kwargs}


@pytest.mark.parametrize("kwargs, message", BAD.values(), ids=[*BAD])
def test_bad_argument(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Erwin(**with_defaults(kwargs))


COUNTS = ["in_channels", "hidden_channels", "out_channels", "ball_sizes", "strides"]
COUNTS += ["enc_depths", "enc_heads", "dec_depths", "dec_heads", "dim", "mp_steps"]


@pytest.mark.parametrize("value", [2.0, "2", True], ids=repr)
@pytest.mark.parametrize("name", [*COUNTS, "mlp_ratio"])
def test_argument_of_other_type(name, value):
    with pytest.raises(TypeError, match=f"'{name}' must (be an integer|hold integers)"):
        Erwin(**with_defaults({"enc_depths": [2, 2], name: value}))


def test_checkpoint_of_other_type():
    with pytest.raises(TypeError, match=r"'checkpoint' must be a bool .*\(got 1\)"):
        Erwin(**with_defaults({"checkpoint": 1}))


@pytest.mark.parametrize(
    "channels, heads", [(8, 1), (32, 2), (50, 2), (57, 3), (67, 1)]
)
def test_default_heads_divide_the_channels(channels, heads):
    model = Erwin(0, [channels], ball_sizes=8)
    assert model.encoder[0].blocks[0].attention.heads == heads
