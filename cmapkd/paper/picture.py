"""A page of a PDF as PNG, for places that show no PDF: the report and web pages. The same bytes for the same page."""

from __future__ import annotations

import io
from pathlib import Path

WIDTH = 1464  # [px] twelve to the millimetre of LNCS's text width: sharp on a screen, some 100 kB
SMALLEST = 400  # [px] below it a picture is not worth drawing again
LARGEST = 700_000  # [bytes] a larger picture is drawn again with fewer pixels, so that it fits a page of the report


def picture_of(pdf: Path, *, width: int = WIDTH, page: int = 0, largest: int = LARGEST) -> bytes:
    """A page of ``pdf`` as PNG on white, ``width`` pixels wide, or fewer where the file would be larger than ``largest``.

    Raises:
        ValueError: the file is no PDF or has no such page.
    """
    import pypdfium2  # Google's PDFium in a wheel: needs no program of the system

    try:
        document = pypdfium2.PdfDocument(pdf)
        try:
            sheet = document[page]
            while True:
                image = sheet.render(scale=width / sheet.get_width()).to_pil().convert("RGB")
                buffer = io.BytesIO()
                image.save(buffer, "png", optimize=True)
                if buffer.tell() <= largest or width < SMALLEST:
                    return buffer.getvalue()
                width = width * 2 // 3
        finally:
            document.close()
    except (pypdfium2.PdfiumError, IndexError) as error:
        raise ValueError(f"{pdf}: page {page + 1} cannot be drawn: {error}") from error
