import copy
import math
import os
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch_geometric.loader import DataLoader
from torch_geometric.transforms import Compose, Constant, NormalizeScale
from universes import SMALL, equal, files

from torch_geometric_erwin.datasets import (
    CosmologyLPT,
    fit_linear_velocity,
    linear_velocity,
)
from torch_geometric_erwin.datasets.lpt import LPTSimulation


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return CosmologyLPT(str(tmp_path_factory.mktemp("cosmology")), **SMALL)


def test_clouds(dataset):
    assert len(dataset) == 3
    for data in dataset:
        assert set(data.keys()) == {"pos", "y"}
        for value in (data.pos, data.y):
            assert value.shape == (100, 3)
            assert value.dtype == torch.float32
        assert data.pos.abs().max() <= np.float32(math.sqrt(3))
        assert data.validate()


def test_units(dataset):
    simulation = LPTSimulation(60.0, 32)
    assert dataset.position_scale == pytest.approx(60 / math.sqrt(12))
    assert dataset.velocity_scale == pytest.approx(simulation.velocity_dispersion)
    for i, data in enumerate(dataset):
        rng = np.random.default_rng(np.random.SeedSequence([0, 0, i]))
        pos, velocity = simulation.haloes(rng, 100)
        # One rounding error of float32 at the size of the box, and at 1000 km/s.
        np.testing.assert_allclose(
            data.pos * dataset.position_scale + 30, pos, atol=1e-5
        )
        np.testing.assert_allclose(data.y * dataset.velocity_scale, velocity, atol=1e-4)


def test_a_cloud_of_the_default_size(tmp_path):
    dataset = CosmologyLPT(str(tmp_path), "val", num_clouds=1)
    data = dataset[0]
    assert data.num_nodes == 5000
    # Values are standardised: the mean is small and the standard deviation is near 1.
    # It is not exactly 1, because a box has few large waves and velocities have a
    # second-order part.
    assert data.pos.std(dim=0).sub(1).abs().max() < 0.05
    assert data.y.mean(dim=0).abs().max() < 0.1
    assert 0.8 < data.y.std() < 1.4

    side = math.sqrt(12)
    tree = cKDTree(data.pos.double() % side, boxsize=side)
    pairs = tree.count_neighbors(tree, 0.1) - 5000
    random = 5000 * 4999 * 4 / 3 * math.pi * 0.1**3 / side**3
    assert pairs > 3 * random

    # Linear theory explains about 0.45 of the variance, from 0.38 to 0.51 by cloud.
    smoothing, amplitude = fit_linear_velocity([data], [0.12])
    residual = data.y - linear_velocity(data.pos, smoothing, amplitude)
    assert 0.35 < 1 - residual.square().sum() / data.y.square().sum() < 0.55


def test_a_cloud_depends_on_its_seed_split_and_index_alone(dataset, tmp_path):
    root = str(tmp_path)
    fewer = CosmologyLPT(root, **{**SMALL, "num_clouds": 2})
    assert equal(fewer, dataset[:2])
    other = [dataset[0], dataset[1]]
    for options in ({"split": "val"}, {"split": "test"}, {"seed": 1}):
        other.append(CosmologyLPT(root, **{**SMALL, "num_clouds": 1, **options})[0])
    for i, first in enumerate(other):
        for second in other[i + 1 :]:
            assert not torch.equal(first.pos, second.pos)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_bits_do_not_depend_on_workers(dataset, tmp_path, num_workers):
    assert equal(CosmologyLPT(str(tmp_path), num_workers=num_workers, **SMALL), dataset)


def test_configurations_share_a_root(dataset, tmp_path):
    root = str(tmp_path)
    variants = [
        {},
        {"split": "val"},
        {"num_clouds": 1},
        {"num_halos": 90},
        {"box_size": 60.001},
        {"mesh_size": 33},
        {"redshift": 0.5},
        {"seed": 1},
    ]
    built = [CosmologyLPT(root, **{**SMALL, **variant}) for variant in variants]
    assert len({item.processed_paths[0] for item in built}) == len(variants)
    for variant, item in zip(variants, built):
        assert equal(CosmologyLPT(root, **{**SMALL, **variant}), item)
    assert equal(built[0], dataset)
    assert not torch.equal(built[0][0].y, built[6][0].y)


def test_generates_once(dataset, monkeypatch):
    monkeypatch.setattr(LPTSimulation, "haloes", None)
    assert equal(CosmologyLPT(dataset.root, **SMALL), dataset)
    with pytest.raises(TypeError):
        CosmologyLPT(dataset.root, force_reload=True, **SMALL)
    assert equal(CosmologyLPT(dataset.root, **SMALL), dataset)


def test_a_failing_transform_stops_the_generation(tmp_path, monkeypatch):
    haloes, calls = LPTSimulation.haloes, []

    def counted(self, rng, num_halos):
        calls.append(num_halos)
        return haloes(self, rng, num_halos)

    def fail(data):
        raise RuntimeError("stop")

    monkeypatch.setattr(LPTSimulation, "haloes", counted)
    options = {**SMALL, "num_clouds": 50, "num_workers": 1}
    with pytest.raises(RuntimeError, match="stop"):
        CosmologyLPT(str(tmp_path), pre_transform=fail, **options)
    assert files(tmp_path) == []
    assert len(calls) < 50


