"""Log files as blocks of whole lines: compressed or not, rotated, cut, of any length, in constant memory."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

BLOCK_BYTES = 1 << 20
LONGEST_LINE_BYTES = 8 << 20
"""a longer line is no log line; it is taken in pieces"""

ANSI = re.compile(rb"\x1b\[[0-9;:?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
ROTATED = re.compile(r"^(?P<base>.+?)(?:\.(?P<number>\d{1,4})|[.-](?P<date>\d{4}-?\d\d-?\d\d(?:[-_.T]?\d+)?))$")
PACKED = (".gz", ".bz2", ".xz")


class LogFile:
    """A file, or standard input for the path '-', that is read once, in blocks.

    `problem` says afterwards why reading ended early, if it did.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem = ""

    def blocks(self) -> Iterator[bytes]:
        """Blocks of bytes, unpacked, UTF-16 (what PowerShell's redirection writes) turned into UTF-8.

        Raises:
            ValueError: the file cannot be opened, or is packed with zstd.
        """
        try:
            with open(self.path, "rb") if str(self.path) != "-" else open(0, "rb", closefd=False) as raw:
                yield from self._transcoded(self._unpacked(raw))
        except OSError as error:
            raise ValueError(f"cannot read {self.path}: {error.strerror or error}") from None

    def _unpacked(self, raw: io.BufferedReader) -> Iterator[bytes]:
        start = raw.peek(6)[:6]
        if start.startswith(b"\x28\xb5\x2f\xfd"):
            raise ValueError(f"{self.path} is packed with zstd; unpack it first, or pack it with gzip")
        parts: list[bytes] = []
        size = 0
        with _unpacking(raw, start) as stream:
            try:
                while piece := stream.read1(BLOCK_BYTES):  # read1: what lies before the damage is not lost
                    parts.append(piece)
                    size += len(piece)
                    if size >= BLOCK_BYTES:
                        yield b"".join(parts)
                        parts, size = [], 0
            except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
                self.problem = f"{self.path.name} is cut or damaged ({error}); what could be unpacked was read"
        if parts:
            yield b"".join(parts)

    def _transcoded(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        decoder: codecs.IncrementalDecoder | None = None
        for index, block in enumerate(blocks):
            if index == 0 and block[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                decoder = codecs.getincrementaldecoder("utf-16")(errors="replace")
            if index == 0 and block.startswith(codecs.BOM_UTF8):
                block = block[3:]
            yield block if decoder is None else decoder.decode(block).encode("utf-8", "replace")


def _unpacking(raw: io.BufferedReader, start: bytes) -> io.BufferedReader | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile:
    """The stream that unpacks a file that starts so; the file itself where it is not packed."""
    if start.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw)
    if start.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    return lzma.LZMAFile(raw) if start.startswith(b"\xfd7zXZ\x00") else raw


def whole_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes in blocks that end with a line's end; only a line beyond LONGEST_LINE_BYTES is taken apart."""
    rest = b""
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if end == 0:
            rest += block
            if len(rest) < LONGEST_LINE_BYTES:
                continue
            yield rest
            rest = b""
            continue
        yield rest + block[:end]
        rest = block[end:]
    if rest:
        yield rest


def lines_with(block: bytes, markers: Sequence[bytes]) -> list[tuple[int, int]]:
    """Start and end of the lines that hold one of the markers, in order, without looking at the others."""
    found: dict[int, int] = {}
    for marker in markers:
        at = block.find(marker)
        while at >= 0:
            end = block.find(b"\n", at)
            end = len(block) if end < 0 else end
            found[block.rfind(b"\n", 0, at) + 1] = end
            at = block.find(marker, end)
    return sorted(found.items())


def plain(line: bytes) -> bytes:
    """A line without its line end and without colour codes."""
    if b"\x1b" in line:
        line = ANSI.sub(b"", line)
    return line.rstrip(b"\r")


def in_order_of_time(paths: Sequence[Path]) -> list[Path]:
    """The files as given, but the parts of a rotated log from the oldest to the newest.

    `server.log.2.gz`, `server.log.1`, `server.log`: the higher number is older, the file without one is the newest;
    of dated parts the earlier date is older. Numbers mean this only where the name without them is one of the files or
    ends in `.log`; other numbered files, such as two metrics pages, stay in the order given.
    """
    groups: dict[Path, int] = {}
    keys = []
    for path in paths:
        name = path.name
        for suffix in PACKED:
            name = name.removesuffix(suffix)
        found = ROTATED.match(name)
        base = path.parent / (found["base"] if found else name)
        if found and not (base in paths or base.suffix == ".log"):
            found, base = None, path
        number, date = (found["number"], found["date"]) if found else (None, None)
        keys.append((groups.setdefault(base, len(groups)), found is None, -int(number or 0), date or ""))
    return [path for _, path in sorted(zip(keys, paths, strict=True), key=lambda pair: pair[0])]
