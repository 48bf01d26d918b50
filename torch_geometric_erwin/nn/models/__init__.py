r"""Models."""

from torch_geometric_erwin.nn.models.embedding import MPNNEmbedding
from torch_geometric_erwin.nn.models.erwin import Erwin
from torch_geometric_erwin.nn.models.mpnn import MPNN
from torch_geometric_erwin.nn.models.stage import ErwinStage

__all__ = ["MPNN", "Erwin", "ErwinStage", "MPNNEmbedding"]
