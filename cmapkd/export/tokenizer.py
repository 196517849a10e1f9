"""CLIP's tokenizer as ``tokenizer.json``, which reads texts as open_clip's does, and a comparison of the two on hard texts.

open_clip cleans a text before it splits it: ``ftfy`` (curly quotes, ligatures, letters of other widths, control characters,
NFC), HTML entities, white space, small letters. The class ``CLIPTokenizer`` of ``transformers`` does the last two of these. So
the file has a normalizer that does the others, character by character, and is read by the general class of ``transformers``.

What no such normalizer can do is known, and stands in the model card: ``LIMITS``.
"""

from __future__ import annotations

import html
import html.entities
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cmapkd.errors import UserError

START, END = "<start_of_text>", "<end_of_text>"  # as open_clip writes them, so that the same texts hold them
LIMITS = (
    "text in a wrong encoding (`cafÃ©`), which open_clip repairs (ftfy)",
    "character references by number of rarer characters (`&#128512;`), and entities that hold another one without its `;`",
    "entities of curly quotes, ligatures or letters of another width in a text that also has a `<`",
    "entities in capitals that only ftfy knows (`&EACUTE;`)",
    "`<start_of_text>` and `<end_of_text>` in capitals, or right behind a punctuation mark",
    "characters newer than Unicode's version in one of the two programs",
)
# Texts on which both are compared at each export. Those of each limit stand in `BEYOND`.
HARD_TEXTS = (
    "a photo of a dog", "A\n'll 11p223RF☆ho!!to?'d'd''d of a cat", "résumé re\u0301sume\u0301", "a_b __init__ snake_case",
    "  two   spaces\t tab\r\nline ", "it's the dog's 2nd birthday, don't you'll we've I'D", "犬が走る 강아지 собака",
    "👩\u200d👩\u200d👧 🐕 🇩🇪 ❤\ufe0f", "ﬁne ﬀ ﬄ Ⅷ ½ ² ĳ ŉ", "don’t “quoted” ‘single’ ‚low‛ „low‟ ʼ",
    "&amp; &lt;b&gt; &amp;lt; &amp;amp; &eacute; &Eacute; &hellip;", "&quot;quoted&quot; it&#39;s it&#x27;s &#8217; &#160;",
    "&rsquo;s AT&T &copy 2020 &nbsp;", "x" * 300, "word " * 120, "", "!", "!!", "a<|endoftext|>b <|startoftext|>",
    "<start_of_text> x <end_of_text>", "\u200bzero \u200djoiner \ufeffmark", "Straße İstanbul ΣΊΣΥΦΟΣ",
    "a\u00a0no\u202fbreak\u3000wide\u2028line\u2029paragraph\u0085next", "3.14 1,000 50% ½ ١٢", "ç c\u0327 한",
    "\x00nul \x07bell \x1b[31mred\x1b[0m \x7f", "—dash… –en •", "#hashtag @user http://a.b/c?d=e&f=g",
    "ＦＵＬＬ ｗｉｄｔｈ １２３ ｶﾞ ￥", "\x91c1\x92 \x85 \x96", "\x0b\x0c vertical", "'ſ ſt",
)  # fmt: skip
BEYOND = ("cafÃ© donâ€™t", "&#128512;", "<b>don&rsquo;t</b>", "!<end_of_text>", "&EACUTE;", "<END_OF_TEXT>")
_SPACE = r"[\s\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]+"
_WORDS = r"'[sſ]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# Character references by number that are read: of Latin letters and signs, punctuation, and some that captions have.
_NUMBERED = (*range(9, 11), 13, *range(32, 384), *range(0x2010, 0x2045), 0x20AC, 0x2122, *range(0x2190, 0x2194), 0x2605, 0x2665)


def tokenizer_for(context_length: int) -> Any:
    """CLIP's tokenizer in the form of ``transformers``, made from the merges that open_clip brings along."""
    from open_clip.tokenizer import SimpleTokenizer
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    own = SimpleTokenizer()
    model = models.BPE(own.encoder, list(own.bpe_ranks), unk_token=END, continuing_subword_prefix="", end_of_word_suffix="</w>")
    made = Tokenizer(model)
    made.normalizer = _normalizer()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (START, END)])
    start, end = (own.encoder[token] for token in (START, END))
    made.post_processor = processors.RobertaProcessing((END, end), (START, start), False, False)
    tokens = {name: AddedToken(END, normalized=False, special=True) for name in ("unk_token", "eos_token", "pad_token")}
    first = AddedToken(START, normalized=False, special=True)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=first, **tokens, model_max_length=context_length)


