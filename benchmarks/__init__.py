"""Benchmarks: `make bench`. Ratios within one run come first, since machines differ and are noisy."""
