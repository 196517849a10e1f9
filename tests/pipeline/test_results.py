"""What a finished experiment leaves: numbers with parents, a student anyone can load, a paper, clear refusals."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from cmapkd.files import sha256_of
from tests.pipeline.conftest import Checkout, copy_repository


def test_every_number_has_parents_that_are_what_they_were(finished: Checkout) -> None:
    counted = 0
    for table in ("table2", "table3", "table4", "table5"):
        content = json.loads((finished.home / "paper" / f"{table}.json").read_text())
        for cells in content["cells"].values():
            for cell in cells.values():
                assert cell["parents"]
                for parent in cell["parents"]:
                    assert sha256_of(finished.home / parent["file"]) == parent["sha256"]
                counted += 1
    assert counted > 60


def test_trace_leads_from_a_number_to_its_training(finished: Checkout) -> None:
    told = finished.cmapkd("trace", "table2", "CMAPKD", "i2t_r1").stdout
    value = json.loads((finished.home / "metrics/CMAPKD/0.json").read_text())["metrics"]["retrieval"][
        "emoji_scenes/test_render"
    ]
    assert str(value["all"]["i2t_r1"]) in told
    assert "configured, not measured" in finished.cmapkd("trace", "table1", "progressive/coarse", "lr").stdout
    for word in ("metrics/CMAPKD/0.json", "seed 0", "commit", "coarse-", "fine-", "alsn-", "snakemake"):
        assert word in told


def test_macros_cover_every_cell(finished: Checkout) -> None:
    numbers = (finished.home / "paper/numbers.tex").read_text()
    for name in ("table1", "table2", "table3", "table4", "table5"):
        for row in json.loads((finished.home / "paper" / f"{name}.json").read_text())["cells"]:
            assert f"{name}" in numbers
            assert row in numbers


def test_the_student_loads_in_open_clip_without_this_package(finished: Checkout, tmp_path: Path) -> None:
    student = finished.home / "runs/CMAPKD/0/student"
    program = tmp_path / "load.py"
    program.write_text(
        "import sys, numpy, torch, open_clip\n"
        "model, _, preprocess = open_clip.create_model_and_transforms('local-dir:' + sys.argv[1])\n"
        "tokens = open_clip.get_tokenizer('local-dir:' + sys.argv[1])(['a red apple', 'two dogs'])\n"
        "torch.manual_seed(0)\n"
        "with torch.no_grad():\n"
        "    image = model.eval().encode_image(torch.randn(2, 3, 32, 32), normalize=True)\n"
        "    text = model.encode_text(tokens, normalize=True)\n"
        "assert not any(name.split('.')[0] == 'cmapkd' for name in sys.modules)\n"
        "numpy.savez(sys.argv[2], image=image, text=text)\n"
    )
    done = finished.run(sys.executable, str(program), str(student), str(tmp_path / "out.npz"))
    assert done.returncode == 0
    import torch

    from cmapkd.models import towers

    model = towers.Tapped(towers.load(student)).eval()
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours = model(images, towers.tokenizer_of(f"local-dir:{student}")(["a red apple", "two dogs"]))
    theirs = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(ours.image.numpy(), theirs["image"], atol=1e-6)
    np.testing.assert_allclose(ours.text.numpy(), theirs["text"], atol=1e-6)


def test_two_builds_of_the_data_are_byte_identical(finished: Checkout, tmp_path: Path) -> None:
    finished.cmapkd("data", "build", "emoji_scenes", "--results", str(tmp_path))
    first, second = finished.home / "data/emoji_scenes", tmp_path / "smoke/data/emoji_scenes"
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    assert any(name.suffix == ".tar" for name in names)
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def zero_experiment(checkout: Checkout, zero: int) -> Path:
    """The smoke experiment in a stage of ZeRO, which changes no address and so none of its results."""
    settings = json.loads((checkout.root / "config/deepspeed/fp32.json").read_text())
    settings["zero_optimization"]["stage"] = zero
    (checkout.root / f"config/deepspeed/fp32-zero{zero}.json").write_text(json.dumps(settings))
    path = checkout.root / f"config/zero{zero}.yaml"
    path.write_text(f"extends: smoke.yaml\nname: smoke\ntraining: {{deepspeed: fp32-zero{zero}}}\n")
    return path


@pytest.mark.parametrize("zero", range(4))
def test_two_ranks_train_what_one_rank_trains(zero: int, finished: Checkout, tmp_path: Path) -> None:
    """The same stage by torchrun on two gloo ranks: DeepSpeed, gathers and data cuts together, in every stage of ZeRO."""
    from safetensors.numpy import load_file

    experiment = zero_experiment(finished, zero)
    stage = next(path for path in (finished.home / "stages").iterdir() if path.name.startswith("coarse-"))
    results = tmp_path / "results"
    shutil.copytree(finished.home, results / "smoke", ignore=shutil.ignore_patterns("coarse-*", "paper", "contact"))
    options = ["--ranks", "2", "--threads", "1", "--results", str(results), "--experiment", str(experiment)]
    finished.run(sys.executable, "-m", "cmapkd", "train", stage.name, *options)
    again = results / "smoke/stages" / stage.name
    assert json.loads((again / "stage.json").read_text())["summary"]["cut"] == {"ranks": 2, "zero": zero, "accumulation": 1}
    for name in ("model/open_clip_model.safetensors", "objective.safetensors"):
        one, two = load_file(stage / name), load_file(again / name)
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_allclose(two[key], one[key], atol=1e-4, err_msg=f"{name}: {key}")


def test_a_paper_is_typeset_where_latex_is(finished: Checkout) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex on this machine")
    from pypdf import PdfReader

    text = "".join(page.extract_text() for page in PdfReader(finished.home / "paper/paper.pdf").pages)
    for word in ("CMAPKD", "Scratch", "Teacher", "Table 1", "Table 2", "Table 3", "Table 4", "Table 5", "Fig", "Algorithm 2"):
        assert word in text


def test_the_manuscript_is_typeset_where_lncs_is(finished: Checkout) -> None:
    from cmapkd.paper.manuscript import missing_for_manuscript

    if missing := missing_for_manuscript():
        pytest.skip(f"no {', '.join(missing)} on this machine")
    from pypdf import PdfReader

    text = "".join(page.extract_text() for page in PdfReader(finished.home / "paper/manuscript.pdf").pages)
    assert "??" not in text
    for word in ("Related Work", "Limitations", "References", "Fig.1.", "Fig.2.", "Fig.3.", "Algorithm 1", "Table A1"):
        assert word in text


def test_misspelt_keys_are_refused_before_anything_starts(tmp_path: Path) -> None:
    checkout = copy_repository(tmp_path / "checkout")
    path = checkout.root / "config/smoke.yaml"
    path.write_text(path.read_text().replace("global_batch: 32", "global_bach: 32").replace("method: kd", "method: kdd"))
    told = checkout.snakemake("--dry-run", check=False)
    assert "training.global_bach" in told
    assert "did you mean 'global_batch'?" in told
    assert "did you mean 'kd'?" in told
    assert "Traceback" not in told
    assert not (checkout.root / "results").exists()


def test_effective_configuration_is_kept_with_the_results(finished: Checkout) -> None:
    from cmapkd.config import load_experiment

    kept = load_experiment(finished.home / "experiment.yaml")
    assert kept == load_experiment(finished.root / "config/smoke.yaml")


def test_results_name_no_folder_of_the_machine(finished: Checkout, tmp_path: Path) -> None:
    """What is written into results, and what is kept of them in a repository, is as useful on another machine."""
    finished.cmapkd("paper", "keep", str(tmp_path / "kept"))
    home, environment = str(Path.home()), sys.prefix
    folders = {str(finished.root), environment, *([home] if len(Path(home).parts) > 2 else [])}
    texts = [path for folder in (finished.home, tmp_path / "kept") for path in folder.rglob("*") if path.is_file()]
    assert len(texts) > 100
    found = {str(path): name for path in texts for name in folders if name.encode() in path.read_bytes()}
    assert found == {}


def test_a_teacher_from_a_checkpoint_on_disk(finished: Checkout, tmp_path: Path) -> None:
    """`pretrained: <folder>` instead of `train`: what distils from it is planned behind it and reads its weights."""
    folder = finished.home / "runs/Teacher/0/student"
    experiment = tmp_path / "pretrained.yaml"
    text = (finished.root / "config/smoke.yaml").read_text().replace("name: smoke", "name: pretrained", 1)
    experiment.write_text(text.replace("train: {epochs: 1, lr: 1.0e-3}", f"pretrained: {json.dumps(str(folder))}", 1))
    results = tmp_path / "results"
    shutil.copytree(finished.home / "data", results / "pretrained/data")
    options = ["--experiment", str(experiment), "--results", str(results)]
    plan = finished.run(sys.executable, "-m", "cmapkd", "plan", *options).stdout.splitlines()
    addresses = {line.split(maxsplit=2)[2]: line.split()[1] for line in plan[:-1]}
    for label in ("teacher (pretrained)", "KD, seed 0: train"):
        finished.run(sys.executable, "-m", "cmapkd", "train", addresses[label], "--threads", "1", *options)
    weights = results / "pretrained/stages" / addresses["teacher (pretrained)"] / "model/open_clip_model.safetensors"
    assert sha256_of(weights) == sha256_of(folder / "open_clip_model.safetensors")
    summary = json.loads((results / "pretrained/stages" / addresses["KD, seed 0: train"] / "stage.json").read_text())["summary"]
    assert summary["last"]["distillation"] > 0