@cache
def _normalizer() -> Any:
    """What open_clip does to a text before it splits it, in the order in which it does."""
    from ftfy import chardata
    from tokenizers import Regex, normalizers

    steps = [normalizers.Replace(Regex(r"&(?:amp;|AMP;|#0*38;|#[xX]0*26;)+"), "&")]
    steps += [normalizers.Replace(name, value) for name, value in _entities()]
    # A reference may lack its semicolon; then no digit may follow, or it is of another character.
    for number in _NUMBERED:
        forms = Regex(rf"&#(?:0*{number}(?:;|(?![0-9;]))|[xX]0*(?i:{number:x})(?:;|(?![0-9a-fA-F;])))")
        steps.append(normalizers.Replace(forms, html.unescape(f"&#{number};")))
    steps += [normalizers.Replace(name, value) for name, value in _legacy_entities()]
    controls = {chr(code): bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
    steps += [normalizers.Replace(code, letter) for code, letter in controls.items() if letter]
    table: dict[int, str] = {**chardata.LIGATURES, **chardata.WIDTH_MAP}
    steps += [normalizers.Replace(chr(code), letters) for code, letters in table.items()]
    removed = "".join(rf"\x{{{code:x}}}" for code in sorted(chardata.CONTROL_CHARS))
    replaced = {
        chardata.SINGLE_QUOTE_RE.pattern: "'",
        chardata.DOUBLE_QUOTE_RE.pattern: '"',
        r"\x1b\[[0-9;]*[a-zA-Z]": "",  # colors of a terminal
        f"[{removed}]": "",
    }
    steps += [normalizers.Replace(Regex(pattern), value) for pattern, value in replaced.items()]
    return normalizers.Sequence(
        [
            *steps,
            normalizers.NFC(),
            normalizers.Replace(Regex(_SPACE), " "),
            normalizers.Replace(Regex(r"(?<=\p{L})Σ(?!\p{L})"), "ς"),  # as Python writes the last one of a word small
            normalizers.Lowercase(),
        ]
    )


def _entities() -> list[tuple[str, str]]:
    """Entities of HTML with their semicolon, but for ``&``, which comes first."""
    known = ((f"&{name}", value) for name, value in html.entities.html5.items() if name.endswith(";"))
    return [(name, value) for name, value in known if name not in ("&amp;", "&AMP;")]


def _legacy_entities() -> list[tuple[str, str]]:
    """Entities that HTML also reads without a semicolon; a longer name comes first."""
    names = sorted((name for name in html.entities.html5 if not name.endswith(";")), key=len, reverse=True)
    return [(f"&{name}", html.entities.html5[name]) for name in names]


def differing(tokenizer: Any, texts: Sequence[str], context_length: int) -> list[str]:
    """Those of ``texts`` that ``tokenizer`` (of ``transformers``) does not read as open_clip does."""
    from open_clip.tokenizer import SimpleTokenizer

    own = SimpleTokenizer(context_length=context_length)
    found = []
    for text in texts:
        ours = own(text)[0].tolist()
        theirs = tokenizer(text, truncation=True, max_length=context_length)["input_ids"]
        if ours[: len(theirs)] != theirs or any(ours[len(theirs) :]):
            found.append(text)
    return found


def check_written(folder: Path, text: Mapping[str, Any]) -> dict[str, Any]:
    """Compare every ``tokenizer.json`` below ``folder`` with open_clip's on the hard texts, as its users will read it.

    Args:
        text: ``text_cfg`` of the model; only CLIP's own tokenizer is made here, and compared.

    Returns:
        ``texts``: how many were compared and agree; ``differing``: those beyond the limits that do not. Empty without a file.

    Raises:
        UserError: a text that must agree does not: another version of a package splits texts otherwise.
    """
    if text.get("hf_tokenizer_name"):
        return {}
    from transformers import PreTrainedTokenizerFast

    context, found = int(text.get("context_length", 77)), {}
    for file in sorted(folder.rglob("tokenizer.json")):
        reader = PreTrainedTokenizerFast.from_pretrained(file.parent)
        if wrong := differing(reader, HARD_TEXTS, context):
            reason = f"{file.name} reads {len(wrong)} of {len(HARD_TEXTS)} texts otherwise than open_clip, e.g. {wrong[0]!r}"
            fix = "install `ftfy`, `open_clip_torch` and `tokenizers` in the versions of requirements.lock, and export again"
            raise UserError(key="format", value="hf", reason=reason, fix=fix)
        found = {"texts": len(HARD_TEXTS), "differing": differing(reader, BEYOND, context)}
    return found
