"""The chain below a paper, link by link: data sets, training stages, runs, metric files. Every digest is computed again.

data/<dataset>/manifest.json   shards and classes have the digests it names, and it has the digest that everything else names
stages/<stage>/stage.json      its settings have the digest in its address; its files are those that it names, and its parents'
                               files are those that it was trained on
runs/<run>/<seed>/run.json     its stages are those of the experiment, and as they are now; its model is the last one's
metrics/<run>/<seed>.json      it is of these stages and data, as this experiment evaluates; its arrays are those it names
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmapkd.config.schema import ExperimentConfig
from cmapkd.data.index import misplaced, read_index
from cmapkd.data.shards import CLASSES, MANIFEST
from cmapkd.files import digest, read_json
from cmapkd.imported import replaced
from cmapkd.paper.context import PaperContext
from cmapkd.paper.findings import Findings
from cmapkd.plan import Plan, Run
from cmapkd.runs import RUN, STUDENT, find_run

RESULT = "stage.json"
DEEP_BELOW = 4 * 2**30  # [bytes] of shards that are hashed without being asked to: seconds, at a disk's speed
STAGE_KEYS = ("address", "code", "commit", "dirty", "host", "started")  # in which a metric file repeats its stages


@dataclass
class Chain:
    """What was found on the way, for the checks above it.

    Attributes:
        data: digest of each data set's manifest.
        stages: content of each ``stage.json`` that a number rests on, by address.
        metrics: content of each metric file, by run and seed.
        methods: method of each stage of the plan, by address.
    """

    data: dict[str, str] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)


def check_chain(
    context: PaperContext, experiment: ExperimentConfig, plan: Plan | None, findings: Findings, deep: bool | None
) -> Chain:
    """All of it. ``plan`` is None when the experiment has none any more (that is a problem already).

    Args:
        deep: whether shards are hashed; None: if they have less than ``DEEP_BELOW`` bytes.
    """
    chain = Chain(methods={address: stage.method for address, stage in plan.stages.items()} if plan else {})
    check_data(context, experiment, findings, chain, deep)
    for name in context.directories:
        for seed in context.seeds_of(name):
            run = find_run(plan, f"{context.directories[name]}/{seed}") if plan else None
            addresses = _addresses(plan, run) if plan and run else None
            path = context.metric_file(name, seed)
            with findings.reading(path, f"evaluate the run again: {context.recompute(path)}"):
                check_metrics(context, experiment, findings, chain, name, seed, run, addresses)
            check_run(context, findings, chain, name, seed, addresses)
            check_stages(context, findings, chain, addresses or ())
    for content in list(chain.metrics.values()):
        check_stages(context, findings, chain, named_stages(content))
    for run_name, seed in chain.metrics:
        path = context.metric_file(run_name, seed)
        with findings.reading(path, f"evaluate the run again: {context.recompute(path)}"):
            _compare_stages(context, findings, chain, run_name, seed)
    for address in chain.stages:
        path = context.results / "stages" / address / RESULT
        with findings.reading(path, f"make it again: {context.recompute(path)}"):
            _check_parents(context, findings, chain, address, path)
    check_strangers(context, findings)
    for path, reason in replaced(plan, context.results) if plan else ():
        findings.problem(path, reason, f"make it again: {context.recompute(path)}")
    return chain


# ---- data -----------------------------------------------------------------------------------------------------------------


def check_data(
    context: PaperContext, experiment: ExperimentConfig, findings: Findings, chain: Chain, deep: bool | None
) -> None:
    """Every data set that the experiment uses: manifest, classes, shards and their indices."""
    manifests = {}
    used = (*experiment.distillation, *experiment.evaluation.references())
    for dataset in dict.fromkeys(reference.partition("/")[0] for reference in used):
        directory = context.results / "data" / dataset
        fix = _build(context, dataset)
        if (manifest := findings.json(directory / MANIFEST, fix, kind="data sets")) is not None:
            manifests[dataset] = manifest
    total = 0
    for dataset in list(manifests):
        path = context.results / "data" / dataset / MANIFEST
        with findings.reading(path, f"delete it, then {_build(context, dataset)}"):
            total += sum(shard["bytes"] for shard in _shards(manifests[dataset]))
            continue
        del manifests[dataset]  # it is a problem already, and nothing more can be read from it
    hashed = total < DEEP_BELOW if deep is None else deep
    if not hashed:
        findings.note(f"{total / 1e6:.1f} MB of shards were not hashed, only measured; --deep hashes them")
    for dataset, manifest in manifests.items():
        directory = context.results / "data" / dataset
        chain.data[dataset] = str(manifest.get("digest"))
        with findings.reading(directory / MANIFEST, f"delete it, then {_build(context, dataset)}"):
            _check_manifest(context, directory, dataset, manifest, findings)
            for shard in _shards(manifest):
                _check_shard(context, directory, dataset, shard, findings, deep=hashed)


def _build(context: PaperContext, dataset: str) -> str:
    """What writes the shards of a data set that are missing or damaged, and keeps the others."""
    return f"build the data set again: {context.command('data', 'build', dataset)}"


def _shards(manifest: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    for split in manifest.get("splits", {}).values():
        yield from split["shards"]


def _check_manifest(
    context: PaperContext, directory: Path, dataset: str, manifest: Mapping[str, Any], findings: Findings
) -> None:
    path = directory / MANIFEST
    fix = _build(context, dataset)
    classes = None
    if (directory / CLASSES).is_file() and (content := findings.json(directory / CLASSES, fix)) is not None:
        classes = [content.get("classes"), content.get("templates")]
    hashes = {split: [shard["sha256"] for shard in record["shards"]] for split, record in manifest.get("splits", {}).items()}
    made = digest({"shards": hashes, "classes": classes})
    findings.counts["digests"] += 1
    if made != manifest.get("digest"):
        reason = (
            f"its digest is {str(manifest.get('digest'))[:12]}, but shards and {CLASSES} give {made[:12]}: "
            "one of the two files was changed"
        )
        findings.problem(path, reason, f"delete it, then {fix}")


def _check_shard(
    context: PaperContext, directory: Path, dataset: str, shard: Mapping[str, Any], findings: Findings, *, deep: bool
) -> None:
    path = directory / shard["path"]
    fix = f"what was trained on this shard is another run's; {_build(context, dataset)}"
    if not path.is_file():
        findings.problem(path, f"is missing; {MANIFEST} names it", fix)
        return
    if path.stat().st_size != shard["bytes"]:
        findings.problem(path, f"has {path.stat().st_size} bytes instead of {shard['bytes']}", fix)
        return
    if deep:
        findings.same(path, shard["sha256"], MANIFEST, fix)
    try:
        index = read_index(path)
    except ValueError as error:
        findings.problem(path, str(error), fix)
        return
    findings.counts["files"] += 1
    if any(index.get(name) != shard[name] for name in ("samples", "bytes", "sha256")):
        findings.problem(path.with_suffix(".index.json"), f"describes another shard than {MANIFEST}", fix)
    elif deep and (reason := misplaced(path, index)) is not None:
        findings.problem(path.with_suffix(".index.json"), reason, fix)


# ---- stages ---------------------------------------------------------------------------------------------------------------


def check_stages(context: PaperContext, findings: Findings, chain: Chain, addresses: Iterable[str]) -> None:
    """Stages and those they start from or learn from."""
    waiting = list(addresses)
    while waiting:
        address = waiting.pop(0)
        if address in chain.stages:
            continue
        directory = context.results / "stages" / address
        path = directory / RESULT
        fix = f"make it again: {context.recompute(path)}"
        missing = "is missing: a training that numbers rest on is gone, or not finished"
        record = findings.json(path, fix, missing=missing, kind="stages")
        chain.stages[address] = record or {}
        if record is not None:
            with findings.reading(path, fix):
                _check_stage(context, findings, chain, path, record, fix)
                waiting += [str(parent) for parent in record["parents"]]


def _check_stage(
    context: PaperContext, findings: Findings, chain: Chain, path: Path, record: Mapping[str, Any], fix: str
) -> None:
    address, directory = path.parent.name, path.parent
    settings = record.get("settings", {})
    findings.counts["digests"] += 2
    if record.get("address") != address or address.rpartition("-")[2] != digest(settings, length=12):
        findings.problem(path, "its settings are not those that its address was made from", fix)
    if record.get("provenance", {}).get("config_digest") != digest(settings):
        findings.problem(path, "its settings are not those that its provenance names", fix)
    if not record.get("files"):
        findings.problem(path, "names no files", fix)
    for name, expected in record.get("files", {}).items():
        findings.same(directory / name, expected, f"{address}/{RESULT}", fix)
    _check_digests(context, findings, chain, path, record.get("provenance", {}), fix)


def _check_parents(context: PaperContext, findings: Findings, chain: Chain, address: str, path: Path) -> None:
    """A stage was trained on the files that its parents have now."""
    record = chain.stages[address]
    for parent in record.get("parents", []):
        now, then = chain.stages.get(str(parent), {}).get("files"), record.get("rests_on", {}).get(parent)
        if now is None:
            continue  # a problem of the parent's own
        findings.counts["digests"] += 1
        if then != now:
            how = "does not say which files of" if then is None else "was trained on other files than are there now of"
            findings.problem(path, f"{how} {parent}", f"make it again: {context.recompute(path)}")


def _check_digests(
    context: PaperContext, findings: Findings, chain: Chain, path: Path, provenance: Mapping[str, Any], fix: str
) -> None:
    """The data that a file names are those that are here."""
    for dataset, value in provenance.get("data_digests", {}).items():
        findings.counts["digests"] += 1
        known = chain.data.get(dataset)
        if known is not None and value != known:
            reason = (
                f"rests on {dataset} with digest {str(value)[:12]}, but data/{dataset}/{MANIFEST} has {known[:12]}: "
                "runs of different data in one table"
            )
            findings.problem(path, reason, fix)


# ---- runs -----------------------------------------------------------------------------------------------------------------


def _addresses(plan: Plan, run: Run) -> list[str]:
    return [*run.stages, *plan.deployed_teacher(run).values()]


def check_run(
    context: PaperContext, findings: Findings, chain: Chain, name: str, seed: int, addresses: list[str] | None
) -> None:
    """``run.json`` against the stages as they are now, and the collected model against the last one's."""
    home = context.results / "runs" / context.directories[name] / str(seed)
    path = home / RUN
    fix = f"make it again: {context.recompute(path)}"
    record = findings.json(path, fix, kind="models of runs")
    if record is not None:
        with findings.reading(path, fix):
            _check_collected(context, findings, chain, name, seed, addresses, home, record, fix)


