"""Reads logs: finds the engine, hands lines and JSON objects to its formats, and sums up what they say."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from analysis.engine_logs import specdec
from analysis.engine_logs.detect import (
    AUTO,
    ENGINES,
    Format,
    engine_named,
    engines_in,
    formats_of,
    json_marks,
    unknown,
)
from analysis.engine_logs.documents import DECODER, Documents, parse
from analysis.engine_logs.evidence import combine
from analysis.engine_logs.imported import ImportedLog
from analysis.engine_logs.stream import LogFile, in_order_of_time, lines_with, plain, whole_lines
from analysis.engine_logs.values import Malformed, objects, shortened

EXAMPLES = 5
LONGEST_TEXT_BYTES = 4096
"""a text line is read up to here; JSON in a line is read to its end"""
JSON_IN_LINE_TRIES = 4


def read_log(paths: Path | str | Iterable[Path | str], engine: str = AUTO) -> ImportedLog:
    """Import what one or several files of one engine say about speculative decoding.

    Files are read as streams, packed (gzip, bzip2, xz) or not, in constant memory; the parts of a rotated log are
    read from the oldest to the newest, other files in the order given. Two or more metrics pages give the difference
    between the first and the last.

    Args:
        paths: a log ('-' for standard input), several, or a round table of this project or a folder that holds one.
        engine: one of `detect.ENGINES`, or 'auto' to find out.

    Raises:
        ValueError: a file cannot be read, no known format is in it, or nothing in it could be read; one line.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, Path | str) else paths)]
    if not files:
        raise ValueError("name at least one log file")
    name = engine_named(engine)
    try:
        if name == "specdec" or (name == AUTO and any(specdec.is_own(path) for path in files)):
            return _read_own(files)
        return _read_logs(in_order_of_time(files), name)
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _read_own(files: Sequence[Path]) -> ImportedLog:
    if len(files) > 1:
        raise ValueError(f"a round table is imported alone, got {len(files)} files; name one at a time")
    return combine("specdec", [specdec.read_own(files[0])], [str(files[0])], [], 0, [])


def _read_logs(files: Sequence[Path], engine: str) -> ImportedLog:
    reader = _Reader(engine)
    warnings: list[str] = []
    barren: list[Path] = []
    for path in files:
        log = LogFile(path)
        held = reader.read(log)
        warnings += [log.problem] * bool(log.problem)
        if not held:
            barren.append(path)
    names = ", ".join(map(str, files))
    if not reader.engine:
        raise ValueError(unknown(names, reader.start))
    found = [evidence for one in reader.formats if (evidence := one.evidence()) is not None]
    if not found:
        reason = f": {reader.examples[0]}" if reader.examples else ""
        if engine != AUTO and not reader.examples:
            raise ValueError(f"{names} holds nothing of {reader.engine} ({ENGINES[reader.engine]})")
        raise ValueError(f"nothing in {names} could be read as {reader.engine}{reason}")
    warnings += [f"{path} holds nothing of {reader.engine}" for path in barren]
    if reader.others:
        warnings.append(
            f"there are also lines of {', '.join(reader.others)}; name the engine with --engine to import those"
        )
    return combine(reader.engine, found, [str(path) for path in files], warnings, reader.skipped, reader.examples)


