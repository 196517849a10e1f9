"""Train one stage: the loop. It does data, steps, logs and checkpoints, and knows nothing of distillation."""

from __future__ import annotations

import gc
import logging
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from cmapkd.config.schema import TrainingConfig
from cmapkd.data.shards import read_manifest
from cmapkd.data.split import Split
from cmapkd.data.stream import Stream, batches
from cmapkd.data.transforms import TrainTransform
from cmapkd.files import digest, sha256_of, write_json
from cmapkd.fingerprint import fingerprint
from cmapkd.models import towers
from cmapkd.plan import Stage
from cmapkd.provenance import Start, collect
from cmapkd.training import checkpoints, distributed
from cmapkd.training.engine import Engine, start_process_group
from cmapkd.training.logs import TrainingLog
from cmapkd.training.retries import NotFinite, Retries
from cmapkd.training.stages import MODEL, OBJECTIVE, RESULT, Prepared, derive_seed, prepare, save_objective
from cmapkd.training.texts import TrainingTexts

log = logging.getLogger(__name__)


class Interrupted(Exception):  # noqa: N818 - not an error: the stage goes on at the next start
    """The process was asked to stop and has written a checkpoint."""


def code_of(method: str) -> str:
    """Fingerprint of the code that a stage of ``method`` runs."""
    modules = ["cmapkd.training.loop"]
    if method != "pretrained":
        modules.append(f"cmapkd.objectives.{method}")
    return fingerprint(*modules)


def train_stage(stage: Stage, results: Path, options: TrainingConfig) -> None:
    """Run a stage to its end and write its model, objective and ``stage.json`` (last).

    Args:
        stage: of the plan.
        results: `results/<experiment>`.
        options: what does not change the result: workers, logging and checkpoint intervals; and how often a training that
            is no longer finite may be retried, which ``stage.json`` tells.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after a checkpoint.
        UserError: a loss or gradient that is not finite, and no retry left; too many bad samples.
    """
    started = Start()
    directory = results / "stages" / stage.address
    if stage.settings["kind"] == "pretrained":
        _import_pretrained(stage, directory, started)
        return
    device = start_process_group()
    prepared = prepare(stage.settings, results / "stages")
    if distributed.rank() == 0:
        directory.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    summary: dict[str, Any] = {"steps": 0}
    bad: dict[str, Any] = {}
    if stage.settings["method"].get("fit", True):  # a random pyramid is used as it was initialised
        origin = digest({"code": code_of(stage.method), "settings": stage.settings, "data": _data_digests(stage, results)})
        retries = Retries(directory / "checkpoints", origin, options.nan_retries, stage.label)
        with _Signals() as asked:
            while True:
                try:
                    summary, bad = _run(stage, prepared, results, directory, options, device, asked, retries)
                    break
                except NotFinite as failure:
                    retries.ask(failure)
                # The weights are spoilt, and DeepSpeed keeps state of its own: all is built anew, after the old is gone.
                del prepared
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                prepared = prepare(stage.settings, results / "stages")
    if distributed.rank() == 0:
        _finish(stage, prepared, results, directory, started, summary, bad)
    dist.barrier()
    checkpoints.clear(directory / "checkpoints")


def _run(
    stage: Stage,
    prepared: Prepared,
    results: Path,
    directory: Path,
    options: TrainingConfig,
    device: torch.device,
    asked: _Signals,
    retries: Retries,
) -> tuple[dict[str, Any], dict[str, Any]]:
    settings = stage.settings
    training: Mapping[str, Any] = settings["training"]
    stream = _stream(settings, prepared, results, options)
    batch = training["global_batch"]
    per_epoch = len(stream) / batch
    steps = max(1, round(settings["stage"]["epochs"] * per_epoch))
    # Later stages go on in the data where the ones before them ended.
    offset = round(settings["start_epochs"] * per_epoch)
    if prepared.teacher is not None:
        prepared.module.objective.start(prepared.teacher.to(device), TrainingTexts(stream))
    engine = Engine(prepared.module, prepared.teacher, prepared.stage, training, settings["deepspeed"], steps, device)
    engine.lr_share = retries.lr_factor
    torch.manual_seed(derive_seed(settings["seed"], stage.address, distributed.rank()))
    saved, origin = retries.directory, retries.origin
    start = checkpoints.resume(engine, saved, origin)
    retried = retries.restarted(start)
    if start and not retried and distributed.rank() == 0:
        log.info("%s: resumed at step %d of %d", stage.label, start, steps)
    written = TrainingLog(directory, stage.label, steps, start, batch, options.log_every)
    loader = batches(
        stream,
        global_batch=batch,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        start_step=offset + start,
        steps=steps - start,
        workers=options.workers,
    )
    last_saved, finished = time.monotonic(), False
    try:
        waiting = time.perf_counter()
        for step, samples in enumerate(loader, start):
            waited = time.perf_counter() - waiting
            terms = _step(engine, samples, step)  # raises before anything of a spoilt step is logged or saved
            lr = engine.engine.optimizer.param_groups[0]["lr"]
            told = {"lr_factor": retries.lr_factor} if retries.taken else {}
            written.step(step, terms, lr=lr, grad_norm=engine.grad_norm, data_seconds=waited, **told)
            stop = _agree(asked.stop)
            if step + 1 < steps and (stop or _agree(time.monotonic() - last_saved > 60 * options.checkpoint_minutes)):
                written.flush()
                checkpoints.save(engine, saved, step + 1, origin)
                last_saved = time.monotonic()
            if stop and step + 1 < steps:
                raise Interrupted(
                    f"{stage.label}: stopped after step {step + 1} of {steps}; the same command goes on from there"
                )
            waiting = time.perf_counter()
        finished = True
    finally:
        summary = written.close(finished)
    engine.restore_shapes()
    if retries.taken:
        summary["nan_retries"] = retries.taken
    return summary, stream.bad.report()


