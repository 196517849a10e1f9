"""What jobs run in, and what of it is missing here."""

IMAGE = "containers/cmapkd.sif"


# Taken by `--software-deployment-method apptainer`, ignored otherwise.
container: IMAGE


# Jobs use the Python that runs the workflow and the package beside it, unless they run in a container, which has its own.
shell.prefix(
    "set -euo pipefail; "
    f'[ -n "${{{{APPTAINER_CONTAINER:-}}}}" ] || export PATH="{Path(sys.executable).parent}:$PATH"; '
    f'export PYTHONPATH="{REPOSITORY}"; '
    f"{parts.launch_variables(SITE, LAYOUT, IMAGE, workflow.deployment_settings)}"
    f"{parts.job_prefix(workflow.remote_exec)}"
)

parts.say_who_works_here(workflow.is_main_process)

# Where there is no LaTeX, everything but the PDF is made, and the workflow says so at its end.
LATEX = parts.has_latex()
MANUSCRIPT = parts.manuscript_files(PAPER, LATEX)


onsuccess:
    parts.say_what_was_made(HOME, LATEX, bool(MANUSCRIPT))
