r"""Models."""

from torch_geometric_erwin.nn.models.embedding import MPNNEmbedding
from torch_geometric_erwin.nn.models.erwin import Erwin, ErwinStage
from torch_geometric_erwin.nn.models.mpnn import MPNN

__all__ = ["MPNN", "Erwin", "ErwinStage", "MPNNEmbedding"]
