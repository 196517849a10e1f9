"""Emoji Scenes: splits do not leak, scenes are pure functions of their index, questions are true and balanced."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from emoji_packages import CONCEPTS, FAMILIES, write_packages
from PIL import Image
from pydantic import ValidationError

from cmapkd.config.sources import EmojiScenesConfig
from cmapkd.data.sample import Question
from cmapkd.data.sources import build_source, source_names
from cmapkd.data.sources.emoji.captions import MAXIMUM_WORDS
from cmapkd.data.sources.emoji.catalogue import read_catalogue
from cmapkd.data.sources.emoji.compose import BACKGROUNDS, PARTITIONS, STRATA
from cmapkd.data.sources.emoji.fetch import fetch
from cmapkd.data.sources.emoji.language import SUBGROUPS
from cmapkd.data.sources.emoji.packages import Package
from cmapkd.data.sources.emoji.questions import majority, question_only
from cmapkd.data.sources.emoji_scenes import EmojiScenes
from cmapkd.errors import UserError

CONFIG = EmojiScenesConfig(
    image_size=32,
    render_size=32,
    concepts=24,
    held_out_concepts=0.3,
    train=400,
    validation=80,
    test_render=80,
    test_concept=80,
    questions_per_scene=3,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Package, ...]]:
    directory = tmp_path_factory.mktemp("cache")
    return directory, write_packages(directory)


@pytest.fixture(scope="module")
def source(cache: tuple[Path, tuple[Package, ...]]) -> EmojiScenes:
    return EmojiScenes(CONFIG, *cache)


def test_the_source_is_registered(tmp_path: Path) -> None:
    assert "emoji_scenes" in source_names()
    assert build_source(EmojiScenesConfig(), tmp_path).name == "emoji_scenes"


def test_the_source_imports_no_torch() -> None:
    code = "import sys, cmapkd.data.sources.emoji_scenes, cmapkd.data.contact; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Catalogue and splits


def test_drawings_are_matched_by_code_point_and_by_name(cache: tuple[Path, tuple[Package, ...]]) -> None:
    catalogue = read_catalogue(cache[1], fetch(cache[1], cache[0]))
    assert len(catalogue.concepts) == len(CONCEPTS)
    families = {concept.label: catalogue.families(hexcode) for hexcode, concept in catalogue.concepts.items()}
    assert families["young owl"] == set(FAMILIES)
    assert families["owl"] == set(FAMILIES[:-1])
    # Text and outside references are no drawings.
    assert "wax" not in families["lynx"] | families["stoat"]


def test_splits_share_no_style_and_no_component(source: EmojiScenes) -> None:
    pictures, component = source._partition.pictures, source._partition.component
    used = {
        split: {(p.drawing.hexcode, p.drawing.family) for own in drawn.values() for p in own}
        for split, drawn in pictures.items()
    }
    for split in ("validation", "test_render"):
        assert used[split] and not used[split] & used["train"]
        assert set(pictures[split]) <= set(pictures["train"])
    assert not used["validation"] & used["test_render"]
    assert pictures["test_concept"]
    assert not {component[h] for h in pictures["test_concept"]} & {component[h] for h in pictures["train"]}
    exact = [p.exact for drawn in pictures.values() for own in drawn.values() for p in own]
    assert len(exact) == len(set(exact))


def test_variants_are_one_component_and_shared_pictures_go(cache: tuple[Path, tuple[Package, ...]]) -> None:
    source = EmojiScenes(CONFIG.model_copy(update={"concepts": 30}), *cache)
    parts = source._partition
    by_label = {concept.label: hexcode for hexcode, concept in parts.concepts.items()}
    assert parts.component[by_label["owl"]] == parts.component[by_label["young owl"]]
    drawn = {p.drawing.id for split in parts.pictures.values() for own in split.values() for p in own}
    assert not drawn & {"oil/plum", "oil/fig"}
    assert parts.report["dropped_pictures_shared_by_concepts"] == 2


def test_too_many_concepts_are_refused(cache: tuple[Path, tuple[Package, ...]]) -> None:
    with pytest.raises(UserError, match="at most"):
        EmojiScenes(CONFIG.model_copy(update={"concepts": 300}), *cache).sample("train", 0)


def test_too_few_held_out_concepts_are_refused(cache: tuple[Path, tuple[Package, ...]]) -> None:
    with pytest.raises(UserError, match="up to 4 different ones") as error:
        EmojiScenes(CONFIG.model_copy(update={"held_out_concepts": 0.05}), *cache).sample("train", 0)
    assert error.value.key == "data.held_out_concepts"


def test_enlarging_drawings_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 64"):
        EmojiScenesConfig(image_size=64, render_size=32)


def test_an_unknown_split_is_refused(source: EmojiScenes) -> None:
    with pytest.raises(UserError, match="did you mean 'test_render'"):
        list(source.samples("test_rendr"))


def test_leakage_report_is_clean(source: EmojiScenes) -> None:
    report = source.leakage()
    for overlap in report["overlap_with_train"].values():
        assert overlap["identical_pictures"] == overlap["near_duplicate_pictures"] == overlap["concept_and_family_pairs"] == 0
    assert report["overlap_with_train"]["test_concept"]["concepts"] == 0
    assert report["overlap_with_train"]["test_concept"]["components"] == 0
    assert set(report["captions"]) == set(source.splits())
    assert set(report["question_only_accuracy"]) == set(source.splits()[1:])


# Scenes


def test_samples_are_pure_functions_of_split_and_index(source: EmojiScenes, cache: tuple[Path, tuple[Package, ...]]) -> None:
    again = EmojiScenes(CONFIG, *cache)
    backwards = [again.sample(split, index) for split in ("test_render", "train") for index in reversed(range(40))]
    assert backwards == [source.sample(split, index) for split in ("test_render", "train") for index in reversed(range(40))]
    assert list(source.samples("validation")) == list(source.samples("validation"))
    longer = EmojiScenes(CONFIG.model_copy(update={"train": 800}), *cache)
    assert longer.sample("train", 17) == source.sample("train", 17)
    other = EmojiScenes(CONFIG.model_copy(update={"seed": 1}), *cache)
    assert other.sample("train", 17) != source.sample("train", 17)


def test_pictures_show_what_the_plan_says(source: EmojiScenes) -> None:
    for index in range(40):
        sample = source.sample("train", index)
        image = np.asarray(Image.open(io.BytesIO(sample.image)))
        assert image.shape == (32, 32, 3)
        tint = np.array(source.scene("train", index).tint)
        foreground = (image != tint).any(axis=-1)
        asked = sum(placed["side"] ** 2 for placed in sample.meta["objects"])
        assert foreground.mean() == pytest.approx(asked, rel=0.25)
        for placed in sample.meta["objects"]:
            assert placed["side"] / 2 - 1e-4 <= min(placed["x"], placed["y"])
            assert max(placed["x"], placed["y"]) <= 1 - placed["side"] / 2 + 1e-4


def test_strata_are_what_they_are_called(source: EmojiScenes) -> None:
    abstract = {label for group, _, label in CONCEPTS if group in ("smileys-emotion", "symbols")}
    for sample in source.samples("train"):
        objects = sample.meta["objects"]
        assert sample.stratum == STRATA[int(sample.key) % 4]
        if sample.stratum in ("simple", "abstract"):
            assert len(objects) == 1 and objects[0]["side"] > 0.5
            assert (sample.meta["concepts"][0] in abstract) == (sample.stratum == "abstract")
        elif sample.stratum == "fine":
            assert len(objects) in (1, 2) and all(0.25 <= placed["side"] <= 1 / 3 for placed in objects)
        else:
            assert 2 <= len(objects) <= 4
        for i, a in enumerate(objects):
            for b in objects[:i]:
                apart = max(abs(a["x"] - b["x"]), abs(a["y"] - b["y"]))
                assert apart >= (a["side"] + b["side"]) / 2 - 0.06


def test_scenes_use_only_their_splits_drawings(source: EmojiScenes) -> None:
    for split in source.splits():
        own = {p.drawing.id for drawn in source._partition.pictures[split].values() for p in drawn}
        assert {o["drawing"] for sample in source.samples(split) for o in sample.meta["objects"]} <= own


def test_labels_are_classes_of_lone_objects(source: EmojiScenes) -> None:
    names, templates = source.classes()
    assert names == [SUBGROUPS[name] for name in dict.fromkeys(s for _, s, _ in CONCEPTS)]
    assert all(template.count("{}") == 1 for template in templates)
    kind = {label: SUBGROUPS[subgroup] for _, subgroup, label in CONCEPTS}
    for sample in source.samples("train"):
        if len(sample.meta["objects"]) == 1:
            assert sample.label is not None and names[sample.label] == kind[sample.meta["concepts"][0]]
        else:
            assert sample.label is None


# Captions


def test_captions_are_five_short_and_different(source: EmojiScenes) -> None:
    for split in source.splits():
        for sample in source.samples(split):
            assert len(set(sample.captions)) == len(sample.captions) == 5
            for caption in sample.captions:
                assert len(caption.split()) <= MAXIMUM_WORDS and caption == caption.strip()
                assert sample.meta["background"] in caption
                assert "lol" not in caption


def test_captions_name_every_object_with_its_number(source: EmojiScenes) -> None:
    for sample in source.samples("train"):
        counts = Counter(placed["hexcode"] for placed in sample.meta["objects"])
        for hexcode, count in counts.items():
            said = source._nouns[hexcode].counted(count)
            assert (said if count > 1 else source._nouns[hexcode].label) in sample.captions[0]


def test_lone_objects_do_not_repeat_before_every_look_has_come(source: EmojiScenes) -> None:
    seen: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for index in range(0, 4000, 4):
        scene = source.scene("train", index)
        seen["simple", scene.objects[0].hexcode].append((scene.background, scene.objects[0].place))
    counts = [len(looks) for looks in seen.values()]
    assert max(counts) - min(counts) <= 1
    assert all(len(set(looks)) == len(looks) for looks in seen.values())


# Questions


def test_questions_have_ten_answers_and_one_clear_majority(source: EmojiScenes) -> None:
    ids = []
    for split in source.splits():
        for sample in source.samples(split):
            assert 1 <= len(sample.questions) <= CONFIG.questions_per_scene
            assert len({question.question for question in sample.questions}) == len(sample.questions)
            for question in sample.questions:
                ids.append(question.id)
                assert len(question.answers) == 10
                assert Counter(question.answers).most_common(1)[0][1] >= 7
    assert len(ids) == len(set(ids))


def test_questions_are_answered_truly(source: EmojiScenes) -> None:
    kinds = {label: SUBGROUPS[subgroup] for _, subgroup, label in CONCEPTS}
    for sample in source.samples("train"):
        objects, labels = sample.meta["objects"], sample.meta["concepts"]
        for question in sample.questions:
            text, answer = question.question, majority(question)
            if text.startswith(("is there", "are there")):
                asked = text.split(maxsplit=2)[2].rstrip("?").removeprefix("an ").removeprefix("a ")
                assert answer == ("yes" if asked in labels else "no"), text
            elif text.startswith("is the background"):
                assert answer == ("yes" if sample.meta["background"] in text else "no")
            elif text == "how many things are there?":
                assert answer == str(len(objects))
            elif text.startswith("how many"):
                assert int(answer) == max(Counter(placed["hexcode"] for placed in objects).values())
            elif text == "what is this?":
                assert answer == labels[0]
            elif text == "what kind of thing is this?":
                assert answer == kinds[labels[0]]
            elif text == "what color is the background?":
                assert answer == sample.meta["background"]
            elif text.startswith("where is"):
                assert answer == objects[0]["place"]
            else:
                assert text.startswith("what is ") and answer in labels


def test_questions_are_balanced(source: EmojiScenes) -> None:
    questions = [question for index in range(4000) for question in source.questions(source.scene("train", index))]
    yes = [majority(question) == "yes" for question in questions if question.type == "yes/no"]
    assert np.mean(yes) == pytest.approx(0.5, abs=0.05)
    numbers = Counter(majority(question) for question in questions if question.type == "number")
    assert set(numbers) == {"1", "2", "3", "4"} and max(numbers.values()) < 0.4 * sum(numbers.values())
    assert set(Counter(question.type for question in questions)) == {"yes/no", "number", "other"}
    assert Counter(max(partition) for partition in PARTITIONS)[1] * 2 == len(PARTITIONS)


def test_question_only_uses_the_official_accuracy() -> None:
    def asked(text: str, answers: list[str]) -> Question:
        return Question(text, answers, "other", 0)

    train = [asked("what?", ["owl"] * 10), asked("what?", ["owl"] * 10), asked("what?", ["fox"] * 10)]
    # Two of ten agree with "owl": leave-one-out matches are 1 twice and 2 eight times, so (2 * 1/3 + 8 * 2/3) / 10 = 0.6.
    assert question_only(train, [asked("what?", ["owl"] * 2 + ["fox"] * 8)]) == {"other": 60.0, "overall": 60.0}
    assert question_only(train, [asked("unseen?", ["owl"] * 10)])["other"] == 100.0
    assert question_only(train, [asked("what?", ["fox"] * 10)])["other"] == 0.0


def test_no_questions_when_none_are_wanted(cache: tuple[Path, tuple[Package, ...]]) -> None:
    source = EmojiScenes(CONFIG.model_copy(update={"questions_per_scene": 0}), *cache)
    assert source.sample("train", 1).questions == []


def test_provenance_names_everything(source: EmojiScenes) -> None:
    records = source.provenance()
    assert len(records) == len(FAMILIES) + 2
    assert all({"name", "version", "sha256", "licence", "attribution"} <= set(record) for record in records)


@pytest.mark.network
def test_the_real_data_set(tmp_path: Path) -> None:
    source = EmojiScenes(EmojiScenesConfig(), tmp_path)
    assert all(file.fetched for file in source.fetch())
    assert not any(file.fetched for file in source.fetch())
    catalogue = source._catalogue
    assert (len(catalogue.concepts), sum(map(len, catalogue.drawings.values()))) == (1256, 8895)
    report = source.leakage()
    assert report["concepts"] == 400
    for split, overlap in report["overlap_with_train"].items():
        assert overlap["identical_pictures"] == overlap["near_duplicate_pictures"] == overlap["concept_and_family_pairs"] == 0
        assert overlap["look_alike_pictures"] < 0.15 * overlap["pictures"], split
    assert report["overlap_with_train"]["test_concept"]["components"] == 0
    assert report["drawings_in_validation_and_test_render"] == 0
    for split in source.splits():
        assert report["captions"][split]["scenes_with_a_repeated_caption_set"] < 0.01
        assert report["captions"][split]["captions_that_fit_another_scene"] < 0.05
    for accuracy in report["question_only_accuracy"].values():
        assert accuracy["yes/no"] < 56 and accuracy["number"] < 36 and accuracy["other"] < 12
    labels = [thing.label for thing in source._nouns.values()]
    assert len(labels) == len(set(labels)), "two concepts have one name"
    assert {scene.background for scene in (source.scene("train", i) for i in range(400))} == set(BACKGROUNDS)
