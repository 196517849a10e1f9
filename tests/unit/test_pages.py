"""What the pages say of commands, messages and files is so: nothing is run here; `tests/pipeline/test_examples.py` does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from page_examples import MARKS, PAGES, ROOT, Example, examples, inline_commands, parse

TROUBLE = ROOT / "docs" / "troubleshooting.md"
EXAMPLES = [example for page in PAGES for example in examples(page)]
NOT_OURS = {
    "git",
    "cd",
    ".",
    "sed",
    "img2dataset",
    "python",
    "pip",
    "scp",
    "export",
    "module",
    "apptainer",
}  # other programs in examples


def test_every_shell_block_says_what_tests_do_with_it() -> None:
    assert len(EXAMPLES) > 10
    assert [str(example) for example in EXAMPLES if not MARKS.fullmatch(example.mark)] == []
    assert {"run", "after the example"} <= {example.mark for example in EXAMPLES}


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_commands_of_examples_exist_and_take_those_arguments(example: Example) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for words in example.commands():
        if words[0] == "cmapkd":
            parse(words)
        elif words[0] == "make":
            assert {word for word in words[1:] if "=" not in word and not word.startswith("-")} <= targets, words
        elif words[0] == "snakemake":
            named = [Path(words[at + 1]) for at, word in enumerate(words) if word in ("--configfile", "--profile")]
            assert [path for path in named if not (ROOT / path).exists() and path.name != "other.yaml"] == []
        else:
            assert words[0] in NOT_OURS, f"{example}: a test knows nothing of {words[0]}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_sentences_name_exist(page: str) -> None:
    from page_examples import command_of

    for words in inline_commands(page):
        command_of(words)


def test_a_wrong_command_or_option_would_be_noticed() -> None:
    """The tests above rely on it."""
    parse(["cmapkd", "plan", "--costs"])
    for wrong in ("cmapkd plans", "cmapkd plan --cost", "cmapkd data", "cmapkd data build", "cmapkd paper figure"):
        with pytest.raises(BaseException) as caught:
            parse(wrong.split())
        assert not isinstance(caught.value, AssertionError | KeyboardInterrupt)


# ---- messages


def texts_of(folder: Path) -> str:
    """Every text constant of the Python files of a folder, one a line; where a value goes, ``…`` stands."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def messages(section: str) -> list[str]:
    """Messages that are headings of a section of the page (all before it, from the first on, if it is empty)."""
    body = re.split(r"^## ", TROUBLE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    chosen = [part for part in body if part.startswith(section)]
    return [match[1] for part in chosen for match in re.finditer(r"^### `+ ?(.+?) ?`+$", part, flags=re.MULTILINE)]


SETUP = "Set-up"
OURS = ("Configuration", "Data", "Containers", "Training", "Evaluation and paper", "Waiting for SLURM")
OURS += ("The profile of a cluster",)


@pytest.fixture(scope="module")
def our_texts() -> str:
    return texts_of(ROOT / "cmapkd")


@pytest.mark.parametrize("message", [message for section in OURS for message in messages(section)])
def test_messages_are_still_told_by_the_code(message: str, our_texts: str) -> None:
    fragments = [fragment for fragment in message.split("…") if len(fragment.strip(" ();:,")) > 1]
    assert fragments, "a heading of placeholders alone finds nothing"
    pattern = ".*".join(map(re.escape, (fragment.strip() for fragment in fragments)))
    assert re.search(pattern, our_texts), f"no text of the code is like {message!r}"


@pytest.mark.parametrize("message", messages(SETUP))
def test_messages_of_the_set_up_are_those_of_its_script(message: str) -> None:
    assert message.strip(" …") in (ROOT / "scripts" / "setup-environment.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("message", messages("Snakemake"))
def test_messages_of_snakemake_are_those_of_the_version_in_the_lock(message: str) -> None:
    import snakemake
    import snakemake_executor_plugin_slurm as plugin

    modules = [Path(module.__file__).parent for module in (snakemake, plugin)]
    texts = "\n".join(path.read_text(encoding="utf-8") for folder in modules for path in sorted(folder.rglob("*.py")))
    joined = re.sub(r'"\s*\n\s*f?"', "", texts)  # implicit concatenation
    assert all(fragment.strip() in joined for fragment in message.split("…")), message


def test_every_message_has_a_cause_and_a_fix() -> None:
    text = TROUBLE.read_text(encoding="utf-8").partition("\n## SLURM")[0]
    entries = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    assert len(entries) == sum(len(messages(section)) for section in (SETUP, *OURS, "Snakemake")) > 40
    assert [entry.splitlines()[0] for entry in entries if not ("**Cause.**" in entry and "**Fix.**" in entry)] == []
