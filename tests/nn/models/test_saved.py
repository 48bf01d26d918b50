"""Weights and configurations that were saved at commit 309911a still load."""

from pathlib import Path

import pytest
import torch

from torch_geometric_erwin import TreeConfig
from torch_geometric_erwin.nn import Erwin

SAVED = torch.load(Path(__file__).parents[2] / "data" / "models_309911a.pt")


@pytest.mark.parametrize("saved", SAVED.values(), ids=[*SAVED])
def test_saved_model_gives_the_same_outputs(saved):
    model = Erwin(2, out_channels=3, **saved["config"]).eval()
    parameters = [id(p) for p in model.parameters()]
    # Batch normalisation was the only norm, and what was saved has it.
    with pytest.warns(UserWarning, match="norm='batch'"):
        model.load_state_dict(saved["state"])
    assert not [m for m in model.modules() if m.training]
    assert [id(p) for p in model.parameters()] == parameters
    same = Erwin(2, out_channels=3, norm="batch", **saved["config"]).eval()
    same.load_state_dict(saved["state"])
    assert model.state_dict().keys() == same.state_dict().keys()
    args = (saved["x"], saved["pos"])
    if model.mp_steps:
        args = (*args, saved["edge_index"])
    out = model(*args, ptr=saved["ptr"])
    assert (out - saved["out"]).norm() <= 1e-5 * saved["out"].norm()
    assert TreeConfig.parse(saved["tree_config"]) == model.tree_config
    assert str(model.tree_config) == saved["tree_config"]
