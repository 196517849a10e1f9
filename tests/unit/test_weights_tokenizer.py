"""The exported tokenizer reads texts as open_clip's, and the limits that the model card names are real."""

from __future__ import annotations

import html.entities
from functools import cache
from pathlib import Path
from typing import Any

import ftfy
import pytest
import regex
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cmapkd.errors import UserError
from cmapkd.export import tokenizer


@cache
def made(context: int = 77) -> Any:
    return tokenizer.tokenizer_for(context)


@pytest.mark.parametrize("context", [77, 8])
def test_hard_texts_are_read_alike(context: int) -> None:
    assert tokenizer.differing(made(context), tokenizer.HARD_TEXTS, context) == []


def test_texts_beyond_the_limits_differ() -> None:
    """Otherwise the card would excuse what is right."""
    assert tokenizer.differing(made(), tokenizer.BEYOND, 77) == list(tokenizer.BEYOND)


# What captions have besides plain letters: quotes, ligatures, widths, entities, white space, controls, emoji, other scripts.
_PIECES = (
    *" .,!?'\"-_/#@&;abcXYZ019éßŸ", "’", "‘", "“", "”", "ʼ", "ﬁ", "ﬂ", "ﬀ", "ﬃ", "ﬆ", "ĳ", "Ａ", "ｚ", "９", "\u3000", "ｶ", "ﾞ",
    "\u00a0", "\u202f", "\u2003", "\u200b", "\u200d", "\ufe0f", "\ufeff", "\u2028", "\t", "\n", "\r\n",
    "\x00", "\x07", "\x1b", "\x7f", "👩", "🐕", "🏽",
    "🇩🇪", "犬", "が", "한", "Σ", "σ", "İ", "e\u0301", "½", "Ⅷ", "²", "™", "…", "—", "&amp;", "&lt;", "&gt;",
    "&quot;", "&#39;", "&#x27;", "&nbsp;", "&eacute;", "&hellip;", "&rsquo;", "&copy", "'s", "'LL", "n't", " the ", " dog",
    "<end_of_text>", "<|endoftext|>", "\u0e01\u0e33", "\u0915\u094d",
)  # fmt: skip


@settings(max_examples=80)
@given(st.lists(st.sampled_from(_PIECES), max_size=25).map("".join))
def test_mixtures_of_what_captions_have_are_read_alike(text: str) -> None:
    assume(ftfy.fix_encoding(text) == text)  # limits, as the card names them
    assume(not ("<" in text and "&" in text))
    assume(not regex.search(r"[^\s\p{L}\p{N}]<end_of_text>", text))
    assert tokenizer.differing(made(), [text], 77) == []


@settings(max_examples=40)
@given(st.sampled_from(sorted(html.entities.html5)), st.sampled_from(["", " ", "x", "."]))
def test_entities_of_html_are_read_alike(name: str, after: str) -> None:
    text = f"a &{name}{after} b"
    assume(name.endswith(";") or after in ("", " "))
    assert tokenizer.differing(made(), [text], 77) == []


def test_an_export_compares_what_it_has_written(tmp_path: Path) -> None:
    made().save_pretrained(tmp_path)
    found = tokenizer.check_written(tmp_path, {"context_length": 77})
    assert found == {"texts": len(tokenizer.HARD_TEXTS), "differing": list(tokenizer.BEYOND)}
    assert tokenizer.check_written(tmp_path, {"hf_tokenizer_name": "other"}) == {}
    content = (tmp_path / "tokenizer.json").read_text()
    assert "‘-‛" in content
    (tmp_path / "tokenizer.json").write_text(content.replace("‘-‛", "‘"))
    with pytest.raises(UserError, match=r"otherwise than open_clip, e\.g\. 'don’t “quoted”"):
        tokenizer.check_written(tmp_path, {"context_length": 77})


def test_classes_of_transformers_read_it_from_a_directory(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made(12).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.differing(read, tokenizer.HARD_TEXTS, 12) == []
    assert (read.bos_token_id, read.eos_token_id, read.pad_token_id, read.model_max_length) == (49406, 49407, 49407, 12)
    assert read("a dog")["input_ids"] == [49406, 320, 1929, 49407]
