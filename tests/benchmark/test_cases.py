"""Every case runs at a tiny size, and its implementations agree."""

import pytest
import torch

from benchmark.cases import all_cases
from benchmark.runner import check, load

# RMSNorm of half precision under autocast, in the cases of a GPU.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight"
)

WORKLOADS = {
    f"{case.name}: {workload.name}": workload
    for case in all_cases().values()
    for workload in case.workloads("tiny")
}


@pytest.mark.filterwarnings("ignore:'torch-cluster' is no longer necessary")
@pytest.mark.parametrize("name", WORKLOADS)
def test_implementations_agree(name):
    workload = WORKLOADS[name]
    runs, absent = load(workload)
    assert runs.keys() | absent.keys() == workload.implementations.keys()
    assert all(r["status"] == "skipped" and r["reason"] for r in absent.values())
    assert any(run.startswith("ours") for run in runs)
    inputs = workload.make_inputs(0)
    outputs = {run: function(inputs) for run, function in runs.items()}
    assert check(workload, inputs, outputs) == {}
    if len(outputs) < 2:
        pytest.skip(f"nothing to compare with: {absent}")


def _tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, tuple) else []


@pytest.mark.parametrize("name", WORKLOADS)
def test_inputs_follow_the_seed(name):
    make = WORKLOADS[name].make_inputs
    first, again, other = (_tensors(make(seed)) for seed in (1, 1, 2))
    assert len(first) > 1
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    floats = [(a, b) for a, b in zip(first, other) if a.is_floating_point()]
    assert not any(torch.equal(a, b) for a, b in floats)


# The comparison must fail on wrong outputs; otherwise the test above shows nothing.
@pytest.mark.parametrize("name", WORKLOADS)
def test_comparison_sees_an_error(name):
    workload = WORKLOADS[name]
    runs, _ = load(workload)
    ours = next(run for run in runs if run.startswith("ours"))
    inputs = workload.make_inputs(0)
    right, wrong = runs[ours](inputs), runs[ours](workload.make_inputs(1))
    assert check(workload, inputs, {workload.baseline: right, ours: right}) == {}
    other = {"unlike": workload.implementations[ours], **workload.implementations}
    errors = check(workload, inputs, {next(iter(other)): right, "other": wrong})
    assert "other" in errors
