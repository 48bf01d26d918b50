import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.nn import GELU, LeakyReLU, Module

from torch_geometric_erwin.nn.activation import make_activation


@pytest.mark.parametrize(
    ("act", "kwargs", "function"),
    [
        ("relu", None, F.relu),
        ("LeakyReLU", {"negative_slope": 0.3}, lambda x: F.leaky_relu(x, 0.3)),
        ("swish", None, F.silu),
        (GELU, {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh")),
        (LeakyReLU(0.3), None, lambda x: F.leaky_relu(x, 0.3)),
        (F.elu, {"alpha": 0.5}, lambda x: F.elu(x, 0.5)),
        (torch.tanh, None, torch.tanh),
    ],
)
def test_every_way_to_name_an_activation(act, kwargs, function):
    module = make_activation(act, kwargs)
    assert isinstance(module, Module)
    x = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(module(x), function(x))
    copied = pickle.loads(pickle.dumps(module))
    torch.testing.assert_close(copied(x), function(x))


@pytest.mark.parametrize(
    ("act", "kwargs", "error", "message"),
    [
        ("sharp", None, ValueError, "'act' must be an activation .*'sharp'"),
        ("relu", {"slope": 1}, TypeError, "'act' must be an activation .*'slope'"),
        (3, None, TypeError, r"'act' must be a name, a module or a callable \(got 3\)"),
        (GELU, {"slope": 1}, TypeError, "'act' takes no 'slope', .*GELU takes appr"),
        (dict, None, TypeError, r"'act' must make a module \(got 'dict'\)"),
        ("relu", 3, TypeError, r"'act_kwargs' must be a dict \(got 3\)"),
    ],
)
def test_bad_activations(act, kwargs, error, message):
    with pytest.raises(error, match=message):
        make_activation(act, kwargs)
