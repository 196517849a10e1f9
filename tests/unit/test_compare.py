"""Compare: settings, numbers with intervals and losses of two runs; and the bootstrap behind the intervals."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, norm, ttest_1samp
from synthetic_results import Tree, edit_json, experiment_of, write_run_metrics, write_tree
from typer.testing import CliRunner

from cmapkd.cli import app
from cmapkd.errors import UserError
from cmapkd.files import read_json
from cmapkd.paper import paired
from cmapkd.paper.compare import Comparison, Number, Side, compare, find_side, pairs_of
from cmapkd.paper.compare_text import number_row, sparkline, text

SPLIT = "emoji_scenes/test_render"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    experiment = experiment_of(seeds=[0, 1], paper={"tables": [], "figures": []})
    return write_tree(tmp_path_factory.mktemp("results"), experiment, samples=60, paper=False)


def _side(tree: Tree, run: str) -> Side:
    return Side(tree.context, tree.experiment, run)


@pytest.fixture(scope="module")
def found(tree: Tree) -> Comparison:
    return compare(_side(tree, "CMAPKD"), _side(tree, "KD"))


# ---- settings -------------------------------------------------------------------------------------------------------------


def test_settings_that_differ_and_only_those(tree: Tree, found: Comparison) -> None:
    settings = {key: (first, second) for key, first, second in found.settings}
    assert settings["method"] == ("cmapkd", "kd")
    assert settings["schedule"] == ("progressive", "standard")
    assert settings["stages"] == ("coarse, medium, fine, alsn", "train")
    assert settings["weights.align"] == ("0.5", "")
    assert "lr_scale" not in settings  # of both
    ablation = compare(_side(tree, "CMAPKD"), _side(tree, "w/o ALSN (uniform)"))
    own = {key: (first, second) for key, first, second in ablation.settings}
    assert own["policy"] == ("alsn", "uniform")
    assert own["stages"] == ("coarse, medium, fine, alsn", "coarse, medium, fine")
    assert own["stage fine: stage.policy"] == ("alsn", "uniform")
    assert not any(key.startswith("stage coarse") for key in own)


def test_a_run_differs_from_itself_in_nothing(tree: Tree) -> None:
    same = compare(_side(tree, "KD"), _side(tree, "KD"))
    assert same.settings == []
    for number in same.numbers:
        assert number.difference == 0
        if number.interval:
            assert (number.interval.low, number.interval.high, number.interval.p) == (0, 0, 1)
    assert "none" in text(same)


def test_settings_of_two_experiments(tree: Tree, tmp_path: Path) -> None:
    schedules = tree.experiment.model_dump(mode="json")["schedules"]
    schedules["standard"][0]["lr"] = 0.5
    other = write_tree(tmp_path, experiment_of(name="other", seeds=[0, 1], schedules=schedules), samples=60, paper=False)
    made = compare(_side(tree, "KD"), _side(other, "KD"))
    settings = {key: (first, second) for key, first, second in made.settings}
    assert settings["stage train: stage.lr"] == ("0.001", "0.5")
    assert {key for key in settings if not key.startswith("stage")} == {"experiment: schedules.standard"}
    assert made.first == "smoke:KD"
    assert made.second == "other:KD"


# ---- numbers --------------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_metric_files(tree: Tree, found: Comparison) -> None:
    numbers = {number.name: number for number in found.numbers}
    files = {run: [tree.metric_file(run, seed) for seed in (0, 1)] for run in ("CMAPKD", "KD")}
    for keys in (("retrieval", "i2t_r1"), ("retrieval", "mean_recall"), ("zeroshot", "top5"), ("vqa", "overall")):
        values = {
            run: [read_json(path)["metrics"][keys[0]][SPLIT]["all"][keys[1]] for path in paths] for run, paths in files.items()
        }
        number = numbers[f"{keys[0]} {SPLIT} all {keys[1]}"]
        assert number.first == pytest.approx((np.mean(values["CMAPKD"]), np.std(values["CMAPKD"], ddof=1)))
        assert number.difference == pytest.approx(np.mean(values["CMAPKD"]) - np.mean(values["KD"]))
        assert number.interval is not None
        assert number.interval.difference == pytest.approx(number.difference)
        assert number.interval.low <= number.difference <= number.interval.high
    assert numbers["efficiency image_parameters"].interval is None
    assert not any(name.endswith((" images", " questions")) for name in numbers)


def test_the_other_way_round_is_the_negative(tree: Tree, found: Comparison) -> None:
    other = {number.name: number for number in compare(_side(tree, "KD"), _side(tree, "CMAPKD")).numbers}
    for number in found.numbers:
        turned = other[number.name]
        assert turned.difference == pytest.approx(-(number.difference or 0), abs=1e-9)
        if number.interval and turned.interval:
            assert turned.interval.low == pytest.approx(-number.interval.high)
            assert turned.interval.p == pytest.approx(number.interval.p)


def test_the_teacher_has_one_seed(tree: Tree) -> None:
    (number,) = [
        n for n in compare(_side(tree, "Teacher"), _side(tree, "KD")).numbers if n.name.endswith("test_render all i2t_r1")
    ]
    assert number.first is not None
    assert number.first[1] is None
    assert "±" not in number_row(number)[1]
    assert "±" in number_row(number)[2]
    assert number.interval is not None
    assert number.interval.low > 0


# ---- what cannot be compared ----------------------------------------------------------------------------------------------


def _copy(tree: Tree, directory: Path) -> Tree:
    home = directory / "copy"
    shutil.copytree(tree.home, home)
    return replace(tree, home=home, context=replace(tree.context, results=home))


def test_other_test_data_are_refused(tree: Tree, tmp_path: Path) -> None:
    other = _copy(tree, tmp_path)
    for seed in (0, 1):
        path = other.metric_file("KD", seed)
        edit_json(path, lambda content: content["provenance"]["data_digests"].update(emoji_scenes="beef" * 16))
    with pytest.raises(UserError, match="different test data") as caught:
        compare(_side(tree, "KD"), _side(other, "KD"))
    assert "metrics/KD/1.json" in caught.value.key
    assert str(other.home) in caught.value.reason


def test_another_number_of_pictures_is_refused(tree: Tree, tmp_path: Path) -> None:
    other = _copy(tree, tmp_path)
    data = read_json(tree.home / "data/emoji_scenes/manifest.json")["digest"]
    for seed in (0, 1):
        write_run_metrics(other, "KD", seed, data, samples=50)
    with pytest.raises(UserError, match=r"images is 50, of smoke:KD it is 60: different test data"):
        compare(_side(tree, "KD"), _side(other, "KD"))


def test_missing_metrics_are_named(tree: Tree, tmp_path: Path) -> None:
    other = _copy(tree, tmp_path)
    other.metric_file("KD", 1).unlink()
    with pytest.raises(UserError, match="is missing") as caught:
        compare(_side(other, "CMAPKD"), _side(other, "KD"))
    assert caught.value.key.endswith("metrics/KD/1.json")
    assert "snakemake" in caught.value.fix


def test_a_task_of_one_run_alone_is_told(tree: Tree, tmp_path: Path) -> None:
    other = _copy(tree, tmp_path)
    for seed in (0, 1):
        edit_json(other.metric_file("KD", seed), lambda content: content["metrics"].update(vqa={}))
    made = compare(_side(other, "CMAPKD"), _side(other, "KD"))
    assert f"copy:KD has no vqa {SPLIT} all" in " ".join(made.notes)
    row = next(number_row(number) for number in made.numbers if number.name == f"vqa {SPLIT} all overall")
    assert row[2] == "not measured"


def test_metrics_that_are_not_those_of_their_arrays_are_refused(tree: Tree, tmp_path: Path) -> None:
    other = _copy(tree, tmp_path)
    edit_json(other.metric_file("KD", 1), lambda content: content["metrics"]["retrieval"][SPLIT]["all"].update(i2t_r1=99.0))
    with pytest.raises(UserError, match=r"give i2t_r1 = .*, but 1\.json says 99\.0000"):
        compare(_side(other, "CMAPKD"), _side(other, "KD"))


def test_names_of_sides(tree: Tree) -> None:
    def side(name: str) -> Side:
        return find_side(name, tree.experiment, tree.context, tree.home.parent)

    assert side("w/o ALSN (uniform)").run == "w/o ALSN (uniform)"
    assert side("smoke:KD").shown == "smoke:KD"
    assert side(f"{tree.home}:KD").context.results == tree.home
    assert side(str(tree.home)).run == ""
    assert len(pairs_of(side("smoke"), side(str(tree.home)))) == 5
    for name, reason, fix in (
        ("KDD", "is not a run of smoke", "did you mean 'KD'"),
        ("smoke:KDD", "is not a run of smoke", "did you mean 'KD'"),
        ("nothing:KD", "has no results here", str(tree.home)),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            side(name)
        assert fix in caught.value.fix
    with pytest.raises(UserError, match="is an experiment, smoke:KD is a run"):
        pairs_of(side("KD"), side("smoke"))


# ---- what is shown --------------------------------------------------------------------------------------------------------


def test_the_command_prints_all_parts_and_writes_page_and_picture(tree: Tree, tmp_path: Path) -> None:
    arguments = ["compare", "CMAPKD", "KD", "-e", str(tree.file), "--results", str(tree.home.parent)]
    files = [tmp_path / "a.html", tmp_path / "a.png"]
    done = CliRunner().invoke(app, [*arguments, "--html", str(files[0]), "--png", str(files[1])])
    assert done.exit_code == 0, done.output
    for part in ("Settings that differ", "95 % interval", f"retrieval {SPLIT} i2t_r1", "Training loss", "█", "▁", "to"):
        assert part in done.output
    assert files[1].read_bytes().startswith(b"\x89PNG")
    page = files[0].read_text()
    assert "<script" not in page
    assert page.count("http") == 0
    assert "weights.align" in page
    first = [path.read_bytes() for path in files]
    CliRunner().invoke(app, [*arguments, "--html", str(files[0])])
    assert [path.read_bytes() for path in files] == first


def test_without_torch(tree: Tree) -> None:
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "open_clip", "deepspeed", "transformers", "snakemake", "matplotlib"):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
from cmapkd.cli import main
main()
"""
    arguments = ["compare", "CMAPKD", "KD", "-e", str(tree.file), "--results", str(tree.home.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_sparklines() -> None:
    assert sparkline(np.arange(8)) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.arange(800), width=8) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.ones(3)) == "▁▁▁"
    assert sparkline(np.array([0, np.nan, 7.0])) == "▁ █"
    assert sparkline(np.array([np.inf])) == " "
    assert sparkline(np.array([])) == ""


