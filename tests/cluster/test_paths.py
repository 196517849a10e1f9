"""Paths in containers: the data rules of config/paper.yaml in an image, its data below the `~/data` that the file names.

The image is a thin one, made in a moment: it has no program of its own, and takes those of this machine by bind mounts. What is
tried is which folders the jobs see, and that is the same for any image. Nothing else of this machine is in it, `/tmp` included.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cmapkd.config import load_experiment
from tests.cluster import apptainer
from tests.cluster.slurm import Unavailable
from tests.pipeline.conftest import REPOSITORY, Checkout, copy_repository
from tests.pipeline.paper_fixtures import data

pytestmark = pytest.mark.cluster
FOLDERS = ("usr", "etc", "dev", "proc", "sys", "tmp", "var/tmp", "root", "home", "opt", "mnt", "run")
LOCAL = [
    "--profile", "workflow/profiles/local", "--cores", "2", "--software-deployment-method", "apptainer",
    "--apptainer-args=--cleanenv",
]  # fmt: skip


@pytest.fixture(scope="module")
def thin_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of empty folders, in the file system layout of Debian."""
    try:
        apptainer.install()
    except Unavailable as reason:
        pytest.skip(str(reason))
    folder = tmp_path_factory.mktemp("thin")
    for name in FOLDERS:
        (folder / "root" / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (folder / "root" / name).symlink_to(f"usr/{name}")
    for name in ("hosts", "resolv.conf", "passwd", "group", "localtime"):
        (folder / "root/etc" / name).touch()
    command = ["apptainer", "build", str(folder / "thin.sif"), str(folder / "root")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "thin.sif"


class InImage(Checkout):
    """A checkout whose jobs run in the thin image, for a user with a home folder elsewhere."""

    user: Path

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in super().environment.items() if not name.startswith(("CMAPKD_", "XDG_", "HF_"))}
        programs = dict.fromkeys(("/usr", sys.prefix, sys.base_prefix, str(Path(sys.prefix).resolve())))
        (self.root / ".tmp").mkdir(exist_ok=True)
        return {
            **kept,
            "HOME": str(self.user),
            "APPTAINER_NO_MOUNT": "tmp",  # where the tests' folders are
            "APPTAINER_BIND": ",".join(programs),
            "APPTAINERENV_PREPEND_PATH": str(Path(sys.executable).parent),
            "APPTAINERENV_TMPDIR": str(self.root / ".tmp"),
            "APPTAINERENV_LC_ALL": "C.UTF-8",
        }


@pytest.fixture
def made(tmp_path: Path) -> InImage:
    """A checkout in one folder; in another one a home folder with the data, parts of which are links to a third."""
    checkout = InImage(copy_repository(tmp_path / "check out ä").root)
    checkout.user, store = tmp_path / "home" / "ein é", tmp_path / "store"
    data(checkout.user / "data")
    store.mkdir()
    for name in ("flickr30k", "coco/annotations"):  # a folder of a data set, and one in it
        place = checkout.user / "data" / name
        shutil.move(place, store / name.replace("/", "-"))
        place.symlink_to(store / name.replace("/", "-"))
    return checkout


def test_the_data_rules_of_the_paper_run_in_an_image(made: InImage, thin_image: Path) -> None:
    experiment = load_experiment(REPOSITORY / "config/paper.yaml")
    manifests = [f"results/paper/data/{name}/manifest.json" for name in experiment.datasets]
    arguments = [*LOCAL, "--configfile", "config/paper.yaml", "--config", f"image={thin_image}", "--", *manifests]
    done = made.run("snakemake", *arguments, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    assert "Note: image" not in said, "an image without labels is of no known lock"
    home = made.root / "results/paper"
    for name in manifests:
        splits = json.loads((made.root / name).read_text())["splits"]
        assert splits, name
        assert all(split["samples"] for split in splits.values()), name
    assert set(json.loads((home / "data/overlap.json").read_text())["removed"]) >= {"coco/train"}
    # Nothing that was written names a folder of this machine.
    written = [path for path in home.rglob("*") if path.suffix in (".json", ".yaml", ".txt", ".log")]
    assert "root: ~/data/coco\n" in (home / "experiment.yaml").read_text()
    for path in written:
        assert str(made.user) not in path.read_text(), path
    assert len(written) > 3 * len(manifests)


def test_a_folder_that_is_not_there_is_named_before_anything_starts(made: InImage, thin_image: Path) -> None:
    (made.user / "data/flickr30k").unlink()
    shutil.rmtree(made.user / "data/vqa")
    arguments = [*LOCAL, "--configfile", "config/paper.yaml", "--config", f"image={thin_image}", "--"]
    done = made.run("snakemake", *arguments, "results/paper/data/cc3m/manifest.json", check=False)
    said = done.stdout + done.stderr
    assert done.returncode
    assert "datasets.flickr30k.root = '~/data/flickr30k'" in said
    assert "datasets.vqa.root = '~/data/vqa'" in said
    assert "Fetching" not in said
    assert "Traceback" not in said


def test_caches_and_certificates_are_in_the_image(made: InImage, thin_image: Path, tmp_path: Path) -> None:
    """What a variable names is there, under the same name, and can be written to."""
    certificate = tmp_path / "site.pem"
    certificate.write_text("certificate")
    program = (
        "import os, subprocess\nfrom cmapkd.config import load_experiment\nfrom cmapkd.start import enter_image\n"
        "enter_image(os.environ['IMAGE'], 'results/smoke', ['.'], load_experiment('config/smoke.yaml'))\n"
        "inside = 'cat $SSL_CERT_FILE && echo x > \"$HF_HOME/x\" && echo x > $CMAPKD_CACHE/x && echo $CMAPKD_HOME'\n"
        "command = ['apptainer', 'exec', '--home', os.getcwd(), '--cleanenv', os.environ['IMAGE'], 'sh', '-c', inside]\n"
        "raise SystemExit(subprocess.run(command).returncode)\n"
    )
    environment = {
        **made.environment,
        "IMAGE": str(thin_image),
        "SSL_CERT_FILE": str(certificate),
        "HF_HOME": "~/hf",
        "CMAPKD_CACHE": str(tmp_path / "caches"),
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=made.root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"certificate{made.user}\n"
    assert (made.user / "hf/x").is_file()
    assert (tmp_path / "caches/x").is_file()
