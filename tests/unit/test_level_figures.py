"""Figures 4 to 6, what weights and levels hold: closed forms, independent libraries, and inputs with little to show."""

from __future__ import annotations

import dataclasses
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as made_arrays
from matplotlib.figure import Figure as Canvas
from scipy import stats
from synthetic_metrics import SPLITS, arrays_of, context, rewrite_arrays, write_all

from cmapkd.errors import UserError
from cmapkd.files import read_json
from cmapkd.paper import build
from cmapkd.paper.build import build_figure
from cmapkd.paper.cells import Parent
from cmapkd.paper.context import TEACHER, PaperContext, PaperRun
from cmapkd.paper.figures import level_attention, level_maps, weights_by_type
from cmapkd.paper.figures.common import Types, bootstrap_interval, types_of
from cmapkd.paper.metrics import Metrics

SPLIT = SPLITS[0]
PARENT = Parent("metrics/x.npz", "0" * 64, "x", 0, ("made up",))


@pytest.fixture
def setting(tmp_path: Path) -> PaperContext:
    made = context(tmp_path)
    write_all(made)
    return made


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps, and no PDFs: these tests look at numbers."""
    monkeypatch.setattr(level_maps, "PICTURES", 6)
    monkeypatch.setattr(Canvas, "savefig", lambda self, path, **options: Path(path).write_bytes(b""))
    monkeypatch.setattr(build, "picture_of", lambda pdf: b"")


# ---- figure 4 ---------------------------------------------------------------------------------------------------------------


def two_types(first: int, second: int) -> Types:
    return Types(("a", "b"), np.array([0] * first + [1] * second), (PARENT,), "made up")


def test_shares_by_type_by_hand() -> None:
    weights = np.array([[0.2, 0.8], [0.4, 0.6], [0.9, 0.1]])
    shares = weights_by_type.shares_of([weights], two_types(2, 1))
    assert shares.mean == pytest.approx(np.array([[0.3, 0.7], [0.9, 0.1]]))
    half = 1.959964 * 0.1  # of two values 0.2 apart the standard error is half their distance
    assert shares.low[0] == pytest.approx([0.3 - half, 0.7 - half])
    assert shares.high[0] == pytest.approx([0.3 + half, 0.7 + half])
    assert np.isnan(shares.low[1]).all()  # one sample has no interval
    assert shares.overall == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("shift", [0.0, 0.4, 2.0])
def test_largest_difference_equals_scipys_permutation_test(shift: float) -> None:
    generator = np.random.default_rng(3)
    a, b = generator.normal(shift, 1, 30), generator.normal(0, 1, 20)
    more, less, level, p = weights_by_type.largest_difference(np.concatenate([a, b])[:, None], two_types(30, 20))
    expected = stats.permutation_test(
        (a, b), lambda x, y: abs(x.mean() - y.mean()), n_resamples=1999, alternative="greater", rng=np.random.default_rng(4)
    )
    assert p == pytest.approx(expected.pvalue, abs=0.03)
    assert (more, less, level) == ((0, 1, 0) if a.mean() > b.mean() else (1, 0, 0))


def test_figure4_reports_the_difference_that_is_there(setting: PaperContext) -> None:
    strata = arrays_of(0.0, 0, alsn=True)[f"retrieval/{SPLIT}/stratum"]
    weights = np.full((len(strata), 4), 0.25)
    weights[strata == "abstract"] = [0.1, 0.3, 0.3, 0.3]
    rewrite_arrays(setting, lambda arrays: arrays.update({f"alsn/{SPLIT}/visual": weights}))
    figure = build_figure("figure4", setting)
    assert [figure.cells["abstract"][level].value for level in ("P2", "P3", "P4", "P5")] == pytest.approx([0.1, 0.3, 0.3, 0.3])
    assert figure.cells["simple"]["images"].value == 250
    found = figure.cells["largest visual"]
    assert found["difference"].value == pytest.approx(0.15)
    assert found["p"].value == pytest.approx(1 / 2000)
    assert "P2, simple against abstract, +0.150 [+0.150, +0.150], p < 0.001" in figure.caption
    assert "polygons of the language weights coincide" in figure.caption
    assert figure.values["types"] == ["simple", "complex", "fine", "abstract"]
    assert {parent.file for parent in found["p"].parents} == {"metrics/CMAPKD/0.npz", "metrics/Teacher/0.npz"}


def test_figure4_over_seeds_has_deviations(tmp_path: Path) -> None:
    setting = context(tmp_path, seeds=(0, 1))
    write_all(setting)
    cell = build_figure("figure4", setting).cells["fine"]["L1"]
    masks = [arrays_of(0.0, seed, alsn=True) for seed in (0, 1)]
    means = [arrays[f"alsn/{SPLIT}/language"][arrays[f"retrieval/{SPLIT}/stratum"] == "fine", 0].mean() for arrays in masks]
    assert (cell.value, cell.std, cell.n) == pytest.approx((np.mean(means), np.std(means, ddof=1), 2), abs=1e-6)


def test_figure4_with_constant_weights(setting: PaperContext) -> None:
    uniform = {f"alsn/{SPLIT}/{tower}": np.full((1000, 4), 0.25) for tower in ("visual", "language")}
    rewrite_arrays(setting, lambda arrays: arrays.update(uniform))
    figure = build_figure("figure4", setting)
    assert "visual: none, the weights are constant; language: none, the weights are constant" in figure.caption
    assert figure.cells["largest visual"] == {}


def test_figure4_with_one_sample_of_a_type(setting: PaperContext) -> None:
    strata = np.array(["simple"] * 600 + ["complex"] * 399 + ["rare"])
    rewrite_arrays(setting, lambda arrays: arrays.update({f"retrieval/{SPLIT}/stratum": strata}), TEACHER)
    figure = build_figure("figure4", setting)
    assert "No interval for a type with one sample (rare)" in figure.caption
    assert figure.values["types"] == ["simple", "complex", "rare"]


def test_types_without_strata_are_quarters_of_the_margin(setting: PaperContext) -> None:
    margin = np.random.default_rng(0).permutation(1000) / 1000
    change = {f"retrieval/{SPLIT}/stratum": np.full(1000, ""), f"retrieval/{SPLIT}/margin": margin}
    rewrite_arrays(setting, lambda arrays: arrays.update(change), TEACHER)
    types = types_of(setting, Metrics(setting), SPLIT, "figure4")
    assert np.bincount(types.of).tolist() == [250] * 4
    assert types.of.tolist() == (3 - np.floor(margin * 4)).astype(int).tolist()
    figure = build_figure("figure4", setting)
    assert "quarters of the teacher's retrieval margin" in figure.caption
    assert figure.cells["hardest quarter"]["images"].value == 250


# ---- figure 5 ---------------------------------------------------------------------------------------------------------------


def test_figure5_shows_the_recorded_cka(tmp_path: Path) -> None:
    setting = context(tmp_path, seeds=(0, 1))
    write_all(setting)
    figure = build_figure("figure5", setting)
    recorded = [read_json(setting.metric_file("CMAPKD", seed))["metrics"]["levels"] for seed in (0, 1)]
    for level in ("P2", "P5", "L3"):
        cell = figure.cells[level]["teacher_student"]
        assert cell.value == pytest.approx(np.mean([content["both"]["cka"][level] for content in recorded]))
        assert cell.n == 2
    between = level_maps.between(("P2", "P3", "P4", "P5"), figure.cells)
    for row, column, side, pair in ((0, 3, "teacher", "P2-P5"), (3, 0, "student", "P2-P5"), (2, 1, "student", "P3-P4")):
        assert between[row, column] == pytest.approx(np.mean([content[side]["cka"][pair] for content in recorded]))
    assert np.isnan(np.diag(between)).all()
    assert figure.cells["student"]["neighbours"].value == 100  # made-up levels are far apart


def test_neighbours_equal_scikit_learns() -> None:
    from sklearn.neighbors import NearestNeighbors

    generator = np.random.default_rng(0)
    features = level_maps.unit(generator.normal(size=(80, 6)))
    of = generator.integers(0, 3, 80)
    nearest = NearestNeighbors(n_neighbors=2).fit(features).kneighbors(features)[1][:, 1]
    assert level_maps.same_level_neighbours(features, of) == pytest.approx(np.mean(of[nearest] == of))


@pytest.mark.parametrize("count", [2, 4])
def test_no_map_of_too_few_features(count: int) -> None:
    assert level_maps.tsne(np.random.default_rng(0).normal(size=(count, 4))) is None


def test_maps_of_few_and_of_constant_features() -> None:
    features = np.random.default_rng(0).normal(size=(5, 4))
    places = level_maps.tsne(features)
    assert places is not None
    assert np.isfinite(places).all()
    assert places.tobytes() == level_maps.tsne(features).tobytes()  # type: ignore[union-attr]
    assert level_maps.tsne(np.ones((40, 4))) is None
    assert level_maps.unit(np.zeros((1, 3))).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("edit", [lambda features: features[:1], lambda features: np.ones_like(features)])
def test_figure5_without_a_map_says_so(setting: PaperContext, edit: Any) -> None:
    names = [f"levels/{SPLIT}/{side}/{level}" for side in ("student", "teacher") for level in ("P2", "P3", "P4", "P5")]
    rewrite_arrays(setting, lambda arrays: arrays.update({name: edit(arrays[name]) for name in names}))
    figure = build_figure("figure5", setting)
    assert figure.values["maps"] == {"teacher": None, "student": None}
    assert "Where there is no map" in figure.caption


# ---- figure 6 ---------------------------------------------------------------------------------------------------------------


def test_attention_by_hand() -> None:
    """Two samples, two levels of each modality: column means 0.2 and 0.4, so (s - mean) / 0.1 are small integers."""
    similarity = np.array([[[0.3, 0.4], [0.1, 0.4]], [[0.3, 0.3], [0.1, 0.5]]])
    logits = np.array([[[1, 0], [-1, 0]], [[1, -1], [-1, 1]]])
    e = np.e
    expected = [[[e / (e + 1), 1 / (e + 1)], [1 / (1 + e), e / (1 + e)]], [[e**2 / (e**2 + 1), 1 / (e**2 + 1)]] * 2]
    expected[1][1] = expected[1][1][::-1]
    assert np.allclose((similarity - [0.2, 0.4]) / 0.1, logits)
    assert level_attention.attention(similarity, 0.1) == pytest.approx(np.array(expected))
    plain = level_attention.attention(similarity, 0.1, centred=False)
    assert plain[0, 0, 0] == pytest.approx(1 / (1 + e))


@settings(max_examples=30, deadline=None)
@given(made_arrays(np.float64, (5, 4, 3), elements=st.floats(-1, 1)), st.floats(-3, 3), st.floats(-3, 3))
def test_attention_ignores_offsets_of_a_level(similarity: np.ndarray, visual: float, language: float) -> None:
    attention = level_attention.attention(similarity, 0.3)
    assert attention.sum(axis=-1) == pytest.approx(np.ones((5, 4)))
    moved = similarity + np.array([visual, 0, 0, 0])[:, None] + np.array([0, language, 0])
    assert level_attention.attention(moved, 0.3) == pytest.approx(attention, abs=1e-9)


def test_exact_p_of_the_diagonal() -> None:
    assert level_attention.permutation_p(np.eye(4)) == pytest.approx(1 / 24)
    assert level_attention.permutation_p(np.full((4, 4), 0.25)) == 1  # all orders are alike
    assert level_attention.permutation_p(1 - np.eye(4)) == 1
    square = np.random.default_rng(5).random((4, 4))
    better = sum(
        sum(square[i, order[i]] for i in range(4)) >= sum(square[i, i] for i in range(4)) - 1e-12
        for order in permutations(range(4))
    )
    assert level_attention.permutation_p(square) == pytest.approx(better / 24)


def test_diagonal_and_rest_by_hand() -> None:
    diagonal, rest = level_attention.diagonal_and_rest(np.array([[[0.6, 0.4], [0.1, 0.9]]]))
    assert (diagonal[0], rest[0]) == pytest.approx((0.75, 0.25))
    assert level_attention.matched_levels(("P4", "P5"), ("L1", "L3", "L4")) == [(0, 1), (1, 2)]


def test_bootstrap_interval_equals_scipys() -> None:
    values = np.random.default_rng(6).exponential(size=200)
    low, high = bootstrap_interval(values) or (0, 0)
    expected = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(7))
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.02)
    assert bootstrap_interval(values[:1]) is None


def test_figure6_finds_levels_that_match_and_those_that_do_not(setting: PaperContext) -> None:
    figure = build_figure("figure6", setting)  # made-up similarities of matched levels are higher
    for side in ("student", "teacher"):
        assert figure.cells[side]["p"].value == pytest.approx(1 / 24)
        assert 0 < figure.cells[side]["low"].value < figure.cells[side]["difference"].value < figure.cells[side]["high"].value
        assert sum(figure.cells[side][f"P3-L{j}"].value for j in range(1, 5)) == pytest.approx(1)
    assert "p = 0.042" in figure.caption
    name = f"levels/{SPLIT}/student/similarity"
    rewrite_arrays(setting, lambda arrays: arrays.update({name: arrays[name][:, :, ::-1]}))
    turned = build_figure("figure6", setting)
    assert turned.cells["student"]["high"].value < 0
    assert turned.cells["student"]["p"].value > 0.5
    assert turned.cells["teacher"]["p"].value == pytest.approx(1 / 24)


def test_figure6_numbers_follow_from_the_arrays_and_the_configuration(tmp_path: Path) -> None:
    setting = context(tmp_path, seeds=(0, 1))
    write_all(setting)
    figure = build_figure("figure6", setting)
    name = f"levels/{SPLIT}/student/similarity"
    means = [level_attention.attention(arrays_of(0.0, s, alsn=True)[name].astype(float), 0.1)[:, 1, 2].mean() for s in (0, 1)]
    cell = figure.cells["student"]["P3-L3"]
    assert (cell.value, cell.std, cell.n) == pytest.approx((np.mean(means), np.std(means, ddof=1), 2))
    assert figure.cells["teacher"]["P3-L3"].n == 1  # the teacher is the same whatever the student's seed
    files = {parent.file for parent in cell.parents}
    assert files == {"metrics/CMAPKD/0.npz", "metrics/CMAPKD/1.npz", "experiment.yaml"}


def test_figure6_with_one_sample_has_no_interval(setting: PaperContext) -> None:
    names = [f"levels/{SPLIT}/{side}/similarity" for side in ("student", "teacher")]
    rewrite_arrays(setting, lambda arrays: arrays.update({name: arrays[name][:1] for name in names}))
    figure = build_figure("figure6", setting)
    assert "low" not in figure.cells["student"]
    assert "p" in figure.cells["student"]


def test_figure6_needs_the_temperature_and_finite_similarities(setting: PaperContext) -> None:
    unknown = dataclasses.replace(setting, runs=(PaperRun("CMAPKD", method="cmapkd"),))
    with pytest.raises(UserError, match="needs its temperature_kd"):
        build_figure("figure6", unknown)
    name = f"levels/{SPLIT}/teacher/similarity"
    rewrite_arrays(setting, lambda arrays: arrays.update({name: np.full((3, 4, 4), np.inf)}))
    with pytest.raises(UserError, match="not finite"):
        build_figure("figure6", setting)
