"""What an experiment costs before it runs: arithmetic from the configuration, time from what was measured. Torch-free."""
