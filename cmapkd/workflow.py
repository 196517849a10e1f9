"""Helpers of the workflow's rules: which part of an experiment, of the plan and of the code each rule depends on."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cmapkd import drivers, jobs
from cmapkd.cluster import Layout, Site
from cmapkd.config.load import effective_text
from cmapkd.config.overlap import checked_splits, needs_overlap, overlap_settings
from cmapkd.config.schema import ExperimentConfig
from cmapkd.done import say_what_was_made as say_what_was_made
from cmapkd.files import digest, read_json, sha256_of, write_atomic
from cmapkd.fingerprint import evaluation_code, fingerprint, training_code
from cmapkd.gate import GATE
from cmapkd.image import chosen as chosen
from cmapkd.imported import weights_params as weights_params
from cmapkd.paper import build
from cmapkd.paper.algorithms import ALGORITHMS
from cmapkd.paper.context import PaperContext
from cmapkd.paper.figures import DRAWINGS, FIGURES
from cmapkd.paper.log_page import logs_of
from cmapkd.paper.manuscript import missing_for_manuscript, sources
from cmapkd.paper.tables import TABLES
from cmapkd.paper.tables.tuned import TunedFile
from cmapkd.plan import TEACHER, Plan
from cmapkd.runs import find_run, teacher_seed
from cmapkd.start import check_files as check_files
from cmapkd.start import enter_image as enter_image
from cmapkd.start import results_folder as results_folder
from cmapkd.start import share_home as share_home


def quoted(path: str | Path) -> str:
    """A path as one word of a shell line that Snakemake formats before it is run."""
    return shlex.quote(str(path)).replace("{", "{{").replace("}", "}}")


def as_label(text: str) -> str:
    """A text as a label of the report, where Snakemake would put a wildcard for `{run}`: an invisible character prevents it."""
    return text.replace("{", "{\u2060")


def config_directory(files: Sequence[str | Path]) -> Path | None:
    """Folder of the experiment's file, where what it extends is looked for first; None without a file."""
    return Path(files[-1]).absolute().parent if files else None


def write_effective(experiment: ExperimentConfig, path: str | Path) -> None:
    """Keep the experiment with its results, every default written out; an unchanged file is left untouched."""
    text = effective_text(experiment.model_dump(mode="json"))
    path = Path(path)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)


def contact_sheets(experiment: ExperimentConfig) -> list[str]:
    """``<dataset>/<split>`` of every split the experiment uses, each of which gets a contact sheet."""
    return list(dict.fromkeys([*experiment.distillation, *experiment.evaluation.references()]))


def dataset_params(experiment: ExperimentConfig, dataset: str) -> dict[str, str]:
    """Configuration and code that a data set's shards depend on."""
    config = experiment.datasets[dataset]
    return {
        "config": digest(config.model_dump(mode="json", exclude=set(config.operational)), 16),
        "code": fingerprint(f"cmapkd.data.sources.{config.source}", "cmapkd.data.shards"),
    }


def overlap_inputs(experiment: ExperimentConfig, home: str, dataset: str) -> list[str]:
    """The report on overlap, for a data set whose shards leave out what evaluation splits hold."""
    return [f"{home}/data/overlap.json"] if needs_overlap(experiment, dataset) else []


def overlap_sources(experiment: ExperimentConfig, home: str) -> list[str]:
    """What was fetched of every data set that is compared."""
    names = dict.fromkeys(reference.partition("/")[0] for splits in checked_splits(experiment) for reference in splits)
    return [f"{home}/data/{name}.fetched.json" for name in names]


def overlap_params(experiment: ExperimentConfig) -> dict[str, str]:
    """Configuration and code that the report on overlap depends on."""
    settings = overlap_settings(experiment)
    sources = sorted({f"cmapkd.data.sources.{config['source']}" for config in settings["datasets"].values()})
    return {"config": digest(settings, 16), "code": fingerprint("cmapkd.data.overlap", *sources)}


def train_params(plan: Plan, address: str) -> dict[str, str]:
    """Code that a stage depends on. Its configuration is in its address already."""
    method = plan.stages[address].method
    return {"code": training_code(method)}


def stage_inputs(plan: Plan, home: str, address: str) -> list[str]:
    """Results of the stages before this one, and the manifests of its data."""
    stage = plan.stages[address]
    return [f"{home}/stages/{parent}/stage.json" for parent in stage.parents] + [
        f"{home}/data/{dataset}/manifest.json" for dataset in stage.datasets
    ]


def gate_inputs(plan: Plan, home: str, address: str) -> list[str]:
    """The teacher's gate, where numbers are expected of the teacher, for all but what the teacher itself is made of."""
    gated = plan.experiment.teacher.expected and address != plan.teacher and plan.stages[address].method != "pretrained"
    return [f"{home}/{GATE}"] if gated else []


def gate_params(plan: Plan) -> dict[str, str]:
    """What the teacher's gate depends on beside its metrics."""
    teacher = plan.experiment.teacher
    return {"config": digest([teacher.expected, teacher.tolerance], 16), "code": fingerprint("cmapkd.gate")}


def pretrained_stages(plan: Plan) -> str:
    """A pattern of the addresses of weights that are fetched instead of trained; one that nothing matches without any."""
    return "|".join(address for address, stage in plan.stages.items() if stage.method == "pretrained") or "(?!)"


def run_stages(plan: Plan, home: str, directory: str) -> list[str]:
    """Results of every stage of a run, in order, and of those of the teacher that its inference needs."""
    run = find_run(plan, directory)
    return [f"{home}/stages/{address}/stage.json" for address in (*run.stages, *plan.deployed_teacher(run).values())]


def level_inputs(plan: Plan, home: str, directory: str) -> list[str]:
    """The teacher and its pyramid, which the levels of a run's student are compared with."""
    settings = plan.stages[find_run(plan, directory).stages[-1]].settings
    compared = ("teacher", "teacher_pyramid") if settings.get("teacher_pyramid") else ()
    return [f"{home}/stages/{settings[key]}/stage.json" for key in compared]


def evaluation_params(plan: Plan, directory: str) -> dict[str, str]:
    """Configuration and code that a run's metrics depend on."""
    method = plan.stages[find_run(plan, directory).stages[-1]].method
    return {"config": digest(plan.experiment.evaluation.model_dump(mode="json"), 16), "code": evaluation_code(method)}


def evaluation_inputs(experiment: ExperimentConfig, home: str) -> list[str]:
    """Manifests of all data sets that are evaluated on."""
    datasets = dict.fromkeys(reference.partition("/")[0] for reference in experiment.evaluation.references())
    return [f"{home}/data/{dataset}/manifest.json" for dataset in datasets]


def teacher_directory(plan: Plan) -> str:
    """The teacher among the runs."""
    return f"{TEACHER}/{teacher_seed(plan.experiment)}"


def metrics(plan: Plan, home: str) -> list[str]:
    """Metric files of the teacher and of every run and seed."""
    directories = [teacher_directory(plan), *(run.directory for run in plan.runs)]
    return [f"{home}/metrics/{directory}.json" for directory in directories]


def paper_params(context: PaperContext, *modules: str) -> dict[str, Any]:
    """What the paper is told about the experiment, and the code of one of its parts."""
    shown = {
        "runs": [run.__dict__ for run in context.runs],
        "seeds": list(context.seeds),
        "splits": [context.retrieval, context.zeroshot, context.vqa],
        "labels": dict(context.labels),
        "other": [
            context.title,
            context.planned,
            context.tables,
            context.appendix,
            context.full_run,
            context.figures,
            context.algorithms,
            context.weights_run,
            context.weights_samples,
            context.appendix_figures,
            context.analysis_run,
        ],
        "bootstrap": context.bootstrap.__dict__,
        "student": context.student_initialisation,
        "teacher": [context.teacher_label, context.teacher_seed],
        "experiment": context.experiment_digest,
        "planned": sha256_of(context.planned_file) if context.planned else None,
    }
    return {"config": digest(shown, 16), "code": fingerprint(*modules)}


