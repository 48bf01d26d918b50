"""The file descriptors that batches from workers take are those of the guide."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from torch_geometric_erwin.transforms import BallTree

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
GUIDE = (Path(__file__).parents[1] / "docs" / "pyg.md").read_text()


@pytest.fixture
def strategy():
    before = mp.get_sharing_strategy()
    yield mp.set_sharing_strategy
    mp.set_sharing_strategy(before)


def taken(levels):
    """How many descriptors a batch keeps open, with a tree of so many levels."""
    clouds = [Data(x=torch.rand(100, 4), pos=torch.rand(100, 3)) for _ in range(6)]
    if levels:
        transform = BallTree(16, [2] * (levels - 1))
        clouds = [transform(data) for data in clouds]
    kept, counts = [], []
    for batch in DataLoader(clouds, batch_size=2, num_workers=1):
        kept.append(batch)
        counts.append(len(os.listdir("/proc/self/fd")))
    return counts[-1] - counts[-2]


def test_the_numbers_of_the_guide(strategy):
    strategy("file_descriptor")
    text = " ".join(GUIDE.split())
    pattern = (
        r"took (\d+) of them; with a tree of one level (\d+), of three levels (\d+)"
    )
    told = [int(number) for number in re.search(pattern, text).groups()]
    assert [taken(levels) for levels in (0, 1, 3)] == told


def test_files_with_names_take_none(strategy):
    strategy("file_system")
    assert taken(levels=3) == 0
