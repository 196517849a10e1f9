"""The bytes of a shard, made while its pictures are read: one pass, a few pictures in memory, two threads.

A source's samples are read and checked in a thread of their own, a few MiB ahead of the thread that writes. Both spend most
of their time in reading, writing and checksums, which leave Python's lock free. What is written is hashed on its way and never
read back. The tar is byte for byte what webdataset's ``TarWriter`` makes (USTAR, mode 0444, no time, no owner).
"""

from __future__ import annotations

import hashlib
import os
import queue
import tarfile
import threading
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")
PART = 2**20  # bytes that go from thread to thread at once
WAITING = 4  # parts that wait to be written
WRITEBACK = 16 * 2**20  # bytes after which the system is asked to start writing them to the disk
_SIZE, _CHECKSUM = slice(124, 136), slice(148, 156)  # fields of a tar header


def ahead(items: Iterable[Item], weigh: Callable[[Item], int]) -> Generator[Item, None, None]:
    """``items`` in their order, produced in a thread of their own, which is at most some parts ahead.

    What the producer raises is raised here, after all that it gave before. Closing this generator ends the thread.

    Args:
        items: iterated in that thread alone.
        weigh: bytes of an item.
    """
    parts: queue.Queue[tuple[list[Item], BaseException | None] | None] = queue.Queue(WAITING)
    stop = threading.Event()

    def produce() -> None:
        part: list[Item] = []
        size = 0
        try:
            for item in items:
                part.append(item)
                size += weigh(item)
                if size >= PART:
                    parts.put((part, None))
                    part, size = [], 0
                if stop.is_set():
                    return
            parts.put((part, None))
            parts.put(None)
        except BaseException as error:  # KeyboardInterrupt, too, is for the thread that waits for the items
            parts.put((part, error))

    thread = threading.Thread(target=produce, name="ahead", daemon=True)
    thread.start()
    try:
        while (given := parts.get()) is not None:
            part, error = given
            del given
            while part:
                yield part.pop(0)
            if error is not None:
                raise error
    finally:
        stop.set()
        while thread.is_alive():  # it may be waiting for room
            try:
                parts.get(timeout=0.05)
            except queue.Empty:
                continue


class HashedTar:
    """Writes a tar and hashes it on the way.

    Attributes:
        offset: bytes written.
    """

    def __init__(self, path: Path) -> None:
        self.offset = 0
        self._file = path.open("wb")
        self._hasher = hashlib.sha256()
        self._started = 0  # of the bytes, those that the system was asked to write to the disk

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Append a member; returns where its content starts and its size [bytes]."""
        self._write(header(name, len(data)))
        start = self.offset
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))
        if self.offset - self._started >= WRITEBACK:
            self._start_writeback()
        return start, len(data)

    def finish(self) -> str:
        """Write the end mark; returns the SHA-256 of the whole file."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.offset % tarfile.RECORDSIZE))
        self._file.flush()
        return self._hasher.hexdigest()

    def __enter__(self) -> HashedTar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hasher.update(data)
        self.offset += len(data)

    def _start_writeback(self) -> None:
        """Otherwise all of a shard would wait for the fsync at its end. (Linux writes what it is told is not needed soon.)"""
        if hasattr(os, "posix_fadvise"):
            self._file.flush()
            os.posix_fadvise(self._file.fileno(), self._started, self.offset - self._started, os.POSIX_FADV_DONTNEED)
        self._started = self.offset


def header(name: str, size: int) -> bytes:
    """The 512 bytes before a member: a regular file, mode 0444, no time, no owner.

    Args:
        name: ASCII, at most 100 characters.
        size: of its content [bytes], below 8 GiB.
    """
    block = bytearray(_TEMPLATE)
    block[: len(name)] = name.encode("ascii")
    block[_SIZE] = b"%011o\0" % size
    block[_CHECKSUM] = b"%06o\0 " % sum(block)
    return bytes(block)


def _template() -> bytes:
    about = tarfile.TarInfo("")
    about.mode = 0o444
    block = bytearray(about.tobuf(tarfile.USTAR_FORMAT))
    block[_CHECKSUM] = b" " * 8  # as it counts in the sum
    block[_SIZE] = bytes(12)
    return bytes(block)


_TEMPLATE = _template()
