"""What a build left out or changed, for people, from the counts in its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COUNTS = {
    "repeated_captions": "captions that their image has twice (kept)",
    "duplicated_ids": "records with an id that occurred before (joined)",
    "texts_without_image": "texts without an image (not used)",
    "without_description": "images without a description (left out)",
    "dead_links": "addresses without an image",
    "near_duplicates_together": "near duplicates of another image, on the same side as it (key `split_shares`)",
}


def build_summary(manifest: Mapping[str, Any], split: str) -> list[str]:
    """Say by cause what was left out of a split or changed in it, a line each; no line if nothing was."""
    about = manifest["leakage"].get(split)
    if not isinstance(about, dict) or "left_out" not in about:
        return []
    lines = [f"left out: {count} pictures {cause}" for cause, count in about["left_out"].items()]
    lines += [f"left out: {example}" for example in about["left_out_examples"][:5]]
    if about["removed_for_overlap"]:
        lines.append(f"left out: {about['removed_for_overlap']} that an evaluation split holds too")
    if 0 < about["without_caption"] < about["samples"]:
        lines.append(f"without a caption: {about['without_caption']}, e.g. {', '.join(about['without_caption_examples'])}")
    if count := about["pictures"].get("on_background"):
        lines.append(f"transparent, put on {manifest['config'].get('background', 'white')} (key `background`): {count}")
    if count := about["pictures"].get("sixteen_bits"):
        lines.append(f"scaled from 16 to 8 bits: {count}")
    for name, what in _COUNTS.items():
        if count := about.get(name):
            lines.append(f"{what}: {count}")
    return lines
