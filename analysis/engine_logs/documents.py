"""JSON files of any size, one document after another, in constant memory."""

from __future__ import annotations

import codecs
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from analysis.engine_logs.values import Malformed

AHEAD_CHARACTERS = 4096
SMALL_CHARACTERS = 4 << 20
"""a document, or an element of a larger one, of up to so many characters is parsed at once"""
MOST_DAMAGE = 1000
"""damaged places after which a file is no JSON file"""
MOST_KEYS = 10_000
LONGEST_TEXT = 8192
MOST_NUMBERS = 2_000_000
"""of one list that is kept from such a document; a longer one is left out"""
SPACE = " \t\r\n"
DECODER = json.JSONDecoder(parse_constant=lambda _: None)  # NaN and Infinity are missing values


@dataclass
class StepTimes:
    """A list of lists of numbers, of which only each inner list's length and sum are kept."""

    counts: array[int] = field(default_factory=lambda: array("q"))
    sums: array[float] = field(default_factory=lambda: array("d"))


def parse(text: str) -> Any:
    """One JSON value that fills the text.

    Raises:
        Malformed: it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON ({str(error).splitlines()[0]})") from None


class Documents:
    """Reads documents from blocks of bytes.

    `line` is the line at which the latest document began; `passed` is the start of the line, or of the rest of it,
    that was left out for the latest damage.
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.blocks = blocks
        self.text = ""
        self.at = 0
        self.ended = False
        self.line = 1
        self.counted = 0
        self.passed = ""

    def __iter__(self) -> Iterator[Any]:
        """Every document; of a document too large for memory, the objects in it, then its own numbers.

        A Malformed instance stands where a document is damaged; reading goes on with the next line. After MOST_DAMAGE
        of them it ends: this is no JSON file, and `rest` has what is left.
        """
        between, damage = SPACE, 0
        while damage < MOST_DAMAGE and self._skip(between):
            self._count_lines()
            try:
                yield from self._document()
            except Malformed as problem:
                between = SPACE + ",]"  # what is left of a damaged list
                self._skip_line()
                damage += 1
                yield problem

    def rest(self) -> Iterator[bytes]:
        """What has not been read."""
        self._count_lines()
        yield self.text[self.at :].encode("utf-8", "replace")
        yield from self.blocks

    def _document(self) -> Iterator[Any]:
        self._fill(SMALL_CHARACTERS)
        opening = self.text[self.at]
        if opening not in "{[":
            raise Malformed("not a JSON object or list")
        try:
            value, self.at = DECODER.raw_decode(self.text, self.at)
        except (ValueError, RecursionError):
            pass
        else:
            yield value
            return
        self.at += 1
        yield from self._object() if opening == "{" else self._elements("]")

    def _object(self) -> Iterator[Any]:
        """Objects directly in an object or in its lists; then the object itself with its numbers and short texts."""
        shell: dict[str, Any] = {}
        try:
            while self._next_in("}"):
                key = self._value()
                if not isinstance(key, str) or self._token() != ":":
                    raise Malformed("an object's key is missing")
                self.at += 1
                if self._token() == "[":
                    self.at += 1
                    yield from self._list(shell, key)
                    continue
                value = self._value()
                if isinstance(value, dict):
                    yield value
                elif len(shell) < MOST_KEYS and not (isinstance(value, str) and len(value) > 1000):
                    shell[key] = value
        except Malformed as problem:
            if shell:
                yield shell
            raise Malformed(f"cut or damaged: {problem}") from None
        yield shell

    def _list(self, shell: dict[str, Any], key: str) -> Iterator[Any]:
        """Objects in a list; its numbers, or the lengths and sums of its lists of numbers, go into the shell."""
        numbers, steps, others = array("d"), StepTimes(), 0
        for element in self._elements("]"):
            if isinstance(element, dict):
                yield element
            elif isinstance(element, int | float) and len(numbers) < MOST_NUMBERS:
                numbers.append(_as_float(element))
            elif isinstance(element, list) and len(steps.counts) < MOST_NUMBERS:
                values = [_as_float(value) for value in element if isinstance(value, int | float)]
                steps.counts.append(len(values))
                steps.sums.append(sum(values))
            else:
                others += 1
        if others == 0 and (len(numbers) == 0) != (len(steps.counts) == 0):
            shell[key] = numbers if len(numbers) else steps

    def _elements(self, closing: str) -> Iterator[Any]:
        while self._next_in(closing):
            yield self._value()

    def _next_in(self, closing: str) -> bool:
        """Step over a comma to the next element; False at the end of the container, which is stepped over."""
        token = self._token()
        if token == ",":
            self.at += 1
            token = self._token()
        if token == closing:
            self.at += 1
            return False
        return True

    def _token(self) -> str:
        if not self._skip(SPACE):
            raise Malformed("the file ends inside a document")
        return self.text[self.at]

    def _value(self) -> Any:
        """The value at this place, of SMALL_CHARACTERS at most."""
        self._token()
        for size in (AHEAD_CHARACTERS, SMALL_CHARACTERS):
            self._fill(size)
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except (ValueError, RecursionError):
                continue
            if end < len(self.text) or self.ended:  # else a number may go on beyond what is loaded
                self.at = end
                return value
        raise Malformed("a value is damaged, or longer than fits into memory")

    def _fill(self, characters: int) -> None:
        """Load until so many characters lie ahead, and forget those behind."""
        if self.ended or len(self.text) - self.at >= characters:
            return
        self._count_lines()
        parts, length = [self.text[self.at :]], len(self.text) - self.at
        self.at = self.counted = 0
        while length < characters and not self.ended:
            block = next(self.blocks, None)
            self.ended = block is None
            parts.append(self.decoder.decode(block or b"", final=self.ended))
            length += len(parts[-1])
        self.text = "".join(parts)

    def _count_lines(self) -> None:
        self.line += self.text.count("\n", self.counted, self.at)
        self.counted = self.at

    def _skip(self, characters: str) -> bool:
        """Go to the next character that is none of these; False at the end of the file."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in characters:
                    return True
                self.at += 1
            if self.ended:
                return False
            self._fill(AHEAD_CHARACTERS)

    def _skip_line(self) -> None:
        self._fill(LONGEST_TEXT)
        self.passed = self.text[self.at : self.at + LONGEST_TEXT].partition("\n")[0]
        while True:
            end = self.text.find("\n", self.at)
            self.at = end + 1 if end >= 0 else len(self.text)
            if end >= 0 or self.ended:
                return
            self._fill(AHEAD_CHARACTERS)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")
