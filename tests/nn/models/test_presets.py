import pytest
import torch

from torch_geometric_erwin.nn import Erwin
from torch_geometric_erwin.nn.models.presets import PRESETS, preset

# Millions of parameters, without the layers for a task, in the training configurations
# published with arXiv 2502.17019, rounded as there.
PUBLISHED = {
    "cosmology-small": "4.75",
    "cosmology-medium": "18.9",
    "cosmology-large": "75.5",
    "molecular-dynamics-small": "4.76",
    "molecular-dynamics-medium": "19.0",
    "molecular-dynamics-large": "75.6",
    "eagle-small": "4.76",
    "eagle-medium": "18.9",
    "eagle-large": "75.6",
    "shapenet-car-small": "1.27",
    "shapenet-car-medium": "5.0",
    "shapenet-car-large": "19.9",
    "pde": "1.26",
}


def unused_by_the_original(model):
    """Counts pooling layers for strides of 1, which the original has but never uses."""
    hidden, dim = model.hidden_channels, model.dim
    sizes = [
        (c_in + dim + 1) * c_out + 2 * c_out  # a linear layer and a batch norm
        for c_in, c_out, stride in zip(hidden, hidden[1:], model.strides)
        if stride == 1
    ]
    return sum(sizes)


def test_every_published_size_has_a_preset():
    assert set(PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PRESETS)
def test_number_of_parameters_is_the_published_one(name):
    with torch.device("meta"):
        model = Erwin.from_preset(name, in_channels=1)
    count = sum(p.numel() for p in model.parameters()) + unused_by_the_original(model)
    published = PUBLISHED[name]
    rounding = 0.5 * 10 ** (6 - len(published.split(".")[1]))
    # The number of input features is not published: we allow up to 64, each of them one
    # weight per channel. This is at most 0.4 % of a model.
    features = 64 * model.hidden_channels[0]
    assert -rounding <= float(published) * 1e6 - count <= rounding + features


def test_preset_runs():
    model = Erwin.from_preset("molecular-dynamics-small", 2, 3, mp_steps=0).eval()
    assert model.tree_config.strides == (2, 2, 2, 2)
    out = model(torch.rand(300, 2), torch.rand(300, 3), ptr=torch.tensor([0, 299, 300]))
    assert out.shape == (300, 3)


def test_arguments_replace_those_of_the_preset():
    model = Erwin.from_preset("pde", 2, 1, dim=3, ball_sizes=64, mlp_ratio=2)
    assert model.dim == 3
    assert model.tree_config.ball_sizes == (64, 64)
    assert model.out_channels == 1
    assert model.encoder[0].blocks[0].mlp.lin_out.in_features == 128


def test_presets_are_not_changed_by_use():
    before = repr(PRESETS)
    for name in ("shapenet-car-small", "pde"):
        Erwin.from_preset(name, 1)
        assert preset(name) is PRESETS[name]
    assert repr(PRESETS) == before


def test_unknown_preset():
    with pytest.raises(
        ValueError, match=r"'name' must be one of .*'pde'.*\(got 'car'\)"
    ):
        Erwin.from_preset("car", 1)