def test_progress_bar(tmp_path, capsys):
    CosmologyLPT(str(tmp_path), **SMALL)
    assert "CosmologyLPT train: 100%" in capsys.readouterr().err


def test_transforms(dataset, tmp_path):
    seen = []

    def pre_filter(data):
        seen.append(data)
        return not torch.equal(data.pos, dataset[1].pos)

    kept = CosmologyLPT(
        str(tmp_path),
        pre_filter=pre_filter,
        pre_transform=Compose([NormalizeScale(), Constant(2.0)]),
        transform=Constant(3.0),
        **SMALL,
    )
    assert [set(data.keys()) for data in seen] == [{"pos", "y"}] * 3
    assert len(kept) == 2
    assert torch.equal(kept[1].y, dataset[2].y)
    expected = NormalizeScale()(copy.copy(dataset[2])).pos
    assert torch.equal(kept[1].pos, expected)
    assert kept[1].x.unique(dim=0).tolist() == [[2.0, 3.0]]


def test_other_pre_transform_is_noticed(tmp_path):
    root = str(tmp_path)
    CosmologyLPT(root, pre_transform=Constant(1.0), **SMALL)
    with pytest.warns(UserWarning, match="`pre_transform` argument differs"):
        CosmologyLPT(root, **SMALL)
    with warnings.catch_warnings():  # Another configuration is not concerned.
        warnings.simplefilter("error")
        CosmologyLPT(root, "val", **SMALL)


def test_loader_with_workers(dataset):
    batches = list(DataLoader(dataset, batch_size=2, num_workers=2))
    assert [batch.num_graphs for batch in batches] == [2, 1]
    pos = torch.cat([batch.pos for batch in batches])
    assert torch.equal(pos, torch.cat([data.pos for data in dataset]))


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        CosmologyLPT.copy,
        lambda d: pickle.loads(pickle.dumps(d)),
    ],
    ids=["copy", "deepcopy", "dataset_copy", "pickle"],
)
def test_copies(dataset, duplicate):
    other = duplicate(dataset)
    assert equal(other, dataset)
    assert other.velocity_scale == dataset.velocity_scale


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("split", "valid", "must be one of"),
        ("split", None, "must be one of"),
        *[
            (name, value, "must be an integer of at least")
            for name in ("num_clouds", "num_halos", "mesh_size", "seed", "num_workers")
            for value in (-1, 10.0, math.nan, "10", True, torch.tensor(10))
        ],
        ("num_clouds", 0, "must be an integer of at least 1"),
        ("num_halos", None, "must be an integer of at least 1"),
        ("mesh_size", 4, "must be an integer of at least 8"),
        *[
            ("box_size", value, "must be positive and finite")
            for value in (0.0, -1.0, math.inf, math.nan, "250", None, True)
        ],
        *[
            ("redshift", value, "must be non-negative and finite")
            for value in (-0.5, math.inf, math.nan, "0", None, False)
        ],
    ],
)
def test_bad_arguments(tmp_path, name, value, message):
    got = re.escape(f"(got {value!r})")
    with pytest.raises(ValueError, match=f"'{name}' {message} .*{got}"):
        CosmologyLPT(str(tmp_path), **{**SMALL, name: value})
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["transform", "pre_transform", "pre_filter"])
def test_functions_that_are_none(tmp_path, name):
    with pytest.raises(TypeError, match=rf"'{name}' must be callable \(got 5\)"):
        CosmologyLPT(str(tmp_path), **{**SMALL, name: 5})
    assert files(tmp_path) == []


@pytest.mark.parametrize("root", [None, "", 5, b"data", ["data"]])
def test_root_that_is_no_path(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=r"'root' must be the path of a folder \(got"):
        CosmologyLPT(root, **SMALL)
    assert os.listdir(tmp_path) == []


def test_numbers_of_numpy_and_paths(dataset, tmp_path):
    options = {"num_clouds": np.int64(3), "num_halos": np.int32(100), "mesh_size": 32}
    options = {**options, "box_size": np.float32(60), "redshift": -0.0}
    other = CosmologyLPT(tmp_path, **options)
    assert equal(other, dataset)
    assert equal(CosmologyLPT(str(tmp_path), **SMALL), dataset)
    assert len(files(tmp_path)) == 1


def test_more_haloes_than_peaks(tmp_path):
    with pytest.raises(ValueError, match=r"'num_halos' is 5000, .*a finer mesh"):
        CosmologyLPT(str(tmp_path), mesh_size=32)
    assert files(tmp_path) == []


def test_filter_that_keeps_nothing(tmp_path):
    with pytest.raises(ValueError, match="'pre_filter' keeps none of the 3 clouds"):
        CosmologyLPT(str(tmp_path), pre_filter=lambda data: False, **SMALL)
    assert files(tmp_path) == []