def test_numbers_as_shown() -> None:
    interval = paired.Interval(1.5, -0.25, 3.0, 1e-5)
    assert number_row(Number("a all b", (2.5, 0.5), (1.0, None), interval)) == (
        "a b", "2.50 ± 0.50", "1.00", "+1.50", "[-0.25, +3.00]", "< 0.0002",
    )  # fmt: skip
    assert number_row(Number("a", (123456.0, None), None))[1:4] == ("123,456", "not measured", "")


# ---- the bootstrap --------------------------------------------------------------------------------------------------------


def _parts(scores: np.ndarray, queries: np.ndarray | None = None) -> dict[str, list[paired.Part]]:
    return {"m": [(scores.astype(float), np.ones(len(scores)) if queries is None else queries)]}


def test_the_interval_is_scipys_and_nearly_the_normal_one() -> None:
    generator = np.random.default_rng(3)
    first, second = (generator.random(400) < 0.6).astype(float), (generator.random(400) < 0.5).astype(float)
    made = paired.differences([_parts(first)], [_parts(second)])["m"]
    gains = 100 * (first - second)
    other = bootstrap((gains,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1))
    assert made.difference == pytest.approx(gains.mean())
    assert made.low == pytest.approx(other.confidence_interval.low, abs=0.5)
    assert made.high == pytest.approx(other.confidence_interval.high, abs=0.5)
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    assert made.high - made.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert made.p == pytest.approx(2 * norm.sf(abs(gains.mean()) / error), rel=0.3)


