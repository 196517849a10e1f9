"""Submit jobs to a SLURM that fails for a while. `executor` takes the place of the executor of Snakemake's plugin."""
