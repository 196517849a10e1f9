"""An exported student: every form gives the embeddings of the student, by the libraries that others load it with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import exported
import numpy as np
import open_clip
import pytest
import tiny
import torch
from exported import RUN, TEXTS, pictures, unit
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from synthetic_results import Tree, edit_json, experiment_of
from typer.testing import CliRunner

from cmapkd.cli import app
from cmapkd.errors import UserError
from cmapkd.export import onnx_towers, record, transformers_clip
from cmapkd.export.finished import finished, resolve
from cmapkd.export.write import export
from cmapkd.files import sha256_of
from cmapkd.models import towers
from cmapkd.plan import make_plan
from cmapkd.training.stages import seeded
from cmapkd.workflow import exports

EXACT = 1e-5  # of normalised embeddings, where the same sums are done in another order in fp32 (a unit of rounding is 6e-8)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return exported.tree(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def folder(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export in all forms."""
    target = tmp_path_factory.mktemp("out") / "student"
    export(finished(tree.plan, RUN, tree.home.parent), target)
    return target


def test_open_clip_loads_it_by_its_documented_way(tree: Tree, folder: Path) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    own = exported.student(tree)
    assert tokens.shape == (len(TEXTS), 16)
    with torch.no_grad():
        assert torch.equal(model.eval().encode_text(tokens), own.encode_text(tokens))
        assert torch.equal(model.encode_image(pictures(3)), own.encode_image(pictures(3)))
    assert preprocess(Image.new("RGB", (50, 40))).shape == (3, 32, 32)


def test_transformers_gives_equal_embeddings_from_texts_and_pictures(tree: Tree, folder: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    own, (_, _, preprocess) = exported.student(tree), open_clip.create_model_and_transforms(f"local-dir:{folder}")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    seen = [Image.fromarray(noise), Image.new("L", (32, 32), 77)]  # of the model's size, so nothing is resampled
    inputs = processor(text=TEXTS, images=seen, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs)
        texts = unit(own.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)))
        images = unit(own.encode_image(torch.stack([preprocess(picture.convert("RGB")) for picture in seen])))
    assert torch.allclose(found.text_embeds, texts, atol=EXACT)
    assert torch.allclose(found.image_embeds, images, atol=EXACT)
    assert torch.allclose(found.logits_per_image, own.logit_scale.exp() * images @ texts.T, atol=1e-3)


def test_onnx_gives_equal_embeddings_for_any_batch_and_either_padding(tree: Tree, folder: Path) -> None:
    import onnxruntime

    own, about = exported.student(tree), json.loads((folder / "onnx" / "preprocessing.json").read_text())
    image, text = (
        onnxruntime.InferenceSession(str(folder / "onnx" / name), providers=["CPUExecutionProvider"])
        for name in (onnx_towers.IMAGE, onnx_towers.TEXT)
    )
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    ends = torch.where((tokens == transformers_clip.END).cumsum(1) > 0, transformers_clip.END, tokens)
    assert not torch.equal(ends, tokens)
    for count in (1, 4, 7):
        found = image.run(None, {"pixel_values": pictures(count).numpy()})[0]
        with torch.no_grad():
            expected = unit(own.encode_image(pictures(count)))
        assert np.abs(found - expected.numpy()).max() < 1e-4
    with torch.no_grad():
        expected = unit(own.encode_text(tokens)).numpy()
    for padded in (tokens, ends):
        assert np.abs(text.run(None, {"input_ids": padded.numpy()})[0] - expected).max() < 1e-4
    assert np.abs(text.run(None, {"input_ids": tokens[:1].numpy()})[0] - expected[:1]).max() < 1e-4
    assert about["context_length"] == 16
    assert about["logit_scale"] == pytest.approx(float(own.logit_scale.detach().exp()))
    assert about["mean"] == list(open_clip.constants.OPENAI_DATASET_MEAN)


def test_graphs_tell_nothing_of_this_machine_and_tokenizers_reads_the_texts(folder: Path) -> None:
    import onnx
    from tokenizers import Tokenizer

    for name in (onnx_towers.IMAGE, onnx_towers.TEXT):
        data = (folder / "onnx" / name).read_bytes()
        assert not [part for part in (str(Path.cwd()), "site-packages", ".py", "File ") if part.encode() in data]
        onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    read = Tokenizer.from_file(str(folder / "onnx" / "tokenizer.json")).encode(TEXTS[0]).ids
    assert read == open_clip.get_tokenizer("ViT-B-32")([TEXTS[0]])[0, : len(read)].tolist()


