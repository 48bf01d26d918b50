r"""Trees as attributes of :class:`~torch_geometric.data.Data` and batches of them."""
