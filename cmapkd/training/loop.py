"""Train one stage: the loop. It does data, steps, logs and checkpoints, and knows nothing of distillation.

Modules of their own: `stopping` (signals, limits), `locks` (one process a stage), `failures`, `retries`, `memory`, `storage`.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cmapkd.config.training import TrainingConfig
from cmapkd.data.split import Split
from cmapkd.data.stream import Stream, batches
from cmapkd.data.taught import Taught
from cmapkd.data.transforms import TrainTransform
from cmapkd.errors import UserError
from cmapkd.files import read_json
from cmapkd.plan import Stage, deepspeed_settings, uncut
from cmapkd.provenance import Start
from cmapkd.training import checkpoints, distributed, teacher_cache, zero3
from cmapkd.training import failures as kinds
from cmapkd.training.compiled import compile_towers, is_compiled
from cmapkd.training.engine import Engine, start_process_group
from cmapkd.training.failures import Failures
from cmapkd.training.locks import LostLock, StageLock
from cmapkd.training.logs import TrainingLog
from cmapkd.training.memory import Halvings
from cmapkd.training.results import code_of, finish, import_pretrained, origin_of
from cmapkd.training.retries import NotFinite, Retries
from cmapkd.training.stages import RESULT, Prepared, derive_seed, prepare
from cmapkd.training.stopping import Budget, Interrupted, Signals
from cmapkd.training.storage import disk_error, is_disk_error, writing
from cmapkd.training.texts import TrainingTexts

__all__ = ["Interrupted", "code_of", "train_stage"]
log = logging.getLogger(__name__)
# Why the ranks stop after a step; if several have a reason, the greatest counts.
_GO_ON, _TIME, _SIGNAL, _DISK, _LOST = range(5)


@dataclass
class _Run:
    """What one process needs for a stage from start to end."""

    stage: Stage
    results: Path
    directory: Path
    options: TrainingConfig
    deepspeed: dict[str, Any]
    rests_on: Mapping[str, Mapping[str, str]]  # digests of the files of the parents
    origin: str
    device: torch.device
    lock: StageLock
    failures: Failures
    signals: Signals
    budget: Budget
    retries: Retries
    halvings: Halvings

    @property
    def saved(self) -> Path:
        """Directory of the checkpoints."""
        return self.directory / "checkpoints"

    def last_saved(self) -> int:
        """Step of the newest checkpoint; 0 without one."""
        found = checkpoints.complete(self.saved)
        return int(found[-1].name.removeprefix("step-")) if found else 0


def train_stage(stage: Stage, results: Path, options: TrainingConfig, *, time_limit: float = 0.0, attempt: int = 0) -> None:
    """Run a stage to its end and write its model, objective and ``stage.json`` (last).

    Args:
        stage: of the plan.
        results: `results/<experiment>`.
        options: what does not change the result: workers, logging, intervals, the cut of the batch; and how often a training
            that is no longer finite, or has not enough memory, may be retried, which ``stage.json`` tells.
        time_limit: minutes of the job; it stops in time, with a checkpoint. 0: none.
        attempt: number of this start as the workflow counts them; 1 forgets failures before. 0: unknown.

    Raises:
        Interrupted: by a signal or the time limit, after a checkpoint.
        UserError: a loss or gradient that is not finite, or not enough memory, and no retry left; too many bad samples; a
            disk that cannot be written; a rank that is missing; another process that trains the stage; the third failure
            of one kind.
    """
    started = Start()
    directory = results / "stages" / stage.address
    if stage.settings["kind"] == "pretrained":
        import_pretrained(stage, directory, started)
        return
    budget = Budget(time_limit, options.stop_margin_minutes)
    device = start_process_group(options.barrier_minutes)
    distributed.side_group(options.barrier_minutes + options.lock_wait_minutes)
    distributed.barrier("the start", options.barrier_minutes)
    with Signals() as signals:
        lock = StageLock(
            directory,
            stage.label,
            wait=60 * options.lock_wait_minutes,
            stale=60 * options.lock_stale_minutes,
            stop=lambda: signals.stop,
        )
        try:
            done, lock.token = distributed.together(lambda: _begin(lock, stage), "taking the lock of the stage")[0]
            if done:
                return
            if stage.settings["kind"] == "cache":
                teacher_cache.build(stage, results, device, signals, started)
                return
            _train(stage, results, directory, options, device, lock, signals, budget, attempt, started)
        finally:
            if distributed.rank() == 0:
                lock.__exit__()


def _begin(lock: StageLock, stage: Stage) -> tuple[bool, str]:
    """Take the lock, on rank 0: whether who held it until now has finished the stage, and the word in the lock."""
    if distributed.rank():
        return False, ""
    with writing(lock.path, "nothing was begun"):
        lock.__enter__()
    result = lock.path.with_name(RESULT)
    if lock.waited and result.is_file() and read_json(result, dict).get("code") == code_of(stage.method):
        log.info("%s: finished meanwhile", stage.label)
        return True, lock.token
    return False, lock.token


def _train(
    stage: Stage,
    results: Path,
    directory: Path,
    options: TrainingConfig,
    device: torch.device,
    lock: StageLock,
    signals: Signals,
    budget: Budget,
    attempt: int,
    started: Start,
) -> None:
    summary, bad = dict[str, Any](steps=0), dict[str, Any]()
    saved = directory / "checkpoints"
    rests_on, origin = origin_of(stage, results)
    failures = Failures(saved, origin, stage.label, attempt)
    # The cut of the batch is no setting of the stage: it may be another one at each start.
    deepspeed = deepspeed_settings(options.deepspeed)
    if uncut(deepspeed) != stage.settings["deepspeed"]:
        deepspeed = stage.settings["deepspeed"]

    def look_back() -> None:
        """What the attempt before left: three failures of one kind stop here, one for memory halves the micro-batch."""
        if distributed.rank() == 0:
            saved.mkdir(parents=True, exist_ok=True)
            failures.check(failures.gather())
            if failures.fresh is not None and failures.fresh["kind"] == kinds.MEMORY:
                halvings().take(failures.fresh["reason"])

    def halvings() -> Halvings:
        share = stage.settings["training"]["global_batch"] // distributed.world_size()
        accumulation = int(deepspeed.get("gradient_accumulation_steps", 1))
        return Halvings(saved, origin, options.oom_retries, stage.label, share, accumulation)

    distributed.together(look_back, "looking at earlier failures")
    retries = Retries(saved, origin, options.nan_retries, stage.label)
    run = _Run(
        stage, results, directory, options, deepspeed, rests_on, origin, device, lock, failures, signals, budget, retries,
        halvings(),
    )  # fmt: skip
    prepared = _prepare(run)
    try:
        if stage.settings["method"].get("fit", True):  # a random pyramid is used as it was initialised
            while True:
                try:
                    summary, bad = _steps(run, prepared)
                    break
                except NotFinite as failure:
                    retries.ask(failure)
                except torch.OutOfMemoryError as failure:
                    # Of several ranks, one may be out of memory while the others wait for it: all must be started again.
                    if distributed.world_size() > 1:
                        raise
                    run.halvings.take(str(failure))
                # The weights are spoilt, and DeepSpeed keeps state of its own: all is built anew, after the old is gone.
                del prepared
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                prepared = _prepare(run)
        distributed.together(lambda: _end(run, prepared, started, summary, bad), "writing the result")
    except Exception as error:
        _report(run, error)
        raise
    checkpoints.clear(saved)


def _prepare(run: _Run) -> Prepared:
    prepared = prepare(run.stage.settings, run.results / "stages")
    if run.options.activation_checkpointing and not prepared.module.checkpoint_activations() and distributed.rank() == 0:
        log.info("%s: activations are kept, as its blocks cannot be computed again", run.stage.label)
    where = run.device.type, zero3.stage_of(run.deepspeed)
    if run.options.compile and (why := compile_towers(prepared.module, prepared.teacher, *where)):
        log.warning("%s: not compiled, %s", run.stage.label, why)
    return prepared


def _end(run: _Run, prepared: Prepared, started: Start, summary: dict[str, Any], bad: dict[str, Any]) -> None:
    if distributed.rank() == 0:
        run.lock.check()
        with writing(run.directory, f"the checkpoint of step {run.last_saved()} is whole"):
            finish(run.stage, prepared, run.results, run.directory, started, summary, bad, run.rests_on)


def _report(run: _Run, error: Exception) -> None:
    """Leave word of how this attempt ended, for the next one and for who started it."""
    if isinstance(error, LostLock) or not run.lock.mine():
        return  # the directory is another's now
    step = run.last_saved()
    if isinstance(error, Interrupted):
        if distributed.rank() == 0:
            run.failures.stopped(step, str(error))
        return
    if isinstance(error, torch.OutOfMemoryError):
        kind = kinds.MEMORY
    elif is_disk_error(error):
        kind = kinds.DISK
    elif isinstance(error.__context__, FloatingPointError):
        kind = kinds.FINITE
    else:
        kind = kinds.LOST if kinds.lost_a_rank(error) else kinds.ERROR
    run.failures.report(distributed.rank(), kind, f"{type(error).__name__}: {error}", step)


def _steps(run: _Run, prepared: Prepared) -> tuple[dict[str, Any], dict[str, Any]]:
    stage, options, retries = run.stage, run.options, run.retries
    settings = stage.settings
    training: Mapping[str, Any] = settings["training"]
    stream = _stream(settings, prepared, run.results, options)
    batch = training["global_batch"]
    per_epoch = len(stream) / batch
    steps = max(1, round(settings["stage"]["epochs"] * per_epoch))
    # Later stages go on in the data where the ones before them ended.
    offset = round(settings["start_epochs"] * per_epoch)
    if prepared.teacher is not None:
        prepared.module.objective.start(prepared.teacher.to(run.device), TrainingTexts(stream))
        if stream.taught is not None:
            prepared.teacher.forget_towers()
    engine = Engine(
        prepared.module,
        prepared.teacher,
        prepared.stage,
        training,
        run.deepspeed,
        steps,
        run.device,
        accumulation=run.halvings.accumulation,
        barrier_minutes=options.barrier_minutes,
    )
    engine.lr_share = retries.lr_factor
    torch.manual_seed(seed := derive_seed(settings["seed"], stage.address, distributed.rank()))
    start = checkpoints.resume(engine, run.saved, run.origin, seed)
    retried = retries.restarted(start)
    if start and not retried and distributed.rank() == 0:
        log.info("%s: resumed at step %d of %d", stage.label, start, steps)
    if distributed.rank() == 0:
        with writing(run.saved, f"the checkpoint of step {start} is whole"):
            run.failures.running(start, steps)
    written = TrainingLog(run.directory, stage.label, steps, start, batch, options.log_every)
    loader = batches(
        stream,
        global_batch=batch,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        start_step=offset + start,
        steps=steps - start,
        workers=options.workers,
    )
    last_saved = time.monotonic()
    try:
        waiting = time.perf_counter()
        for step, samples in enumerate(loader, start):
            waited = time.perf_counter() - waiting
            terms = _step(engine, samples, step)  # raises before anything of a spoilt step is logged or saved
            lr = engine.engine.optimizer.param_groups[0]["lr"]
            told = {"lr_factor": retries.lr_factor} if retries.taken else {}
            trouble = _log(run, written, step, terms, lr=lr, grad_norm=engine.grad_norm, data_seconds=waited, **told)
            run.budget.stepped(time.perf_counter() - waiting)
            why, due = _agree(_wish(run, trouble), time.monotonic() - last_saved > 60 * options.checkpoint_minutes)
            if why == _LOST:
                run.lock.check()
                raise LostLock(key=stage.label, reason="rank 0 has lost the lock of the stage")
            if why == _DISK:
                raise trouble or UserError(key=stage.label, reason="rank 0 could not write the log")
            if step + 1 < steps and (why or due):
                written.flush()
                written.sync()
                run.budget.saved(checkpoints.save(engine, run.saved, step + 1, run.origin, run.lock.check, run.lock.token))
                last_saved = time.monotonic()
            if why and step + 1 < steps:
                reason = "the time limit is near" if why == _TIME else f"asked to by {run.signals.name or 'a signal'}"
                raise Interrupted(
                    f"{stage.label}: stopped after step {step + 1} of {steps} ({reason}); the same command goes on from there"
                )
            waiting = time.perf_counter()
        with writing(run.directory / "log.jsonl", f"the checkpoint of step {run.last_saved()} is whole"):
            summary = written.close(finished=True)
        engine.make_whole()
    except NotFinite:  # on all ranks alike
        written.close(finished=False)
        raise
    finally:
        written.abandon()  # a rank that failed alone does not wait for the others
        engine.close()
    if retries.taken:
        summary["nan_retries"] = retries.taken
    if run.halvings.taken:
        summary["oom_retries"] = run.halvings.taken
    summary["cut"] = checkpoints.cut_of(engine)
    compiled = {"compiled": is_compiled(engine.module)} if run.options.compile else {}
    return {**summary, **compiled}, stream.bad.report()


def _log(run: _Run, written: TrainingLog, step: int, terms: Any, **scalars: float) -> UserError | None:
    """Note a step; the trouble if the disk refuses, on which all ranks must stop together."""
    try:
        written.step(step, terms, **scalars)
    except OSError as error:
        kept = f"the checkpoint of step {run.last_saved()} is whole"
        trouble = disk_error(error, run.directory / "log.jsonl", kept)
        if trouble is None:
            raise
        trouble.__cause__ = error
        return trouble
    return None


def _wish(run: _Run, trouble: UserError | None) -> int:
    """Why this rank wants to stop."""
    if run.lock.lost:
        return _LOST
    if trouble is not None:
        return _DISK
    if run.signals.stop:
        return _SIGNAL
    return _TIME if run.budget.used_up() else _GO_ON


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
    taught = None
    if (caches := settings.get("teacher_cache")) and prepared.teacher is not None:
        directories = {part: results / "stages" / address for part, address in caches.items()}
        taught = Taught(directories, prepared.teacher.kept(tuple(caches)), splits)
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
        views=augmentation.get("views"),
        taught=taught,
    )


def _agree(why: int, due: bool) -> tuple[int, bool]:
    """The greatest of all ranks' reasons to stop, and whether any wants a checkpoint: all save and stop at the same step."""
    if distributed.world_size() == 1:
        return why, due
    wishes = torch.tensor([why, int(due)])
    if torch.cuda.is_available():
        wishes = wishes.cuda()
    dist.all_reduce(wishes, op=dist.ReduceOp.MAX)
    return int(wishes[0]), bool(wishes[1])