def _check_collected(
    context: PaperContext,
    findings: Findings,
    chain: Chain,
    name: str,
    seed: int,
    addresses: list[str] | None,
    home: Path,
    record: Mapping[str, Any],
    fix: str,
) -> None:
    path = home / RUN
    if (record.get("run"), record.get("seed")) != (name, seed):
        findings.problem(path, f"is of {record.get('run')}, seed {record.get('seed')}, not of {name}, seed {seed}", fix)
    stages = [*record.get("stages", []), *record.get("deployed_teacher", [])]
    found = [stage.get("address") for stage in stages]
    if addresses is not None and found != addresses:
        reason = f"its stages are {', '.join(map(str, found))}, but the experiment's are {', '.join(addresses)}"
        findings.problem(path, reason, fix)
    check_stages(context, findings, chain, [address for address in found if address])
    for stage in stages:
        now = chain.stages.get(str(stage.get("address")), {})
        for key in ("files", "code", "provenance"):
            if now and stage.get(key) != now.get(key):
                reason = f"its stage {stage.get('address')} was made again since: {key} differ"
                findings.problem(path, reason, fix)
    last = record.get("stages", [])[-1:]
    for file, expected in (last[0].get("files", {}) if last else {}).items():
        if file.startswith("model/"):
            findings.same(home / STUDENT / file.removeprefix("model/"), expected, f"{found[0]} in {RUN}", fix)


