"""The model card says what was measured and nothing else, in the Hub's format; a push needs a yes and shows no token."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from scipy import stats
from synthetic_results import Tree, edit_json, experiment_of, write_tree
from typer.testing import CliRunner

from cmapkd.cli import app
from cmapkd.errors import UserError
from cmapkd.export import card, finished, push, record
from cmapkd.files import sha256_of, write_json

FORMS = [card.Form("open_clip", ("a.json",), "import open_clip"), card.Form("hf", missing="no equivalent of x | y")]
HOSTILE = "KD | <script>`x` [a](b)"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    made = write_tree(tmp_path_factory.mktemp("results"), experiment_of(), samples=200, paper=False)
    for directory in (made.home / "runs").glob("*/*/student"):
        preprocess = {"size": [32, 32]}
        write_json(directory / finished.CONFIG, {"model_cfg": {"embed_dim": 128}, "preprocess_cfg": preprocess})
    return made


@pytest.fixture(scope="module")
def run(tree: Tree) -> finished.Finished:
    return finished.finished(tree.plan, "KD", tree.home.parent)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is the same with fewer; the test of the intervals takes as many as a card."""
    monkeypatch.setattr(card, "SAMPLES", 200)


def test_every_number_is_that_of_the_metric_file(run: finished.Finished) -> None:
    text = card.card(run, FORMS)
    measured = run.metrics.content["metrics"]
    assert ModelCard(text).data.model_name == "smoke/KD/0"
    results = {(r.task_type, r.dataset_name, r.metric_type): r for r in ModelCard(text).data.eval_results}
    tasks = {type: task for task, (type, _) in card.TASKS.items()}
    for (task, split, metric), result in results.items():
        assert result.metric_value == round(measured[tasks[task]][split]["all"][metric], 2)
        low, high = result.metric_args["interval"]
        assert low <= result.metric_value <= high
        assert result.dataset_revision == run.metrics.provenance["data_digests"]["emoji_scenes"]
    assert {key[1:] for key in results} == {
        (split, metric)
        for task in card.TASKS
        for split, strata in measured[task].items()
        for metric in strata["all"]
        if metric in card.NAMES
    }
    for value in re.findall(r"\| (\d+\.\d) \| (\d+\.\d) to (\d+\.\d) \|", text):
        assert float(value[1]) <= float(value[0]) <= float(value[2])


def test_intervals_of_a_share_are_those_of_the_binomial(run: finished.Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "SAMPLES", 10_000)
    rows = {(task, split, row.metric): row for (task, split), rows in card.measured(run).items() for row in rows}
    row = rows["zeroshot", "emoji_scenes/test_render", "top5"]  # each picture is asked once
    count = len(run.arrays["zeroshot/emoji_scenes/test_render/ranks"])
    exact = stats.binom(count, row.value / 100)
    # Resampling hits and misses of single pictures draws from this very binomial; 10,000 draws find its quantiles to a step.
    step = 100 / count
    assert row.low == pytest.approx(100 * exact.ppf(0.025) / count, abs=1.01 * step)
    assert row.high == pytest.approx(100 * exact.ppf(0.975) / count, abs=1.01 * step)


def test_a_number_that_its_queries_do_not_give_stops_the_card(tree: Tree, run: finished.Finished) -> None:
    path = tree.metric_file("KD")
    before = path.read_bytes()
    edit_json(path, lambda c: c["metrics"]["zeroshot"]["emoji_scenes/test_render"]["all"].update(top1=99.0))
    try:
        with pytest.raises(UserError, match="says top1 = 99"):
            card.card(finished.finished(tree.plan, "KD", tree.home.parent), FORMS)
    finally:
        path.write_bytes(before)


def test_it_says_how_it_was_made_and_what_is_missing(run: finished.Finished) -> None:
    text = card.card(run, FORMS)
    for address in run.run.stages:
        assert f"`{address}`" in text
    assert run.metrics.sha256 in text
    assert run.history["stages"][0]["provenance"]["commit"] in text
    assert "cmapkd export KD/0 --to DIRECTORY --experiment results/smoke/experiment.yaml" in text
    assert "Not there as `hf`: no equivalent of x \\| y." in text
    assert "No licence was chosen" in text
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "other"
    chosen = card.card(run, FORMS, "apache-2.0")
    assert ModelCard(chosen).data.license == "apache-2.0"
    assert card.card(run, FORMS) == text  # the same bytes
    assert "laptop" not in text  # the host of the made-up provenance
    assert str(run.directory) not in text


@pytest.mark.parametrize(
    ("name", "words"),
    [("Teacher", "The teacher of"), ("Scratch", "trained without a teacher"), ("KD", "trained from a teacher")],
)
def test_each_kind_of_run_says_what_it_is(name: str, words: str, tree: Tree) -> None:
    text = card.card(finished.finished(tree.plan, name, tree.home.parent), FORMS)
    assert words in text
    assert ("Teacher: `mini-teacher`, trained in the same experiment" in text) == (name == "KD")