def test_its_record_names_every_file_and_finds_each_change(folder: Path, tmp_path: Path) -> None:
    about = record.verify(folder)
    assert set(about["files"]) == {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {record.RECORD}
    assert set(about["formats"]) == {"open_clip", "hf", "onnx"}
    assert all(difference < 1e-4 for difference in about["checks"].values())
    assert len(about["checks"]) == 3
    for change in ("README.md", "onnx/image.onnx", "new"):
        copy = tmp_path / change.replace("/", "-")
        shutil.copytree(folder, copy)
        with (copy / change).open("ab") as file:
            file.write(b" ")
        with pytest.raises(UserError, match=change):
            record.verify(copy)


def test_the_same_bytes_again_in_the_place_of_the_first(tree: Tree, tmp_path: Path) -> None:
    run, target = finished(tree.plan, f"{RUN}/0", tree.home.parent), tmp_path / "out"
    export(run, target, ["open_clip", "hf"])
    first = {path.name: sha256_of(path) for path in target.iterdir()}
    with pytest.raises(UserError, match="--overwrite"):
        export(run, target, ["open_clip"])
    export(run, target, ["open_clip", "hf"], overwrite=True)
    assert {path.name: sha256_of(path) for path in target.iterdir()} == first
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_lies_there_is_never_deleted_and_a_failure_leaves_nothing(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, mine = finished(tree.plan, RUN, tree.home.parent), tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no export"):
        export(run, mine, ["open_clip"], overwrite=True)
    assert (mine / "thesis.tex").read_text() == "years of work"
    monkeypatch.setattr("cmapkd.export.write.card", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(run, tmp_path / "new", ["open_clip"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda home: (home / "runs" / RUN / "0" / "run.json").unlink(), "4 of its 4 stages are trained"),
        (lambda home: (home / "metrics" / RUN / "0.json").unlink(), "not evaluated"),
        (lambda home: (home / "metrics" / RUN / "0.npz").write_bytes(b"x"), "SHA-256"),
        (
            lambda home: (home / "runs" / RUN / "0" / "student" / towers.WEIGHTS).write_bytes(b"x"),
            "not the file that a stage of the run wrote",
        ),
        (lambda home: (home / "runs" / RUN / "0" / "student" / towers.CONFIG).unlink(), "is missing"),
        (
            lambda home: edit_json(home / "runs" / RUN / "0" / "run.json", lambda c: c["stages"].pop()),
            "made with other settings",
        ),
        (
            lambda home: edit_json(home / "metrics" / RUN / "0.json", lambda c: c["provenance"]["stages"].reverse()),
            "measured on other stages",
        ),
    ],
)
def test_what_is_not_finished_or_not_itself_is_refused(tree: Tree, tmp_path: Path, spoil: Any, reason: str) -> None:
    home = tmp_path / tree.home.name
    shutil.copytree(tree.home, home)
    spoil(home)
    with pytest.raises(UserError, match=reason) as raised:
        finished(tree.plan, RUN, tmp_path)
    assert "fix:" in str(raised.value)


def test_a_run_of_several_seeds_and_an_unknown_one_are_named(tmp_path: Path) -> None:
    several = exported.tree(tmp_path, seeds=[0, 1])
    with pytest.raises(UserError, match="CMAPKD/0, CMAPKD/1"):
        finished(several.plan, RUN, tmp_path)
    assert finished(several.plan, f"{RUN}/0", tmp_path).run.seed == 0
    with pytest.raises(UserError, match="did you mean"):
        finished(several.plan, "CMAPK/0", tmp_path)
    for name in ("w/o ALSN (uniform)/1", "w-o-ALSN-uniform/1"):
        assert resolve(several.plan, name).directory == "w-o-ALSN-uniform/1"
    one = make_plan(experiment_of())
    assert [resolve(one, name).directory for name in ("w/o ALSN (uniform)", "w-o-ALSN-uniform")] == ["w-o-ALSN-uniform/0"] * 2
    assert resolve(one, "Teacher") == resolve(one, "Teacher/0")


def test_the_command_says_what_to_install(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_towers, "PACKAGES", ("onnx", "no_such_package_at_all"))
    arguments = ["export", RUN, "--to", str(tmp_path / "out"), "-e", str(tree.file), "--results", str(tree.home.parent)]
    done = CliRunner().invoke(app, [*arguments, "--format", "onnx"])
    assert isinstance(done.exception, UserError)
    assert "no_such_package_at_all" in str(done.exception)
    assert "cmapkd[export]" in str(done.exception)
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*arguments, "--format", "open_clip", "--licence", "mit"])
    assert done.exit_code == 0, done.output
    assert "license: mit\n" in (tmp_path / "out" / "README.md").read_text()


def test_the_key_export_names_runs_and_is_empty_by_default(tree: Tree) -> None:
    assert tree.experiment.export == ()
    assert exports(tree.plan, "home") == []
    named = make_plan(experiment_of(export=["w/o ALSN (uniform)", RUN], seeds=[0, 1]))
    assert exports(named, "home") == [f"home/export/{run}/{seed}" for run in (RUN, "w-o-ALSN-uniform") for seed in (0, 1)]
    with pytest.raises(UserError, match=r"names no run 'CMAPK'.*did you mean 'CMAPKD'"):
        experiment_of(export=["CMAPK"])


