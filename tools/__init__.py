r"""What those who work on the package run beside its tests and benchmarks."""
