"""CMAPKD: adaptive pyramid-based cross-modal knowledge distillation, from a plan to a reproducible paper."""

__version__ = "0.1.0"
