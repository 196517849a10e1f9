"""Typed configuration: what an experiment file may say, and the reader that explains what is wrong with one."""

from cmapkd.config.load import load_experiment, parse_experiment
from cmapkd.config.schema import ExperimentConfig

__all__ = ["ExperimentConfig", "load_experiment", "parse_experiment"]
