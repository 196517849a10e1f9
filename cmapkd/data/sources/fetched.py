"""What ``Source.fetch`` reports: a verified file in the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FetchedFile:
    """An upstream file in the cache whose ``sha256`` has been checked; ``fetched`` is false when it was there already."""

    name: str
    version: str
    path: Path
    sha256: str
    fetched: bool