# ---- metric files ---------------------------------------------------------------------------------------------------------


def check_metrics(
    context: PaperContext,
    experiment: ExperimentConfig,
    findings: Findings,
    chain: Chain,
    name: str,
    seed: int,
    run: Run | None,
    addresses: list[str] | None,
) -> None:
    """One metric file: whose it is, its arrays, its data, its stages, and that it was evaluated as the experiment says."""
    path = context.metric_file(name, seed)
    fix = f"evaluate the run again: {context.recompute(path)}"
    content = findings.json(path, fix, missing=f"is missing ({name}, seed {seed})")
    if content is None:
        return
    provenance, arrays = content.get("provenance"), content.get("per_query")
    if not isinstance(provenance, dict) or not isinstance(arrays, dict) or not isinstance(content.get("metrics"), dict):
        findings.problem(path, "lacks metrics, per_query or provenance", fix)
        return
    chain.metrics[name, seed] = content
    if (content.get("run"), content.get("seed")) != (name, seed):
        findings.problem(path, f"is of {content.get('run')}, seed {content.get('seed')}, not of {name}, seed {seed}", fix)
    archive = str(arrays.get("file"))
    if Path(archive).name != archive:
        findings.problem(path, f"per_query / file is {archive!r}, not a file beside it", fix)
    else:
        findings.same(path.parent / archive, arrays.get("sha256"), path.name, fix)
    if not provenance.get("data_digests"):
        findings.problem(path, "provenance / data_digests is missing: nobody knows what it was measured on", fix)
    _check_digests(context, findings, chain, path, provenance, fix)
    named = named_stages(content)
    if not named:
        findings.problem(path, "provenance / stages is missing: nobody knows what was measured", fix)
    elif addresses is not None and named != addresses:
        reason = f"was measured on the stages {', '.join(named)}, but the experiment's are {', '.join(addresses)}"
        findings.problem(path, reason, fix)
    if run is not None:
        findings.counts["digests"] += 1
        wanted = digest({"evaluation": experiment.evaluation.model_dump(mode="json"), "stages": list(run.stages)})
        if provenance.get("config_digest") != wanted:
            findings.problem(path, "was evaluated with other settings than the experiment's `evaluation`", fix)


def named_stages(content: Mapping[str, Any]) -> list[str]:
    """Addresses of the stages that a metric file says it is of."""
    stages = content["provenance"].get("stages", [])
    return [str(stage["address"]) if isinstance(stage, Mapping) and "address" in stage else str(stage) for stage in stages]


def _compare_stages(context: PaperContext, findings: Findings, chain: Chain, name: str, seed: int) -> None:
    """A stage that was trained again after the evaluation is another one than was measured."""
    path = context.metric_file(name, seed)
    for stage in chain.metrics[name, seed]["provenance"].get("stages", []):
        if not isinstance(stage, Mapping):
            continue
        record = chain.stages.get(str(stage.get("address")), {})
        now = {**record.get("provenance", {}), **record}
        for key in STAGE_KEYS:
            if now and key in stage and stage[key] != now.get(key):
                reason = f"was measured on another training of {stage['address']} than is here now: {key} differs"
                findings.problem(path, reason, f"evaluate the run again: {context.recompute(path)}")
                break


def check_strangers(context: PaperContext, findings: Findings) -> None:
    """Metric files of no run and seed of the experiment: left by an earlier one, or doubles of its own."""
    cells = [(name, seed) for name in context.directories for seed in context.seeds_of(name)]
    expected = {context.metric_file(*cell): cell for cell in cells}
    for path in sorted((context.results / "metrics").glob("*/*.json")):
        if path in expected or path.name.startswith("."):
            continue
        try:
            content = read_json(path)
            claim = (content["run"], content["seed"])
        except (ValueError, KeyError, TypeError, OSError):
            claim = (path.parent.name, path.stem)
        doubled = next((other for other, owner in expected.items() if owner == claim), None)
        says = f"says it is of {claim[0]}, seed {claim[1]}: "
        reason = f"{says}so does {doubled}" if doubled else f"{says}that is no run and seed of this experiment"
        findings.problem(path, reason, "remove it, or name its run and seed in the experiment")