def _step(engine: Engine, samples: Mapping[str, Any], step: int) -> Any:
    try:
        return engine.step(samples, step)
    except FloatingPointError as error:
        keys = ", ".join(samples["keys"][:8])
        raise NotFinite(step, str(error), f"{keys}, ...") from None


def _stream(settings: Mapping[str, Any], prepared: Prepared, results: Path, options: TrainingConfig) -> Stream:
    training = settings["training"]
    augmentation = training["augmentation"]
    splits = []
    for reference in settings["distillation"]:
        dataset, _, name = reference.partition("/")
        splits.append(Split(results / "data" / dataset, name))
    return Stream(
        splits,
        settings["seed"],
        prepared.tokenizer,
        TrainTransform(
            prepared.preprocess, scale=augmentation["scale"], ratio=augmentation["ratio"], flip=augmentation["flip"]
        ),
        shuffle_window=training["shuffle_window"],
        bad_limit=options.bad_samples,
        cache_bytes=options.cache_bytes,
        max_pixels=training["max_pixels"],
    )


def _finish(
    stage: Stage,
    prepared: Prepared,
    results: Path,
    directory: Path,
    started: Start,
    summary: dict[str, Any],
    bad: dict[str, Any],
) -> None:
    settings = stage.settings
    files = {}
    if not prepared.module.objective.teacher_side:
        towers.save(prepared.module.model.model, settings["model"]["name"], directory / MODEL)
        files[f"{MODEL}/{towers.WEIGHTS}"] = sha256_of(directory / MODEL / towers.WEIGHTS)
    save_objective(prepared.module.objective, directory / OBJECTIVE)
    files[OBJECTIVE] = sha256_of(directory / OBJECTIVE)
    write_json(
        directory / RESULT,
        {
            "address": stage.address,
            "label": stage.label,
            "settings": settings,
            "parents": list(stage.parents),
            "code": code_of(stage.method),
            "files": files,
            "summary": summary,
            "bad_samples": bad,
            "provenance": collect(started, config_digest=digest(settings), data_digests=_data_digests(stage, results)),
        },
    )


def _import_pretrained(stage: Stage, directory: Path, started: Start) -> None:
    """A pretrained model as a stage of its own, so that everything after it need not know where weights came from."""
    settings = stage.settings
    model = towers.create(settings["model"]["name"], settings["model"]["config"], settings["init"], key="teacher.pretrained")
    towers.save(model, settings["model"]["name"], directory / MODEL)
    from safetensors.torch import save_file

    save_file({}, directory / OBJECTIVE)
    files = {name: sha256_of(directory / name) for name in (f"{MODEL}/{towers.WEIGHTS}", OBJECTIVE)}
    content = {
        "address": stage.address,
        "label": stage.label,
        "settings": settings,
        "parents": [],
        "code": code_of("pretrained"),
    }
    write_json(
        directory / RESULT,
        {**content, "files": files, "summary": {"steps": 0}, "provenance": collect(started, config_digest=digest(settings))},
    )


def _data_digests(stage: Stage, results: Path) -> dict[str, str]:
    return {name: read_manifest(results / "data" / name)["digest"] for name in stage.datasets}


def _agree(wish: bool) -> bool:
    """True on all ranks if it is on any: they must save and stop at the same step."""
    if distributed.world_size() == 1:
        return wish
    flag = torch.tensor([float(wish)])
    if torch.cuda.is_available():
        flag = flag.cuda()
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag.item())


class _Signals:
    """Turns SIGINT and SIGTERM into a flag that the loop reads between two steps."""

    def __init__(self) -> None:
        self.stop = False
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stop = True

    def __enter__(self) -> _Signals:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
