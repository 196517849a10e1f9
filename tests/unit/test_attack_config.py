"""Experiment files of strangers: no code, no key twice, no text as a format, and an explanation for everything else."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from config_examples import CONFIG, experiment
from typer.testing import CliRunner

from cmapkd.cli import app
from cmapkd.config import load_experiment, parse_experiment
from cmapkd.errors import UserError
from cmapkd.plain_yaml import parse_yaml, read_yaml
from cmapkd.plan import make_plan

SMOKE = (CONFIG / "smoke.yaml").read_text()


def refused(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    with pytest.raises(UserError) as error:
        load_experiment(path)
    assert error.value.fix
    return str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        f"__use_yte__: true\n{SMOKE}",
        f"__use_yte__: false\n{SMOKE}",
        f"{SMOKE}\n'__use_yte__': yes\n",
        f"{SMOKE}\n? __definitions__\n: [import os]\n",
        f"{SMOKE}\n__variables__: {{a: 1}}\n",
        f"{SMOKE}\n<<: {{__use_yte__: true}}\n",
        '{"__use_yte__": true, "name": "x"}',
    ],
)
def test_a_template_is_refused_by_name(tmp_path: Path, text: str) -> None:
    assert "template engine YTE" in refused(tmp_path / "x.yaml", text)


@pytest.mark.parametrize(
    "text",
    [
        SMOKE.replace("  Scratch: {method: scratch}", "  Scratch: {method: scratch}\n  Scratch: {method: kd}"),
        f'{SMOKE}\n"name": other\n',
        SMOKE.replace("  Scratch: {method: scratch}", "  1: {method: scratch}\n  '1': {method: kd}"),
        SMOKE.replace("  Scratch: {method: scratch}", "  1: {method: scratch}\n  0x1: {method: kd}"),
        SMOKE.replace("  Scratch: {method: scratch}", "  1: {method: scratch}\n  1.0: {method: kd}"),
        '{"name": "a", "runs": {"KD": {}, "KD": {}}}',
    ],
)
def test_a_key_given_twice_is_refused(tmp_path: Path, text: str) -> None:
    assert "is given twice" in refused(tmp_path / "x.yaml", text)


TAGS = [
    "timestamp",
    "map",
    "set",
    "omap",
    "pairs",
    "seq",
    "int",
    "float",
    "bool",
    "null",
    "binary",
    "str",
    "merge",
    "value",
    "python/name:os.system",
]


@pytest.mark.parametrize("tag", [*TAGS, "python/object/apply:os.system", "unknown"])
@pytest.mark.parametrize("value", ["x", "[x]", "{x: y}", "''"])
def test_a_tag_never_ends_in_a_traceback(tmp_path: Path, tag: str, value: str) -> None:
    for key in ("seeds: [0]", "name: smoke", "runs:"):
        text = SMOKE.replace(key, f"{key.partition(':')[0]}: !!{tag} {value}" + ("\nrest:" if key == "runs:" else ""))
        (tmp_path / "x.yaml").write_text(text)
        with contextlib.suppress(UserError):
            assert load_experiment(tmp_path / "x.yaml").name == "x", text  # `name: !!str x` is fine


HUGE = {
    "deep": "a: " + "[" * 100_000,
    "deep map": "a: " + "{a: " * 5_000,
    "digits": "seeds: [" + "1" * 5_000 + "]",
    "float": "teacher: {train: {epochs: 1e400, lr: .inf}}",
    "two documents": f"{SMOKE}---\n{SMOKE}",
    "a date": f"{SMOKE}\nnote: 2020-99-99\n",
    "NUL": f"{SMOKE}\0",
    "UTF-16": SMOKE.encode("utf-16"),
    "Latin-1": SMOKE.encode() + b"# \xff\n",
    "empty": "",
    "a list": "[1, 2]",
    "a text": "hello",
    "a comment": "# nothing",
    "a loop": "a: &a [*a]",
    "a surrogate": 'name: "\\ud800"',
    "JSON with NaN": '{"name": "a", "seeds": [NaN]}',
}


@pytest.mark.parametrize("name", HUGE)
def test_what_is_no_experiment_is_explained(tmp_path: Path, name: str) -> None:
    assert str(tmp_path) in refused(tmp_path / "x.yaml", HUGE[name])


def test_a_byte_order_mark_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbf" + SMOKE.encode())
    assert load_experiment(tmp_path / "x.yaml").name == "smoke"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(UserError):
            read_yaml(path)
    for path in (tmp_path / "loop", tmp_path / "missing", tmp_path / ("n" * 5_000)):
        with pytest.raises(UserError):
            load_experiment(path)


@pytest.mark.parametrize("value", ["[", "!!timestamp x", "{a: 1, a: 2}", "!!python/name:os.system", "&a [*a]", "\0", "?"])
def test_a_change_is_read_in_the_same_way(value: str) -> None:
    done = CliRunner().invoke(app, ["plan", "-e", str(CONFIG / "smoke.yaml"), "--change", f"training.global_batch={value}"])
    assert isinstance(done.exception, UserError)


FORMATS = ["{x}", "{", "}", "{0}", "{error.args}", "{error.__traceback__.tb_frame.f_globals}", "{}", "%s", "%(x)s", "{{x}}"]


@pytest.mark.parametrize("name", [*FORMATS, "[red]x", r"\g<1>", "$HOME", "${HF_TOKEN}", "<<x>>", "*", "a.+(b"])
def test_a_name_is_never_a_format(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(UserError) as error:
        parse_experiment(experiment(runs__KD={"base": name}, runs={name: {"method": "kd"}}, paper__weights_run="qqqq"))
    assert name in str(error.value).replace("\\\\", "\\") and "hf_secret" not in str(error.value)
    accepted = parse_experiment(experiment(runs={name: {"method": "kd"}, "CMAPKD": {"method": "cmapkd"}}))
    assert make_plan(accepted).runs[0].name == name


def test_a_long_chain_of_bases_and_its_circle() -> None:
    chain: dict[str, Any] = {f"r{n}": {"base": f"r{n + 1}"} for n in range(3_000)}
    runs = parse_experiment(experiment(runs={**chain, "r3000": {"method": "kd", "weight": 3.0}})).runs
    assert runs["r0"] == runs["r3000"]
    with pytest.raises(UserError, match="circle"):
        parse_experiment(experiment(runs={**chain, "r3000": {"base": "r0"}}))


NAMES = {
    "模型": "U\\+6A21", "модель": "U\\+043C", "نموذج": "U\\+0646", "😀": "U\\+1F600", "a\u200bb": "invisible",
    "a\u202eb": "invisible",
    "e\u0301": "normal form NFC", "a\x07b": "invisible", "a\nb": "invisible", "CON": "device", "nul.txt": "device",
    " a": "space", "a ": "space", "x" * 101: "101 characters", "": "empty",
    "a\ufeff": "invisible", "ﷺ": "U\\+FDFA", "ħ": "U\\+0127",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_paper_or_disk_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=NAMES[name]):
        parse_experiment(experiment(runs={name: {"method": "kd"}, "CMAPKD": {"method": "cmapkd"}}))


@pytest.mark.parametrize("names", [("KD", "kd"), ("a b", "a-b"), ("é", "e"), ("teacher", "x"), ("α", "alpha")])
def test_names_that_share_a_folder_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(UserError, match="directory name"):
        make_plan(parse_experiment(experiment(runs={name: {"method": "kd"} for name in names})))


def test_titles_and_labels_are_checked_and_data_sets_may_not_differ_in_case() -> None:
    for changes in ({"paper__title": "数据"}, {"paper__labels": {"pictures/test_render": "a\u202eb"}}, {"paper__title": " "}):
        with pytest.raises(UserError, match=r"paper\.(title|labels)"):
            parse_experiment(experiment(**changes))
    with pytest.raises(UserError, match="case alone"):
        parse_experiment(experiment(datasets__Pictures={"source": "emoji_scenes"}))
    with pytest.raises(UserError, match="device"):
        parse_experiment(experiment(name="con"))


def test_json_is_read_as_json() -> None:
    assert parse_yaml('{"lr": 1e-3}', "x") == {"lr": 0.001}
    assert parse_yaml("{lr: 0.1}", "x") == {"lr": 0.1}


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize("name", ["$(touch evil)", "`touch evil`", '"; touch evil; "', "x; touch evil"])
def test_make_takes_no_command_from_a_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f'title: "a\nname: {name}\n"\nname: {name}\n')
    makefile = CONFIG.parent / "Makefile"
    done = subprocess.run(
        ["make", "-s", "-f", str(makefile), "help", "CONFIG=x.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "REPORT=results//report.html" in done.stdout
    assert not (tmp_path / "evil").exists()
