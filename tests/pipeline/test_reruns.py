"""Reruns are exact: an edit reruns what it affects, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable

from cmapkd.files import slug
from tests.pipeline.conftest import Checkout

Edit = Callable[[str, str, str], None]
PAPER = {"Document and macros", "Typesetting the paper", "Typesetting the manuscript"}
ABLATION = "w/o ALSN (uniform)"


def trainings(jobs: list[str]) -> set[str]:
    """Labels of the stages among planned jobs, without their addresses."""
    return {job.rpartition(" (")[0] for job in jobs if job.endswith(")")}


def evaluations(jobs: list[str]) -> set[str]:
    return {job for job in jobs if job.startswith("Evaluating")}


def test_nothing_to_do(finished: Checkout) -> None:
    assert finished.planned() == []


def test_touching_files_reruns_nothing(finished: Checkout) -> None:
    for folder in ("cmapkd", "config", "workflow", "paper"):
        for path in (finished.root / folder).rglob("*"):
            if path.is_file():
                os.utime(path)
    for path in finished.home.rglob("*.json"):
        os.utime(path)
    assert finished.planned() == []


def test_comments_and_formatting_rerun_nothing(finished: Checkout, edit: Edit) -> None:
    edit("cmapkd/training/loop.py", "def train_stage(", "# a remark\n\n\ndef train_stage(")
    edit("cmapkd/objectives/cmapkd.py", '"""The four loss families', '"""All four loss families')
    assert finished.planned() == []


def test_editing_a_figure_trains_nothing(finished: Checkout, edit: Edit) -> None:
    edit("cmapkd/paper/figures/weights_by_difficulty.py", "\n\n\ndef ", "\n\n\nEDITED = 1\n\n\ndef ")
    jobs = finished.planned()
    assert "Figure 3" in jobs
    assert set(jobs) <= {"Figure 3", *PAPER}


def test_editing_a_table_concerns_that_table(finished: Checkout, edit: Edit) -> None:
    edit("cmapkd/paper/tables/retrieval.py", "\n\n\ndef ", "\n\n\nEDITED = 1\n\n\ndef ")
    jobs = finished.planned()
    assert "Table 2" in jobs
    assert set(jobs) <= {"Table 2", *PAPER}


def test_editing_a_loss_term_reruns_only_the_runs_that_use_it(finished: Checkout, edit: Edit) -> None:
    edit("cmapkd/objectives/terms/relation.py", "return (_gram(student)", "return 1.0 * (_gram(student)")
    jobs = finished.planned()
    own = {f"CMAPKD, seed 0: {stage}" for stage in ("coarse", "medium", "fine", "alsn")}
    assert trainings(jobs) == own | {f"{ABLATION}, seed 0: fine"}  # its coarse and medium are those of CMAPKD
    assert evaluations(jobs) == {"Evaluating CMAPKD, seed 0", f"Evaluating {slug(ABLATION)}, seed 0"}


def test_editing_a_method_reruns_that_method(finished: Checkout, edit: Edit) -> None:
    edit("cmapkd/objectives/kd.py", "= temperature**2 *", "= temperature**2.0 *")
    jobs = finished.planned()
    assert trainings(jobs) == {"KD, seed 0: train"}
    assert evaluations(jobs) == {"Evaluating KD, seed 0"}


def test_changing_an_evaluation_option_trains_nothing(finished: Checkout, edit: Edit) -> None:
    edit("config/smoke.yaml", "min_count: 3", "min_count: 4")
    jobs = finished.planned()
    assert trainings(jobs) == set()
    assert len(evaluations(jobs)) == 5


def test_changing_a_schedule_reruns_its_stages_and_those_after(finished: Checkout, edit: Edit) -> None:
    edit("config/smoke.yaml", "{name: fine, epochs: 0.25, lr: 1.0e-3", "{name: fine, epochs: 0.25, lr: 2.0e-3")
    assert trainings(finished.planned()) == {
        "CMAPKD, seed 0: fine", "CMAPKD, seed 0: alsn", f"{ABLATION}, seed 0: fine",
    }  # fmt: skip


def test_an_ablation_that_differs_late_shares_the_early_stages(finished: Checkout, edit: Edit) -> None:
    edit(
        "config/smoke.yaml",
        "  CMAPKD: {method: cmapkd, schedule: progressive}",
        "  CMAPKD: {method: cmapkd, schedule: progressive}\n  manual: {base: CMAPKD, policy: manual}",
    )
    # Coarse and medium are those of CMAPKD; without ALSN there is no stage that trains it alone.
    assert trainings(finished.planned()) == {"manual, seed 0: fine"}


def test_options_that_change_no_result_rerun_nothing(finished: Checkout, edit: Edit) -> None:
    edit("config/smoke.yaml", "workers: 0", "workers: 1\n  log_every: 3")
    assert finished.planned() == []


def test_editing_the_plan_or_what_the_paper_is_told_neither_trains_nor_evaluates(finished: Checkout, edit: Edit) -> None:
    """What a plan says reaches a stage by its address, not by the plan's code."""
    for module in ("plan", "paper/context", "paper/experiment"):
        edit(
            f"cmapkd/{module}.py", "from __future__ import annotations\n", "from __future__ import annotations\n\nEDITED = 1\n"
        )
    jobs = finished.planned()
    assert trainings(jobs) == set()
    assert not [job for job in jobs if job.startswith(("Evaluating", "Collecting"))]
