"""Calls every public name with bad values, one argument at a time.

Each call must either work or be refused, by an error of this package that names the
argument and says what would be right. If only the layout, strides or storage of a
tensor is different, the result must be the same. `bad_input/calls.py` holds a valid
call of every public name, `bad_input/kinds.py` the ways to spoil an argument, by its
role, and `bad_input/outcomes.py` what counts as a clear error.
"""

import inspect
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bad_input.calls import TRUSTED, calls, parameters
from bad_input.outcomes import PACKAGE, is_finite, outcome, run
from torch_geometric.data import Batch, Data

import torch_geometric_erwin as package
from torch_geometric_erwin import (
    Tree,
    datasets,
    neighbors,
    nn,
    transforms,
    tree,
    visualization,
)
from torch_geometric_erwin.transforms import BallTree

MODULES = (
    *(package, nn, nn.attention, nn.conv, nn.models, nn.norm, nn.pool),
    *(transforms, tree, datasets, visualization),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Uses one thread: nothing here is large enough for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Hints that PyTorch gives once in a process, when a tensor of that layout is made.
@pytest.mark.filterwarnings("ignore:.*sparse.*", "ignore:.*nested tensors.*")
# For positions near the largest number, the model warns that they are large.
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


def cloud_of(n: int) -> Data:
    pos = torch.rand(n, 3, generator=torch.Generator().manual_seed(n))
    edge_index = torch.stack([torch.arange(5), torch.arange(5) + 1])
    return Data(pos=pos, edge_index=edge_index)


def moved(batch: Batch) -> Batch:
    batch.ptr = torch.tensor([0, 11, 20])
    return batch


def fewer_edges(batch: Batch) -> Batch:
    # Two balls a cloud, as many as there are edges: PyG cuts both.
    cloud = BallTree([8], rotate=0.0)(cloud_of(33))
    cloud.edge_index = cloud.edge_index[:, : cloud.ball_len_0.size(0)]
    return cloud.edge_subgraph(torch.arange(cloud.edge_index.size(1)) > 0)


def with_value(name: str, value: int):
    def spoil(batch: Batch) -> Batch:
        batch[name] = batch[name].clone()
        batch[name].view(-1)[0] = value
        return batch

    return spoil


# What a user may have done to data with a tree, and the words in the error.
CAUSES = {
    "forgotten offsets": (
        lambda b: Data.from_dict({k: b[k] for k in b.to_dict() if k not in PTR}),
        "'ptr' is missing, and so is 'batch'",
    ),
    "other clouds": (moved, "'ptr' of [11, 9]: the clouds must be those"),
    "removed": (lambda b: b.subgraph(torch.arange(15)), "added or removed"),
    "reordered": (
        lambda b: Batch.from_data_list([b[0].subgraph(torch.arange(12).flip(0)), b[1]]),
        "reordered or replaced",
    ),
    "an edge's attribute": (fewer_edges, "for an attribute of nodes or edges"),
    "another device": (
        lambda b: b.update({"perm": b.perm.to("meta")}),
        "'perm' is on meta, 'pos' is on cpu",
    ),
    "another configuration": (
        lambda b: BallTree([8], rotate=90.0)(b),
        "was built for 'balls=8 strides= rotate=90.0",
    ),
    "no configuration": (lambda b: without(b, "tree_config"), "has no 'tree_config'"),
    "a table is missing": (lambda b: without(b, "ball_len_0"), "has no 'ball_len_0'"),
    "a table was changed": (
        with_value("ball_len_0", 7),
        "'ball_len_0' has 7 at 0, expected 6; its tables were changed",
    ),
    "an order was changed": (
        with_value("perm", 100),
        "'perm' is not a permutation of the rows of cloud 0; its tables were changed",
    ),
    "another type": (
        lambda b: b.update({"perm": b.perm.float()}),
        "'perm' is torch.float32 with 1 dimensions",
    ),
}
PTR = ("ptr", "batch")


def without(batch: Batch, name: str) -> Batch:
    del batch[name]
    return batch


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_has_its_own_words(cause):
    spoil, words = CAUSES[cause]
    transform = BallTree([8], rotate=0.0)
    data = spoil(transform(Batch.from_data_list([cloud_of(12), cloud_of(8)])))
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        Tree.from_data(data, transform.config)
    others = [other for name, (_, other) in CAUSES.items() if name != cause]
    assert not any(other in str(caught.value) for other in others)


def own_functions(cls: type) -> dict[str, object]:
    """The public functions of a class that this package defines.

    Users do not call those that PyG defines and calls, such as `message`.
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
    """Everything public that can be called with arguments."""
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