def test_coverage_of_the_interval() -> None:
    generator = np.random.default_rng(5)
    inside = 0
    for _ in range(200):
        made = paired.differences(*([_parts(generator.random(80) < p)] for p in (0.7, 0.5)), repeats=400)["m"]
        inside += made.low <= 20 <= made.high
    assert 0.89 <= inside / 200 <= 0.99


def test_questions_of_one_picture_are_drawn_together() -> None:
    """Ten equal answers for each picture make the interval no narrower than one answer does."""
    generator = np.random.default_rng(7)
    first, second = (generator.random(100) < p for p in (0.6, 0.5))
    image = np.repeat(np.arange(100), 10)
    types = np.full(1000, "other")
    made = [
        paired.parts_of("vqa", {"accuracy": np.repeat(s, 10).astype(float), "type": types, "image": image})
        for s in (first, second)
    ]
    clustered = paired.differences(*([parts] for parts in made))["overall"]
    single = paired.differences([_parts(first)], [_parts(second)])["m"]
    assert clustered.high - clustered.low == pytest.approx(single.high - single.low, rel=1e-6)


def test_mean_recall_is_the_mean_of_six_recalls() -> None:
    arrays = {"i2t_ranks": np.array([0, 3, 12]), "t2i_ranks": np.array([0, 0, 4, 20]), "owner": np.array([0, 0, 1, 2])}
    parts = paired.parts_of("retrieval", arrays)
    assert paired.value(parts["i2t_r5"]) == pytest.approx(200 / 3)
    assert paired.value(parts["t2i_r1"]) == pytest.approx(50)
    assert paired.value(parts["mean_recall"]) == pytest.approx((100 / 3 + 200 / 3 + 200 / 3 + 50 + 75 + 75) / 6)
    assert paired.parts_of("retrieval", {"i2t_ranks": np.array([0])}) == {}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
