r"""Tools for developers, in addition to the tests and benchmarks."""