CONVERTIBLE = {
    "quick": {"quick_gelu": True},
    "wide": {"vision_cfg": {"mlp_ratio": 3.0, "head_width": 8}, "text_cfg": {"mlp_ratio": 2.0, "heads": 4}},
    "custom": {"custom_text": True},
    "causal": {"text_cfg": {"no_causal_mask": False, "pool_type": "argmax"}, "vision_cfg": {"pool_type": "tok"}},
}
IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "vision_cfg.pool_type = 'avg'": {"vision_cfg": {"pool_type": "avg"}},
    "vision_cfg.no_ln_pre = True": {"vision_cfg": {"no_ln_pre": True}},
    "vision_cfg.ls_init_value = 0.1": {"vision_cfg": {"ls_init_value": 0.1}},
    "vision_cfg.attentional_pool = True": {"vision_cfg": {"attentional_pool": True}},
    "vision_cfg.qk_norm = True": {"vision_cfg": {"qk_norm": True}},
    "text_cfg.embed_cls = True": {"custom_text": True, "text_cfg": {"embed_cls": True}},
    "text_cfg.no_causal_mask = True": {"text_cfg": {"no_causal_mask": True}},
    "text_cfg.proj_bias = True": {"custom_text": True, "text_cfg": {"proj_bias": True}},
    "text_cfg.norm_kwargs = {'eps': 1e-06}": {"text_cfg": {"norm_kwargs": {"eps": 1e-6}}},
    "init_logit_bias = -10": {"init_logit_bias": -10},
    "another vocabulary": {"text_cfg": {"vocab_size": 64}},
}


def architecture(changes: dict[str, Any]) -> dict[str, Any]:
    made = tiny.architecture(vocab_size=transformers_clip.VOCABULARY)
    for key, value in changes.items():
        made[key] = {**made[key], **value} if isinstance(value, dict) else value
    return {"model_cfg": made, "preprocess_cfg": {"size": tiny.IMAGE}}


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_architectures_with_an_equivalent_convert(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = architecture(CONVERTIBLE[name])
    with seeded(3):
        model = towers.create(f"convert-{name}", config["model_cfg"], "random").eval()
        for parameter in model.parameters():  # biases and norms too are of no special value
            torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim else None
    assert transformers_clip.unsupported(config) == []
    made = transformers_clip.convert(model, config)
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in model.parameters())
    assert transformers_clip.largest_difference(model, made, config) < EXACT
    other = {**config["model_cfg"], "quick_gelu": not config["model_cfg"].get("quick_gelu")}
    read = transformers_clip._configuration
    monkeypatch.setattr(transformers_clip, "_configuration", lambda model, given: read(model, other))
    with pytest.raises(UserError, match="an option was not understood"):
        transformers_clip.convert(model, config)


@pytest.mark.parametrize("option", IMPOSSIBLE)
def test_options_without_an_equivalent_are_named(option: str) -> None:
    config = architecture(IMPOSSIBLE[option])
    assert [found for found in transformers_clip.unsupported(config) if option in found]
    with pytest.raises(UserError, match="CLIPModel of transformers has no equivalent of"):
        transformers_clip.convert(torch.nn.Module(), config)


@given(st.text(st.characters(codec="ascii", exclude_characters="&<>", exclude_categories=["Cc"]), max_size=80))
def test_tokenizers_agree_on_plain_texts(text: str) -> None:
    ours = open_clip.tokenizer.SimpleTokenizer(context_length=20) if not _TOKENIZERS else _TOKENIZERS[0]
    theirs = transformers_clip.tokenizer_for(20) if not _TOKENIZERS else _TOKENIZERS[1]
    _TOKENIZERS[:] = [ours, theirs]
    read = theirs([text], padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(torch.where(read.attention_mask > 0, read.input_ids, 0), ours([text]))


_TOKENIZERS: list[Any] = []


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_pictures_are_prepared_alike(mode: str) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from transformers import CLIPImageProcessor

    about = {"size": (32, 32), "mean": (0.4, 0.5, 0.6), "std": (0.3, 0.2, 0.1), "interpolation": "bicubic", "resize_mode": mode}
    settings = {name: v for name, v in transformers_clip.processor_config(about).items() if name != "image_processor_type"}
    noise = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((97, 64), Image.Resampling.BICUBIC)
    ours = image_transform_v2(PreprocessCfg(**about), is_train=False)(picture)
    theirs = CLIPImageProcessor(**settings)(picture, return_tensors="pt").pixel_values[0]
    assert ours.shape == theirs.shape
    # Both resample integers of 8 bits, in Pillow and in torchvision: one may round up where the other rounds down.
    level = 1 / 255 / torch.tensor(about["std"]).view(3, 1, 1)
    assert float(((ours - theirs).abs() / level).max()) < 1.5
