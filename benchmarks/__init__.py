"""Benchmarks: `make bench`, or `python -m benchmarks`. Ratios within one run come first, since machines differ and are noisy."""
