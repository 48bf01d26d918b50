r"""Datasets, one class for each task, and baselines from physics for the tasks."""

from torch_geometric_erwin.datasets.cosmology import CosmologyLPT
from torch_geometric_erwin.datasets.linear_velocity import (
    fit_linear_velocity,
    linear_velocity,
)

__all__ = [
    "CosmologyLPT",
    "fit_linear_velocity",
    "linear_velocity",
]
