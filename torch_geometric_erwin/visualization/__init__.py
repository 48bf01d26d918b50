r"""Pictures of ball trees. They need :obj:`matplotlib`, imported at the first one."""

from torch_geometric_erwin.visualization.ball_tree import ball_of_row, plot_ball_tree

__all__ = ["ball_of_row", "plot_ball_tree"]