def test_properties_of_an_interval(hits: list[tuple[bool, bool]]) -> None:
    first, second = (np.array(side) for side in zip(*hits, strict=True))
    made = paired.differences([_parts(first)], [_parts(second)], repeats=200)["m"]
    assert -100 <= made.low <= made.high <= 100
    assert 0 < made.p <= 1
    assert made.difference == pytest.approx(100 * (first.mean() - second.mean()))
    if (first == second).all():
        assert (made.low, made.high, made.p) == (0, 0, 1)


def test_seeds_are_averaged_for_each_picture() -> None:
    seeds = [_parts(np.array([1, 0, 1])), _parts(np.array([0, 0, 1]))]
    np.testing.assert_allclose(paired.average(seeds)["m"][0][0], [0.5, 0, 1])
    with pytest.raises(ValueError, match="not asked the same queries"):
        paired.average([seeds[0], _parts(np.ones(3), np.array([1, 2, 1]))])
    with pytest.raises(ValueError, match="not asked the same queries"):
        paired.differences([seeds[0]], [_parts(np.ones(3), np.array([1, 2, 1]))])


def test_the_spread_of_seeds_is_in_the_interval_where_both_runs_have_the_same_ones() -> None:
    """Two runs whose seeds differ by whole points: the images alone say that the difference is one, the seeds do not."""
    shares = {"first": (0.30, 0.50, 0.40), "second": (0.42, 0.30, 0.38)}
    ours, theirs = ([_parts(np.arange(5000) < 5000 * share) for share in shares[side]] for side in ("first", "second"))
    images = paired.differences(ours, theirs)["m"]
    both = paired.differences(ours, theirs, seeds=True)["m"]
    gains = 100 * (np.array(shares["first"]) - np.array(shares["second"]))
    assert images.difference == pytest.approx(both.difference) == pytest.approx(gains.mean())
    expected = ttest_1samp(gains, 0)
    assert images.p < 0.001 < 0.3 < both.p == pytest.approx(expected.pvalue, abs=0.05)
    interval = expected.confidence_interval(0.95)
    assert (both.low, both.high) == pytest.approx((interval.low, interval.high), rel=0.1)
