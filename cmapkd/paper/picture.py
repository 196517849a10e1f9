"""A page of a PDF as PNG, for places that show no PDF: the report and web pages. The same bytes for the same page."""

from __future__ import annotations

import io
from pathlib import Path

WIDTH = 1464  # [px] twelve to the millimetre of LNCS's text width: sharp on a screen, some 100 kB


def picture_of(pdf: Path, *, width: int = WIDTH, page: int = 0) -> bytes:
    """A page of ``pdf`` as PNG, ``width`` pixels wide, on white.

    Raises:
        ValueError: the file is no PDF or has no such page.
    """
    import pypdfium2  # Google's PDFium in a wheel: needs no program of the system

    try:
        document = pypdfium2.PdfDocument(pdf)
        try:
            sheet = document[page]
            image = sheet.render(scale=width / sheet.get_width()).to_pil().convert("RGB")
        finally:
            document.close()
    except (pypdfium2.PdfiumError, IndexError) as error:
        raise ValueError(f"{pdf}: page {page + 1} cannot be drawn: {error}") from error
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return buffer.getvalue()
