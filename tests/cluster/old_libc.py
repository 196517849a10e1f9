"""Programs built for a glibc of 2.38 or newer, made to load with an older one: Debian 12 has 2.36, and no Apptainer of its own.

Of 2.38 such a program may need only ``strtol`` and its kin with the binary prefix of C23, which headers rename to
``__isoc23_<name>``. Each undefined ``__isoc23_<name>`` is pointed at ``<name>``, the end of the same string, and bound to the
first version of x86-64, GLIBC_2.2.5; the version that nothing needs any more then names that one as well. Structures: ELF-64
(System V ABI) and the GNU version sections.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

PREFIX, FIRST = "__isoc23_", "GLIBC_2.2.5"
_DYNSYM, _VERNEED, _VERSYM = 11, 0x6FFFFFFE, 0x6FFFFFFF


def relink(path: Path, have: tuple[int, int] = (2, 36)) -> list[str]:
    """Edit a program in place; returns the symbols that were pointed elsewhere.

    Raises:
        ValueError: it is no such program, or needs something newer that has no older form.
    """
    data = bytearray(path.read_bytes())
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path} is no 64-bit little-endian program")
    table, size, count = *struct.unpack_from("<Q", data, 0x28), *struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + number * size) for number in range(count)]
    by_type = {section[1]: section for section in sections}
    symbols, versions, needs = by_type[_DYNSYM], by_type[_VERSYM][4], by_type[_VERNEED]
    strings = sections[symbols[6]][4]

    def text(offset: int) -> str:
        return data[strings + offset : data.index(0, strings + offset)].decode()

    needed: dict[int, tuple[str, int]] = {}  # index -> name, place of the entry
    first = -1
    place = needs[4]
    for _ in range(needs[7]):
        _, entries, library, auxiliary, following = struct.unpack_from("<HHIII", data, place)
        entry = place + auxiliary
        for _ in range(entries):
            _, _, index, name, after = struct.unpack_from("<IHHII", data, entry)
            needed[index] = (text(name), entry)
            if text(name) == FIRST and text(library).startswith("libc.so"):
                first = index
            entry += after
        place += following
    newer = {index for index, (name, _) in needed.items() if _version(name) > have}
    if newer and first < 0:
        raise ValueError(f"{path} needs nothing of {FIRST}, to which its symbols could be bound")
    moved, left = [], []
    for number in range(symbols[5] // 24):
        symbol = symbols[4] + 24 * number
        name, _, _, section = struct.unpack_from("<IBBH", data, symbol)
        (index,) = struct.unpack_from("<H", data, versions + 2 * number)
        if section or index not in newer:
            continue
        if not text(name).startswith(PREFIX):
            left.append(text(name))
            continue
        moved.append(text(name))
        struct.pack_into("<I", data, symbol, name + len(PREFIX))
        struct.pack_into("<H", data, versions + 2 * number, first)
    if left:
        raise ValueError(f"{path} needs {', '.join(left)} of a newer libc")
    for index in newer:
        source, target = needed[first][1], needed[index][1]
        data[target : target + 4] = data[source : source + 4]  # hash of the name
        data[target + 8 : target + 12] = data[source + 8 : source + 12]  # the name
    path.write_bytes(data)
    return moved


def _version(name: str) -> tuple[int, ...]:
    found = re.fullmatch(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", name)
    return (int(found[1]), int(found[2])) if found else (0, 0)
