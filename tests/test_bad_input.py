"""Every public name, argument by argument, with what it does not take.

A call is refused by an error of this package that names the argument and says what
would be right, or it works; in the layouts, strides and storages that make no
difference, with the same result. `bad_input/calls.py` holds a valid call of every
public name, `bad_input/kinds.py` how an argument is spoiled, by its role, and
`bad_input/outcomes.py` what counts as clear.
"""

import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bad_input.calls import TRUSTED, calls, parameters
from bad_input.outcomes import PACKAGE, is_finite, outcome, run

import torch_geometric_erwin as package
from torch_geometric_erwin import (
    datasets,
    neighbors,
    nn,
    transforms,
    tree,
    visualization,
)

MODULES = (
    *(package, nn, nn.attention, nn.conv, nn.models, nn.norm, nn.pool),
    *(transforms, tree, datasets, visualization),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Nothing here is large enough for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Hints that PyTorch gives once in a process, when a tensor of that layout is made.
@pytest.mark.filterwarnings("ignore:.*sparse.*", "ignore:.*nested tensors.*")
# Positions near the largest number: the model does say that they are large.
@pytest.mark.filterwarnings("ignore:balls extend over")
def test_every_argument_of_every_public_name(capsys):
    total, findings = Counter(), []
    for name, call in calls().items():
        expected, counts = run(call, {}), Counter()
        assert is_finite(expected), name
        for argument, description in call.arguments.items():
            for kind in description.kinds:
                found = outcome(call, argument, kind, expected)
                counts[found.kind] += 1
                if found.kind == "anything else":
                    text = found.text[:200]
                    findings.append(f"{name}, '{argument}', {kind.name}: {text}")
        print(f"{name}: {dict(counts)}")
        total += counts
    capsys.readouterr()
    with capsys.disabled():
        print(
            f"\nbad input: {total['clear error']} clear errors, {total['works']} work, "
            f"{total['anything else']} anything else"
        )
    assert not findings, "\n" + "\n".join(findings)
    assert total["clear error"] > 5000
    assert total["works"] > 1000


def own_functions(cls: type) -> dict[str, object]:
    """The public functions of a class that this package defines.

    Those that PyG defines and calls, such as `message`, are not called by users.
    """
    theirs = [b for b in cls.__mro__ if b.__module__.startswith("torch_geometric.")]
    found = {}
    for name in dir(cls):
        function = inspect.getattr_static(cls, name)
        function = getattr(function, "__func__", function)
        is_called = not name.startswith("_") or name == "__call__"
        is_own = name == "forward" or not any(name in vars(base) for base in theirs)
        if not (is_called and is_own and inspect.isfunction(function)):
            continue
        if Path(function.__code__.co_filename).is_relative_to(PACKAGE):
            found[name] = function
    return found


def public() -> dict[str, object]:
    """Whatever can be called by public names, with arguments."""
    named = {name: getattr(m, name) for m in MODULES for name in m.__all__}
    for name in ("knn_graph", "radius_graph"):
        assert named[name] is getattr(neighbors, name)
    found = {}
    for name, value in named.items():
        if inspect.isclass(value):
            found[name] = value
            functions = own_functions(value).items()
            found |= {f"{name}.{method}": f for method, f in functions}
        elif inspect.isroutine(value):
            found[name] = value
    return {name: value for name, value in found.items() if parameters(value)}


def test_no_public_name_and_no_argument_is_left_out():
    """A new name, method or argument needs an entry in the table of calls."""
    covered: dict[str, set[str]] = {}
    for key, call in calls().items():
        name = key.partition(" ")[0]
        covered.setdefault(name, set()).update(call.arguments)
    expected = public()
    assert expected.keys() - covered.keys() == TRUSTED.keys()
    assert covered.keys() <= expected.keys()
    for name, arguments in covered.items():
        assert parameters(expected[name]) == arguments, name