def part_labels(context: PaperContext, form: str) -> Callable[[Any, Any], dict[str, str]]:
    """How the report lists a table or figure: its number in the paper, its title once it is made, and in which form."""

    def labels(wildcards: Any, output: Any) -> dict[str, str]:
        title = read_json(output.json)["title"]
        return {"part": context.part_title(Path(output.json).stem), "about": as_label(title), "as": form}

    return labels


def run_pages(plan: Plan, home: str) -> list[str]:
    """The report's page of the teacher and of every run and seed."""
    directories = [teacher_directory(plan), *(run.directory for run in plan.runs)]
    return [f"{home}/report/runs/{directory}.html" for directory in directories]


def run_title(plan: Plan, directory: str) -> str:
    """A run's name, not that of its folder, as a label of the report."""
    return as_label(find_run(plan, directory).name)


def run_page_params(plan: Plan, context: PaperContext, directory: str) -> dict[str, str]:
    """What a run's page shows beside the run's own files, and its code."""
    run = find_run(plan, directory)
    configured = {name: method.model_dump(mode="json") for name, method in plan.experiment.runs.items() if name == run.name}
    shown = [configured, run.stages, *(entry.__dict__ for entry in context.runs if entry.name == run.name)]
    return {"config": digest(shown, 16), "code": fingerprint("cmapkd.paper.run_page")}


def log_title(plan: Plan, step: str, name: str) -> str:
    """What the job of a log did, as a label of the report; the log's own name if it is of no job of this plan."""
    return as_label(logs_of(plan).get(f"{step}/{name}", (name, "", ""))[0])


def log_inputs(plan: Plan, home: str) -> list[str]:
    """Results of the jobs whose logs are in the report."""
    manifests = [f"{home}/data/{dataset}/manifest.json" for dataset in plan.experiment.datasets]
    return [*manifests, *(f"{home}/stages/{address}/stage.json" for address in plan.stages), *metrics(plan, home)]


def log_params(plan: Plan) -> dict[str, str]:
    """Which logs there are, and the code of their pages."""
    return {"config": digest(logs_of(plan), 16), "code": fingerprint("cmapkd.paper.log_page")}


def arrays(plan: Plan, home: str) -> list[str]:
    """Per-query arrays beside the metric files."""
    return [str(Path(file).with_suffix(".npz")) for file in metrics(plan, home)]


def table_inputs(plan: Plan, context: PaperContext, home: str, name: str) -> list[str]:
    """Files that one table reads: metrics and the per-query arrays behind its tests, if it shows what was measured.

    Raises:
        UserError: the table of tuned values, without a file of them.
    """
    if name == "table1":
        return []
    if name == "tuned":
        return [str(TunedFile(context).path)]
    return metrics(plan, home) + arrays(plan, home)


def table_title(name: str) -> str:
    """What messages call a table: ``Table 2``, or by its name where it has no number."""
    return f"Table {name.removeprefix('table')}"


def figure_title(name: str) -> str:
    """What messages call a figure: ``Figure 3``, or by its name where it has no number."""
    return f"Figure {name.removeprefix('figure')}"


def table_params(context: PaperContext, name: str) -> dict[str, Any]:
    """What one table depends on beside the metrics: settings, code and, of the table of tuned values, the file's content."""
    params = paper_params(context, TABLES[name], "cmapkd.paper.latex", "cmapkd.paper.table_page")
    return {**params, "tuned": TunedFile(context).sha256} if name == "tuned" else params


def figure_params(context: PaperContext, name: str) -> dict[str, Any]:
    """What one figure depends on beside the metrics."""
    return paper_params(context, FIGURES[name], "cmapkd.paper.picture", "cmapkd.paper.table_page")