def test_names_cannot_break_out_of_the_card(tmp_path: Path) -> None:
    base = experiment_of().model_dump(mode="json")
    made = write_tree(tmp_path, experiment_of(runs={**base["runs"], HOSTILE: base["runs"]["KD"]}), samples=8, paper=False)
    directory = next(run.directory for run in made.plan.runs if run.name == HOSTILE)
    preprocess = {"size": 32}
    student = made.home / "runs" / directory / "student"
    write_json(student / finished.CONFIG, {"model_cfg": {"embed_dim": 1}, "preprocess_cfg": preprocess})
    manifest = made.home / "data" / "emoji_scenes" / "manifest.json"
    source = {"name": "x\n---\nlicense: stolen", "licence": "<img src=x onerror=y>", "attribution": "a | b\r\n# head"}
    edit_json(manifest, lambda c: c.update(sources=[source]))
    text = card.card(finished.finished(made.plan, HOSTILE, tmp_path), FORMS)
    body = text.split("---\n", 2)[2]
    assert ModelCard(text).data.model_name == f"smoke/{HOSTILE}/0"
    assert ModelCard(text).data.license == "other"
    outside = re.sub(r"```.*?```|`[^`\n]*`", "", body, flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<|(?<!\\)\[", outside)
    assert not re.search(r"^(---|license|# head)", body, flags=re.MULTILINE)


SECRET = "hf_" + "Secret123" * 3  # in the form of a token


class FakeHub:
    """Keeps what it is asked; refuses with the token in its message, as a careless client would."""

    def __init__(self, refuse: str = "") -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.refuse = refuse

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options: Any) -> Any:
        self.calls.append(("upload", options))
        if self.refuse:
            raise PermissionError(self.refuse)
        return SimpleNamespace(commit_url=f"https://user:{SECRET}@hub/owner/name/commit/1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    target = tmp_path / "export"
    target.mkdir()
    (target / "README.md").write_text("card")
    files = {"README.md": sha256_of(target / "README.md")}
    write_json(target / record.RECORD, {"experiment": "mini", "run": "KD/0", "metrics": "ab" * 32, "files": files})
    return target


def test_a_push_sends_the_folder_to_a_private_repository(folder: Path) -> None:
    hub = FakeHub()
    (folder / ".snakemake_timestamp").touch()
    told = push.push(folder, "owner/name", agreed=True, api=hub)
    assert [call for call, _ in hub.calls] == ["create", "upload"]
    assert hub.calls[0][1] == {"repo_id": "owner/name", "repo_type": "model", "private": True, "exist_ok": True}
    assert hub.calls[1][1]["folder_path"] == str(folder)
    assert hub.calls[1][1]["ignore_patterns"] == [".snakemake_timestamp"]
    assert SECRET not in told
    assert SECRET not in repr(hub.calls)
    push.push(folder, "owner/name", agreed=True, public=True, api=hub)
    assert hub.calls[2][1]["private"] is False


def test_without_a_yes_or_with_a_damaged_export_nothing_is_sent(folder: Path) -> None:
    hub = FakeHub()
    with pytest.raises(UserError, match="--yes"):
        push.push(folder, "owner/name", agreed=False, api=hub)
    (folder / "README.md").write_text("another card")
    with pytest.raises(UserError, match="not as it was exported"):
        push.push(folder, "owner/name", agreed=True, api=hub)
    assert hub.calls == []


@pytest.mark.parametrize("message", [f"Authorization: Bearer {SECRET}", f"401 for https://u:{SECRET}@hub/x", f"token={SECRET}"])
def test_a_refusal_tells_what_to_do_and_no_token(message: str, folder: Path) -> None:
    with pytest.raises(UserError, match="log in") as raised:
        push.push(folder, "owner/name", agreed=True, api=FakeHub(message))
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    "name", ["name", "a/b/c", "../x", "-o/name", "o/-n", "owner/na me", "owner/name;ls", "o/a..b", "o/n.git"]
)
def test_names_of_repositories_are_checked_first(name: str, tmp_path: Path) -> None:
    arguments = ["export", "KD", "--to", str(tmp_path / "out"), f"--push={name}", "--yes"]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, UserError)
    assert "owner/name" in str(done.exception)


def test_the_command_refuses_a_push_without_yes_before_it_does_anything(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", "KD", "--to", str(tmp_path / "out"), "--push", "owner/name"])
    assert isinstance(done.exception, UserError)
    assert "add --yes" in str(done.exception)
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, ["export", "KD", "--to", str(tmp_path / "out"), "--licence", "All rights\nreserved"])
    assert "--licence" in str(done.exception)


def test_the_measured_shares_are_what_the_arrays_hold(run: finished.Finished) -> None:
    ranks = run.arrays["zeroshot/emoji_scenes/test_render/ranks"]
    row = next(r for (task, _), rows in card.measured(run).items() if task == "zeroshot" for r in rows if r.metric == "top1")
    assert row.value == pytest.approx(100 * float(np.mean(ranks < 1)))
