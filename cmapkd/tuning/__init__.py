"""Search of the runs' settings on the validation splits: `cmapkd tune`."""
