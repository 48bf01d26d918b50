r"""Benchmarks against the original implementation and other packages."""
