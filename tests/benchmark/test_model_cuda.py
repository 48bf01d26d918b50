"""The benchmark cases for a GPU, run at a tiny size on the host."""

import pytest
import torch

from benchmark.cases import model_cuda
from benchmark.cases.model import TINY
from benchmark.runner import check


@pytest.fixture(autouse=True)
def on_the_host(monkeypatch):
    monkeypatch.setattr(model_cuda, "DEVICE", "cpu")


# The original's norms get bfloat16 rows and float32 weights under autocast.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_both_formulations_agree(train, half):
    workload = model_cuda.workload(2, 64, train, half, TINY, checkpoint=train)
    inputs = workload.make_inputs(0)
    names = ("original", "ours", "ours, captured")
    outputs = {name: workload.implementations[name]()(inputs) for name in names}
    assert len(outputs["ours"]) == 1 + train
    assert check(workload, inputs, outputs) == {}
    if not half:  # both use the same tree, so only rounding errors differ
        for a, b in zip(outputs["ours"], outputs["original"], strict=True):
            assert (a - b).norm() <= 1e-3 * b.norm()
    other = workload.implementations["ours"]()(workload.make_inputs(1))
    assert "ours" in check(workload, inputs, {**outputs, "ours": other})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_measure():
    assert not [w for case in model_cuda.CASES for w in case.workloads("full")]
