"""Damaged and hostile files of every public source: an explanation for its user, never a traceback and never a hang.

Each example takes a data set in its publisher's format, spoils one file (bytes, text or a value of its JSON), and builds it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_public_sources import MAKERS, Maker, build

from cmapkd.errors import UserError

FUZZ = settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.generate, Phase.target],  # shrinking builds hundreds of data sets; the first one says enough
)
SPOILT = (".json", ".tsv", ".csv", ".txt", ".tar", ".jpg", ".png", ".JPEG")
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from([10**30, -1, 0, "", "../../etc/passwd", "/etc/passwd", "a\0b", "\ud800", "x" * 300, [], {}, "nan", 1e308])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def changed(content: Any, path: tuple[Any, ...], value: Any, remove: bool) -> Any:
    if not path:
        return value
    *above, last = path
    section = content
    for key in above:
        section = section[key]
    if remove:
        del section[last]
    else:
        section[last] = value
    return content


def spoil(data: bytes, name: str, draw: Any) -> bytes:
    """The content of a file, damaged in one of several ways."""
    ways = ["bytes", "cut", "flip", "insert"] + (["value"] * 6 if name.endswith(".json") else ["line"] * 2)
    way = draw(st.sampled_from(ways))
    if way == "bytes":
        return draw(st.binary(max_size=64))
    at = draw(st.integers(0, max(0, len(data) - 1)))
    if way == "cut":
        return data[:at]
    if way == "flip":
        return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    if way == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at:]
    if way == "line":
        lines = data.split(b"\n")
        line = draw(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(["\t", '"', ",", "\t\t\t"])
        )
        lines[draw(st.integers(0, len(lines) - 1))] = line.encode()
        return b"\n".join(lines)
    content = json.loads(data)
    known = list(places(content))
    path = known[draw(st.integers(0, len(known) - 1))]
    return json.dumps(changed(content, path, draw(VALUES), draw(st.booleans()))).encode("utf-8", "surrogatepass")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__.strip("_"))
def test_any_damage_is_a_users_error(maker: Maker, tmp_path: Path) -> None:
    root = tmp_path / "root"
    kind, keys, _ = maker(root)
    # Annotations and tables more often than pictures, which are many and of which one is like another.
    files = sorted(
        (path for path in root.rglob("*") if path.suffix in SPOILT), key=lambda path: (path.stat().st_size, path.name)
    )
    texts = [path for path in files if path.suffix in (".json", ".tsv", ".csv", ".txt", ".tar")]
    outcomes = {"built": 0, "refused": 0}

    @FUZZ
    @given(st.data())
    def attack(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(texts * 3 + files[:3]))
        original = path.read_bytes()
        out = tmp_path / "out"
        path.write_bytes(spoil(original, path.name, data.draw))
        try:
            build(kind, root, out, **keys)
            outcomes["built"] += 1
        except UserError as error:
            outcomes["refused"] += 1
            assert str(error)
        finally:
            path.write_bytes(original)
            shutil.rmtree(out, ignore_errors=True)
        assert [path.name for path in tmp_path.iterdir()] == ["root"]  # nothing was written beside

    attack()
    assert outcomes["refused"] > 2, outcomes  # the damage is not all harmless
