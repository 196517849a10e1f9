"""A contact sheet of a split for a person to look at: enlarged pictures with stratum, caption, a question and its answer."""

from __future__ import annotations

import io
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cmapkd.data.pixels import flatten
from cmapkd.data.sample import Sample
from cmapkd.errors import UserError
from cmapkd.files import write_atomic

COLUMNS = 6
SIDE = 192  # px of an enlarged picture
MARGIN = 12  # px around a cell
LINE = 15  # px from one line of text to the next
FONT_SIZE = 12  # px
INK, GREY, BLUE = (20, 20, 20), (110, 110, 110), (30, 70, 140)


def contact_sheet(samples: Iterable[Sample], path: str | Path, *, title: str = "", limit: int = 24) -> None:
    """Write the first samples of each stratum, in turn, ``limit`` in all, as a PNG at ``path`` (atomically).

    Raises:
        UserError: there are no samples.
    """
    chosen = _in_turn(samples, limit)
    if not chosen:
        raise UserError(key="contact sheet", value=str(path), reason="the split has no samples", fix="build the data set first")
    font = ImageFont.load_default(size=FONT_SIZE)
    cells = [_text(sample, font) for sample in chosen]
    rows = [range(start, min(start + COLUMNS, len(chosen))) for start in range(0, len(chosen), COLUMNS)]
    heights = [SIDE + MARGIN // 2 + LINE * max(len(cells[i]) for i in row) + MARGIN for row in rows]
    head = 3 * LINE if title else MARGIN
    columns = min(COLUMNS, len(chosen))
    sheet = Image.new("RGB", (columns * (SIDE + MARGIN) + MARGIN, head + sum(heights)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((MARGIN, LINE), title, fill=INK, font=ImageFont.load_default(size=FONT_SIZE + 4))
    top = head
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = MARGIN + column * (SIDE + MARGIN)
            sheet.paste(_enlarged(chosen[i].image), (left, top))
            draw.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline=(200, 200, 200))
            for number, (line, colour) in enumerate(cells[i]):
                draw.text((left, top + SIDE + MARGIN // 2 + number * LINE), line, fill=colour, font=font)
        top += height
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", compress_level=6)
    write_atomic(path, buffer.getvalue())


def _in_turn(samples: Iterable[Sample], limit: int) -> list[Sample]:
    """First sample of each stratum, then the second of each, ...; reads no more samples than it may need."""
    by_stratum: dict[str, list[Sample]] = defaultdict(list)
    for read, sample in enumerate(samples):
        by_stratum[sample.stratum or ""].append(sample)
        # A split with one stratum fills the sheet by itself; with several the look-ahead lets the rarer ones appear too.
        if read >= 4 * limit:
            break
    most = max(map(len, by_stratum.values()), default=0)
    turns = [by_stratum[name][turn] for turn in range(most) for name in sorted(by_stratum) if turn < len(by_stratum[name])]
    return turns[:limit]


def _enlarged(encoded: bytes) -> Image.Image:
    image = flatten(Image.open(io.BytesIO(encoded))).convert("RGB")
    # Small pictures keep their pixels visible: that is what the model sees.
    small = max(image.size) <= SIDE // 2
    fit = image.resize(
        (max(1, round(image.width * SIDE / max(image.size))), max(1, round(image.height * SIDE / max(image.size)))),
        Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS,
    )
    square = Image.new("RGB", (SIDE, SIDE), (255, 255, 255))
    square.paste(fit, ((SIDE - fit.width) // 2, (SIDE - fit.height) // 2))
    return square


def _text(sample: Sample, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[tuple[str, tuple[int, int, int]]]:
    lines = [(_shortened(f"{sample.key} {sample.stratum or ''}".strip(), font), GREY)]
    lines += [(line, INK) for line in _wrap(sample.captions[0] if sample.captions else "", font)]
    if sample.questions:
        question = sample.questions[0]
        answer, count = Counter(question.answers).most_common(1)[0]
        asked = f"{question.question} {answer} ({count}/{len(question.answers)})"
        lines += [(line, BLUE) for line in _wrap(asked, font)]
    return lines


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The end of a text, as much as fits under a picture: keys of one folder start alike."""
    shown = text
    while font.getlength(shown) > SIDE:
        text = text[1:]
        shown = f"...{text}"
    return shown


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines of ``text`` that fit under a picture."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= SIDE:
            lines[-1] += f" {word}"
        else:
            lines += textwrap.wrap(word, 28) if font.getlength(word) > SIDE else [word]
    return lines
