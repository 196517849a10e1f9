"""Contact sheets: every stratum appears, text fits, the same file on every build."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from cmapkd.data.contact import COLUMNS, FONT_SIZE, MARGIN, SIDE, _in_turn, _wrap, contact_sheet
from cmapkd.data.sample import Question, Sample
from cmapkd.errors import UserError


def make_sample(number: int, stratum: str | None = "simple", size: tuple[int, int] = (32, 32)) -> Sample:
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 9 % 256, 80, 120)).save(buffer, format="PNG")
    question = Question("what is this?", ["owl"] * 9 + ["bird"], "other", number)
    caption = "an owl with a very long description that has to be wrapped over several lines"
    return Sample(f"{number:06d}", buffer.getvalue(), "png", [caption], stratum, None, [question])


def test_sheet_has_a_cell_for_each_sample_and_is_reproducible(tmp_path: Path) -> None:
    samples = [make_sample(number) for number in range(8)]
    contact_sheet(samples, tmp_path / "a.png", title="train")
    contact_sheet(samples, tmp_path / "b.png", title="train")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    image = Image.open(tmp_path / "a.png")
    assert image.width == COLUMNS * (SIDE + MARGIN) + MARGIN
    assert image.height > 2 * SIDE
    # The first picture is enlarged without blurring.
    colours = image.crop((MARGIN + 1, 60, MARGIN + SIDE - 1, 200)).getcolors()
    assert colours is not None and len(colours) == 1


def test_strata_take_turns() -> None:
    samples = [make_sample(number, "simple" if number % 8 else "fine") for number in range(64)]
    chosen = _in_turn(samples, 6)
    assert [sample.stratum for sample in chosen] == ["fine", "simple"] * 3


def test_pictures_of_other_shapes_and_samples_without_extras(tmp_path: Path) -> None:
    plain = make_sample(1, None, (300, 100))
    plain.captions, plain.questions = [], []
    contact_sheet([plain, make_sample(2, size=(20, 90))], tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width == 2 * (SIDE + MARGIN) + MARGIN


def test_text_is_no_wider_than_the_picture() -> None:
    font = ImageFont.load_default(size=FONT_SIZE)
    text = "an extraordinarilyunreasonablylongcompoundwordthatfitsnowhere and an owl in the top left of a purple picture"
    lines = _wrap(text, font)
    assert all(font.getlength(line) <= SIDE for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_no_samples_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no samples"):
        contact_sheet([], tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []
