r"""Pictures; they need :obj:`matplotlib`, which is imported when one is drawn."""

from torch_geometric_erwin.visualization.ball_tree import ball_of_row, plot_ball_tree

__all__ = ["ball_of_row", "plot_ball_tree"]