class _Reader:
    """The state of an import: the engine once it is found, and lines that could not be read."""

    def __init__(self, engine: str) -> None:
        self.engine = "" if engine == AUTO else engine
        self.candidates = {name: formats_of(name) for name in ENGINES} if engine == AUTO else {}
        self.formats: list[Format] = formats_of(engine)
        self.others: list[str] = []
        self.start = b""
        self.skipped = 0
        self.examples: list[str] = []
        self.file = ""
        self.held = False
        self._settle()

    def _settle(self) -> None:
        """Prepare for the formats at hand: all engines' until one is found."""
        formats = self.formats or [one for found in self.candidates.values() for one in found]
        self.markers = tuple(marker for one in formats for marker in one.markers)
        self.json_marks = json_marks(formats)
        self.keys = frozenset().union(*(one.keys for one in formats))

    def _found(self, engines: Sequence[str]) -> None:
        self.engine, self.others = engines[0], list(engines[1:])
        self.formats = self.candidates[self.engine]
        self._settle()

    def read(self, log: LogFile) -> bool:
        """Read one file; did it hold a line or an object of the engine's formats?"""
        self.file, self.held = log.path.name, False
        blocks = log.blocks()
        first = next(blocks, b"")
        self.start += first[: max(0, 65_536 - len(self.start))]
        everything = itertools.chain([first], blocks)
        if _is_document(first):
            self._read_documents(Documents(everything))
        else:
            self._read_lines(everything, _is_json_lines(first))
        for one in self.formats:
            try:
                one.end_file()
            except Malformed as problem:
                self._skip(partial(str, "at its end"), problem)
        return self.held

    def _skip(self, where: Callable[[], str], problem: Malformed, text: bytes = b"") -> None:
        """Count what could not be read; the place is only looked for where it is shown."""
        self.skipped += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{self.file} {where()}: {problem}" + (f" in '{shortened(text)}'" if text else ""))

    def _read_documents(self, documents: Documents) -> None:
        damaged = False  # lines after a damaged one are the rest of the same damage until a document begins
        for document in documents:
            line = documents.line
            if not isinstance(document, Malformed):
                self._offer(document, partial(_line, line))
                damaged = False
                continue
            text = documents.passed.encode("utf-8", "replace")  # a log may begin with a document and go on as text
            if not self.engine and (engines := engines_in(text, self.candidates)):
                self._found(engines)
            if self.engine and (any(marker in text for marker in self.markers) or self._has_record(text)):
                self._read_block(text, line - 1)
            elif not damaged:
                self._skip(partial(_line, line), document, text)
            damaged = True
        self._read_lines(documents.rest(), json_lines=False, before=documents.line - 1)

    def _offer(self, value: Any, where: Callable[[], str]) -> None:
        """Hand on the objects in a JSON value that some format knows."""
        for record, around in objects(value, self.keys):
            if not self.engine:
                self._found([self._engine_of(record)])
            for one in self.formats:
                if not one.keys.isdisjoint(record):
                    self.held = True
                    try:
                        one.record(record, around)
                    except Malformed as problem:
                        self._skip(where, problem)
                    break

    def _engine_of(self, record: Mapping[str, Any]) -> str:
        """The first engine of which a format knows the object."""
        return next(
            name for name, formats in self.candidates.items() if any(not one.keys.isdisjoint(record) for one in formats)
        )

    def _read_lines(self, blocks: Iterator[bytes], json_lines: bool, before: int = 0) -> None:
        for block in whole_lines(blocks):
            if not self.engine and (engines := engines_in(block, self.candidates)):
                self._found(engines)
            if self.engine:
                self._read_block(block, before)
            if json_lines:
                self._count_damaged(block, before)
            before += block.count(b"\n")

    def _read_block(self, block: bytes, before: int) -> None:
        """Hand on the lines that hold a mark: JSON objects first, then to each text format its own lines."""
        taken = set()
        for start, end in lines_with(block, self.json_marks):
            text = plain(block[start:end])
            if b"{" not in text:
                continue
            taken.add(start)
            try:
                self._offer(_json_in(text), partial(_place, block, start, before))
            except Malformed as problem:
                self._skip(partial(_place, block, start, before), problem, text)
        for one in self.formats:
            read = one.line
            for start, end in lines_with(block, one.markers):
                if start not in taken:
                    self.held = True
                    text = plain(block[start : min(end, start + LONGEST_TEXT_BYTES)])
                    try:
                        read(text)
                    except Malformed as problem:
                        self._skip(partial(_place, block, start, before), problem, text)

    def _has_record(self, text: bytes) -> bool:
        """Is there a whole JSON object in a line that holds a mark?"""
        try:
            return any(mark in text for mark in self.json_marks) and bool(_json_in(text))
        except Malformed:
            return False

    def _count_damaged(self, block: bytes, before: int) -> None:
        """In a file of JSON lines, count lines that are none and that no format has looked at."""
        for number, line in enumerate(block.split(b"\n"), before + 1):
            text = line.strip()
            if text and not (text.startswith(b"{") and text.endswith(b"}")) and not any(
                mark in line for mark in ((*self.markers, *self.json_marks) if self.engine else ())
            ):  # fmt: skip
                self._skip(partial(_line, number), Malformed("not a JSON object"), text)


def _line(number: int) -> str:
    return f"line {number}"


def _place(block: bytes, start: int, before: int) -> str:
    return _line(before + block.count(b"\n", 0, start) + 1)


def _json_in(text: bytes) -> list[Any]:
    """The JSON values in a line, whatever stands before them: one, or several one after another.

    Raises:
        Malformed: there is none.
    """
    decoded = text.decode("utf-8", "replace").strip()
    if decoded.startswith("[") and decoded.endswith("]"):
        return [parse(decoded)]
    found, at = [], decoded.find("{")
    for _ in range(JSON_IN_LINE_TRIES if at >= 0 else 0):
        try:
            while at >= 0:
                value, end = DECODER.raw_decode(decoded, at)
                found.append(value)
                at = decoded.find("{", end)
        except (ValueError, RecursionError):
            at = decoded.find("{", at + 1)
        if found or at < 0:
            break
    if not found:
        raise Malformed("it holds no whole JSON object")
    return found


def _is_document(start: bytes) -> bool:
    """Does the file begin with a JSON document that is more than one line, or a line too long to look at?"""
    text = start.lstrip()
    if not (text.startswith(b"{") or (text.startswith(b"[") and text[1:].lstrip()[:1] in (b"{", b"[", b'"'))):
        return False
    return not _is_json_lines(start)


def _is_json_lines(start: bytes) -> bool:
    """Is the first line a JSON object by itself?"""
    line = start.lstrip().partition(b"\n")[0]
    if not line.startswith(b"{") or not line.rstrip().endswith(b"}"):
        return False
    try:
        parse(line.decode("utf-8", "replace"))
    except Malformed:
        return False
    return True
