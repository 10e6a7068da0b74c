"""Metrics pages (Prometheus text) of vLLM, SGLang and llama.cpp: one page, or several to take the difference of.

Several pages may stand in one file, or in several. A counter that falls tells of a restart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.engine_logs.cumulative import Labels, Snapshots, added
from analysis.engine_logs.evidence import Evidence
from analysis.engine_logs.identities import Identities
from analysis.engine_logs.rows import Series
from analysis.engine_logs.values import Malformed, printed_number, real, shortened, whole

SAMPLE = re.compile(rb"^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+(-?\d+))?\s*$")
LABEL = re.compile(rb'(\w+)="((?:[^"\\]|\\.)*)"')
MOST_SERIES = 100_000
SAME_ROUNDS = {b"tp_rank", b"pp_rank", b"moe_ep_rank"}
"""labels of schedulers that run the same rounds together; one of them counts"""

COUNTERS = {
    b"num_drafts": "rounds",
    b"num_draft_tokens": "drafted",
    b"num_accepted_tokens": "accepted",
    b"num_accepted_tokens_per_pos": "position",
    b"num_emitted_tokens": "emitted",
}


def samples(text: bytes) -> tuple[bytes, dict[bytes, bytes], float | None] | None:
    """Name, labels and value of one sample; None for a comment or a line that is no sample.

    Raises:
        Malformed: its value is not a number.
    """
    found = SAMPLE.match(text.strip())
    if text.startswith(b"#") or not found:
        return None
    return found[1], dict(LABEL.findall(found[2] or b"")), printed_number(found[3], found[1].decode())


class CounterPage:
    """Counters `<engine>:spec_decode_num_drafts_total` and its like, of vLLM and of llama.cpp."""

    keys: frozenset[str] = frozenset()

    def __init__(self, engine: str, prefixes: Sequence[bytes]) -> None:
        self.format = f"{engine} metrics page"
        self.signs = self.markers = tuple(prefix + b"spec_decode_num_" for prefix in prefixes)
        self.name = re.compile(rb"^\w*?(?:" + b"|".join(prefixes) + rb")spec_decode_(num_\w+?)(?:_total)?$")
        self.page: dict[tuple[bytes, Labels], float] = {}
        self.snapshots = Snapshots()
        self.series = Series(("rounds", "drafted", "accepted"))

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """This format is no JSON."""

    def end_file(self) -> None:
        """A page ends with its file."""
        self._end_page()

    def line(self, text: bytes) -> None:
        """Read a sample of one of the counters."""
        found = samples(text)
        name = self.name.match(found[0]) if found else None
        if found is None or name is None or name[1] not in COUNTERS:
            if found is None and not text.lstrip().startswith(b"#") and text.startswith(self.markers):
                raise Malformed("it is no sample of a metric")
            return
        if found[2] is None:
            return
        value = whole(found[2], found[0].decode())
        if name[1] == b"num_accepted_tokens_per_pos":
            position = found[1].get(b"position", b"")
            if not (position.isdigit() and len(position) <= 4):
                raise Malformed(f"its position is {shortened(position)}")
        key = name[1], tuple(sorted(found[1].items()))
        if key in self.page or len(self.page) >= MOST_SERIES:
            self._end_page()
        self.page[key] = value

    def _end_page(self) -> None:
        if not self.page:
            return
        by_process: dict[Labels, dict[str, float]] = {}
        for (name, labels), value in self.page.items():
            process = tuple(label for label in labels if label[0] != b"position")
            counter = COUNTERS[name]
            if counter == "position":
                counter = f"position {int(dict(labels)[b'position'])}"
            by_process.setdefault(process, {})[counter] = value
        self.page = {}
        grown = self.snapshots.read(by_process)
        if self.snapshots.readings > 1:
            self.series.add(None, "", [added(grown, name) for name in ("rounds", "drafted", "accepted")])

    def evidence(self) -> Evidence | None:
        """The difference between the last and the first page, or all since the start where there is one page."""
        pages, total = self.snapshots.readings, self.snapshots.total
        if pages == 0:
            return None
        rounds, drafted, accepted, emitted = (total(name) for name in ("rounds", "drafted", "accepted", "emitted"))
        positions = sorted(
            int(name[9:])
            for name in {name for counts in self.snapshots.latest.values() for name in counts}
            if name.startswith("position ")
        )
        told = [total(f"position {position}", of_all=False) for position in positions]
        passed = [count for count in told if count is not None]
        complete = bool(rounds) and bool(positions) and len(passed) == len(told) == positions[-1] + 1
        identities = Identities()
        if complete:
            identities.compare(
                "sum of accepted by position = accepted", ("the sum", sum(passed)), ("accepted", accepted)
            )
        warnings, notes = self.snapshots.warnings("metrics page"), []
        if pages > 1:
            notes.append(f"the counts are what was added between the first and the last of {pages} metrics pages")
        if rounds == 0:
            warnings.append("nothing was drafted" + " between the pages" * (pages > 1))
        models = {dict(process).get(b"model_name", b"") for process in self.snapshots.latest}
        if len(models) > 1:
            warnings.append(f"the counters of {len(models)} models were added up")
        if len(self.snapshots.latest) > 1:
            notes.append(f"the counters of {len(self.snapshots.latest)} engines were added up")
        if emitted is not None and rounds is None:
            warnings.append("these counters (of vLLM V0) hold no number of rounds, so the mean is not known")
        return Evidence(
            self.format, "positions" if complete else "totals",
            rounds=rounds, drafted=drafted, accepted=accepted, emitted=emitted,
            marginal=tuple(min(1.0, count / rounds) for count in passed) if complete and rounds else None,
            gamma=len(positions) if complete else None,
            series=self.series.frame(), checks=identities.checks(), warnings=tuple(warnings), notes=tuple(notes),
        )  # fmt: skip


class SglangPage:
    """SGLang's gauge `sglang:spec_accept_length`, and its counters of verifications and generated tokens."""

    keys: frozenset[str] = frozenset()
    signs: tuple[bytes, ...] = (b"sglang:spec_", b"sglang_spec_")
    markers: tuple[bytes, ...] = (*signs, b"sglang:generation_tokens_total", b"sglang_generation_tokens_total")

    def __init__(self) -> None:
        self.page: dict[tuple[bytes, Labels], float] = {}
        self.snapshots = Snapshots()
        self.lengths: list[float] = []

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """This format is no JSON."""

    def end_file(self) -> None:
        """A page ends with its file."""
        self._end_page()

    def line(self, text: bytes) -> None:
        """Read a sample."""
        found = samples(text)
        if found is None:
            if not text.lstrip().startswith(b"#") and text.startswith(self.markers):
                raise Malformed("it is no sample of a metric")
            return
        if found[2] is None:
            return
        name = re.split(rb"sglang[:_]", found[0], maxsplit=1)[-1]
        if name not in (b"spec_accept_length", b"spec_verify_calls_total", b"generation_tokens_total"):
            return
        key = name, tuple(sorted(found[1].items()))
        if key in self.page or len(self.page) >= MOST_SERIES:
            self._end_page()
        self.page[key] = real(found[2], name.decode())

    def _end_page(self) -> None:
        if not self.page:
            return
        one_of_each: dict[tuple[bytes, Labels], float] = {}
        for (name, labels), value in sorted(self.page.items()):
            apart = tuple(label for label in labels if label[0] not in SAME_ROUNDS)
            one_of_each.setdefault((name, apart), value)
        by_process: dict[Labels, dict[str, float]] = {}
        for (name, labels), value in one_of_each.items():
            if name.endswith(b"_total"):
                by_process.setdefault(labels, {})[name.decode()] = value
            elif value > 0 and len(self.lengths) < MOST_SERIES:  # 0 is the gauge before anything was drafted
                self.lengths.append(value)
        self.snapshots.read(by_process)
        self.page = {}

    def evidence(self) -> Evidence | None:
        """Counters where the pages have them, else the mean of the gauges."""
        rounds, emitted = (
            self.snapshots.total(name, of_all=False) for name in ("spec_verify_calls_total", "generation_tokens_total")
        )
        if rounds is None and not self.lengths:
            return None
        warnings, notes = self.snapshots.warnings("metrics page") if rounds is not None else [], []
        gauge = sum(self.lengths) / len(self.lengths) if self.lengths else None
        counted = emitted / rounds if rounds and emitted is not None else None
        if counted is not None:
            notes.append("mean acceptance length is generated tokens / verifications, prefill's first tokens included")
        elif gauge is not None:
            warnings.append("spec_accept_length is a gauge of the last few steps only, and the mean is of its readings")
        return Evidence(
            "SGLang metrics page", "totals" if counted is not None else "mean",
            rounds=rounds, emitted=emitted if rounds is not None else None, mean=counted or gauge,
            warnings=tuple(warnings), notes=tuple(notes),
        )  # fmt: skip
