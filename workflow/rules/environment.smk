"""What jobs run in, and what of it is missing here."""

# Whether jobs run in it; then its digest is an input of what computes, so that another image is seen.
DEPLOYED = parts.in_containers(workflow.deployment_settings)
try:
    IMAGE = str(parts.chosen(config.get("image")))
    IMAGE_RECORD = (
        parts.enter_image(IMAGE, HOME, [REPOSITORY, RESULTS], EXPERIMENT, workflow.is_main_process) if DEPLOYED else []
    )
except UserError as error:
    raise WorkflowError(str(error)) from None


# Taken by `--software-deployment-method apptainer`, ignored otherwise.
container: IMAGE


# Jobs use the Python that runs the workflow and the package beside it, unless they run in a container, which has its own.
shell.prefix(
    "set -euo pipefail; "
    f'[ -n "${{{{APPTAINER_CONTAINER:-${{{{SINGULARITY_CONTAINER:-}}}}}}}}" ] || '
    f'export PATH={parts.quoted(Path(sys.executable).parent)}:"$PATH"; '
    f"export PYTHONPATH={parts.quoted(REPOSITORY)}; "
    f"{parts.launch_variables(SITE, LAYOUT, IMAGE, workflow.deployment_settings)}"
    f"{parts.job_prefix(workflow.remote_exec)}"
)

parts.say_who_works_here(workflow.is_main_process)
parts.outlast_slurm(workflow.is_main_process)

# Where there is no LaTeX, everything but the PDF is made, and the workflow says so at its end.
LATEX = DEPLOYED or parts.has_latex()  # the image has it
MANUSCRIPT = parts.manuscript_files(PAPER, LATEX, DEPLOYED)


onsuccess:
    parts.say_what_was_made(HOME, LATEX, workflow.dag)