def launch_variables(site: Site, layout: Layout, image: str, deployment: Any) -> str:
    """Shell assignments that tell ``cmapkd.launch`` of the site; nothing where a training stays on one machine.

    Args:
        image: path of the container's image.
        deployment: Snakemake's deployment settings.
    """
    if layout.nodes == 1:
        return ""
    variables = {"CMAPKD_RANKS_PER_NODE": str(site.ranks_per_node)}
    if in_containers(deployment):
        # What Snakemake itself does around the command of other rules.
        home, code = (shlex.quote(str(path)) for path in (Path.cwd(), Path(__file__).parents[1]))
        options = f"--home {home} --env PYTHONPATH={code} {deployment.apptainer_args}".strip()
        program = "apptainer" if shutil.which("apptainer") else "singularity"
        variables["CMAPKD_CONTAINER"] = f"{program} exec {options} {shlex.quote(str(Path(image).resolve()))}"
    lines = "".join(f"export {name}={shlex.quote(value)}; " for name, value in variables.items())
    return lines.replace("{", "{{").replace("}", "}}")  # Snakemake formats it


def in_containers(deployment: Any) -> bool:
    """Whether Snakemake runs jobs in the image, by its deployment settings."""
    return any(method.name == "APPTAINER" for method in deployment.deployment_method)


def job_prefix(remote: bool, arguments: Sequence[str] | None = None) -> str:
    """Shell text in front of a job's command: what the job knows of itself, and patience with signals; nothing elsewhere.

    Bash and `tee` ignore what asks the command to stop, and end when it has ended; the command heeds it (`cmapkd.jobs`).

    Args:
        remote: whether this Snakemake runs one job of another one.
        arguments: of this process. While it reads the rules, Snakemake itself does not know its `--attempt` yet.
    """
    if not remote:
        return ""
    given = jobs.option("--attempt", arguments)
    attempt = int(given[0]) if given and given[0].isdigit() else 1
    jobs.outlive_signals()
    lines = "".join(f"export {name}={shlex.quote(value)}; " for name, value in jobs.variables(attempt).items())
    return f"trap '' TERM USR1; {lines}"


def outlast_slurm(submits: bool) -> None:
    """Have jobs submitted by an executor that waits for a SLURM that fails for a while; without effect for other executors.

    Args:
        submits: whether this Snakemake may submit jobs; one that runs a single job of another Snakemake does not.
    """
    from cmapkd.slurm.executor import install, quote_interpreter

    quote_interpreter()
    if submits:
        install()


def say_who_works_here(main: bool) -> None:
    """Say more than Snakemake does where it will refuse to start because its folder is locked."""
    if (
        main
        and not {"--unlock", "-n", "--dry-run", "--lint", "--report"} & set(sys.argv)
        and (message := drivers.told(drivers.look(Path.cwd())))
    ):
        sys.stderr.write(f"Note: {message}.\n")


def has_latex() -> bool:
    """Whether PDFs can be typeset here."""
    return build.has_latex()


def algorithm_params(context: PaperContext, name: str) -> dict[str, Any]:
    """What one algorithm depends on."""
    return paper_params(context, ALGORITHMS[name])


def figure_names(*, drawings: bool) -> str:
    """Names, as a pattern, of the figures that are drawings of what was configured, or of those of what was measured."""
    return "|".join(name for name in FIGURES if (name in DRAWINGS) == drawings)


def manuscript_files(context: PaperContext, latex: bool, deployed: bool = False) -> list[str]:
    """The manuscript's own files, where it can be typeset, as it always can in an image; else nothing, after saying why."""
    if context.manuscript is None or not latex:
        return []
    if not deployed and (missing := missing_for_manuscript()):
        sys.stderr.write(f"The manuscript is left out: there is no {', '.join(missing)} here.\n")
        return []
    return [str(path) for path in sources(context)]


def exports(plan: Plan, home: str) -> list[str]:
    """Directories of the students that are exported, each seed a model of its own."""
    return [f"{home}/export/{run.directory}" for run in plan.runs if run.name in plan.experiment.export]
