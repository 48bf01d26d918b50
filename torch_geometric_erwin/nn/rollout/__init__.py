r"""Predicting step after step, from the model's own predictions."""

from torch_geometric_erwin.nn.rollout.rollout import Rollout

__all__ = ["Rollout"]
