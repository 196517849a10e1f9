"""What all rules share: the checked experiment, its plan, and the parts of both that a rule depends on."""

import shlex
import sys
from pathlib import Path

# The workflow works from any directory (`--directory`), with or without an installed package.
REPOSITORY = str(Path(workflow.basedir).parent)
sys.path.insert(0, REPOSITORY)

from cmapkd.cluster import Site, gpu_resources, layout, partition_of, training_resources
from cmapkd.cluster_check import check_site
from cmapkd.cluster_extra import take_extra
from cmapkd.config import parse_experiment
from cmapkd.errors import UserError, told_by_system
from cmapkd.fingerprint import fingerprint
from cmapkd.jobs import exclusion, keep_logs
from cmapkd.plan import make_plan
from cmapkd.paper.experiment import paper_context
from cmapkd.plain_yaml import refuse_other_reading
from cmapkd import workflow as parts
from cmapkd import workflow_text

try:
    # The profile `default` has checked the files already, unless another workflow profile took its place.
    refuse_other_reading(config, workflow.configfiles, workflow.config_settings)
    parts.share_home()
    RESULTS = parts.results_folder(config.get("results", "results"))
    EXPERIMENT = parse_experiment(
        {key: value for key, value in config.items() if key not in ("results", "image")},
        directory=parts.config_directory(workflow.configfiles),
    )
    PLAN = make_plan(EXPERIMENT)
    PAPER = paper_context(EXPERIMENT, RESULTS)
    # Facts of a cluster, from its profile; without one, everything runs on this machine.
    SITE = Site.read(workflow.resource_settings.default_resources)
    LAYOUT = layout(EXPERIMENT.training.ranks, SITE.ranks_per_node)
    check_site(workflow.resource_settings, Path(REPOSITORY), workflow.is_main_process)
    # Before the rules are made: Snakemake would replace their own options of sbatch by the user's.
    EXTRA = take_extra(workflow.resource_settings, bool(SITE.gpu_request))
except OSError as error:
    raise WorkflowError(str(told_by_system(error) or error)) from None
except UserError as error:
    raise WorkflowError(workflow_text.refusal(error, workflow.configfiles, config.get("results"))) from None

HOME = str(RESULTS / EXPERIMENT.name)
# The experiment as it is, with overrides from the command line, for the sub-commands and for people. It is no input of
# any rule: each rule names in `params` the keys it depends on.
EFFECTIVE = f"{HOME}/experiment.yaml"
# From a training's second attempt on, its job keeps away from nodes on which one has failed.
AVOIDED = exclusion(Path(HOME), LAYOUT.nodes, partition_of("train", workflow.resource_settings))
OPTIONS = shlex.join(["--experiment", EFFECTIVE, "--results", str(RESULTS)])
CONTACT_SHEETS = parts.contact_sheets(EXPERIMENT)


def all_cores():
    """Those of this machine that the workflow may use; on a cluster, the profile's `set-threads` says more."""
    try:
        return workflow.cores
    except WorkflowError:
        return 1


wildcard_constraints:
    dataset="[^/]+",
    split="[^/]+",
    run="[^/]+",
    seed=r"\d+",


onstart:
    try:
        parts.check_files(PLAN, HOME)
    except UserError as error:
        raise WorkflowError(str(error)) from None
    parts.write_effective(EXPERIMENT, EFFECTIVE)
