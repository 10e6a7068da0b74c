"""Metrics pages (Prometheus text) of vLLM, SGLang and llama.cpp: one page, or several to take the difference of.

Several pages may stand in one file, or in several. A counter that falls tells of a restart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.engine_logs.cumulative import Counters
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
        self.page: dict[tuple[bytes, tuple[tuple[bytes, bytes], ...]], float] = {}
        self.processes: dict[tuple[tuple[bytes, bytes], ...], Counters] = {}
        self.series = Series(("rounds", "drafted", "accepted"))
        self.pages = 0

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
        by_process: dict[tuple[tuple[bytes, bytes], ...], dict[str, float]] = {}
        for (name, labels), value in self.page.items():
            process = tuple(label for label in labels if label[0] != b"position")
            counter = COUNTERS[name]
            if counter == "position":
                counter = f"position {int(dict(labels)[b'position'])}"
            by_process.setdefault(process, {})[counter] = value
        self.page = {}
        grown = [self.processes.setdefault(process, Counters()).read(v) for process, v in by_process.items()]
        first = self.pages == 0
        self.pages += 1
        if not first:
            self.series.add(
                None, "", [sum(one.get(name, 0) for one in grown) for name in ("rounds", "drafted", "accepted")]
            )

    def _total(self, name: str) -> int | None:
        """Over all processes, after the first page where there are several."""
        totals = [
            counters.since_start(name) if self.pages == 1 else counters.since_first(name)
            for counters in self.processes.values()
        ]
        known = [total for total in totals if total is not None]
        return int(sum(known)) if known else None

    def evidence(self) -> Evidence | None:
        """The difference between the last and the first page, or all since the start where there is one page."""
        if self.pages == 0:
            return None
        rounds, drafted, accepted, emitted = (
            self._total(name) for name in ("rounds", "drafted", "accepted", "emitted")
        )
        positions = sorted(
            int(name[9:])
            for name in {n for c in self.processes.values() for n in c.first}
            if name.startswith("position ")
        )
        passed = [self._total(f"position {position}") or 0 for position in positions]
        complete = positions == list(range(len(positions))) and bool(positions) and bool(rounds)
        identities = Identities()
        if complete:
            identities.compare(
                "sum of accepted by position = accepted", ("the sum", sum(passed)), ("accepted", accepted)
            )
        warnings, notes = [], []
        if self.pages == 1:
            warnings.append(
                "one metrics page: it counts everything since the server started, warm-up included; "
                "give a page from before and one from after to measure what lies between"
            )
        else:
            notes.append(f"the counts are what was added between the first and the last of {self.pages} metrics pages")
        if rounds == 0:
            warnings.append("nothing was drafted between the pages")
        models = {dict(process).get(b"model_name", b"") for process in self.processes}
        if len(models) > 1:
            warnings.append(f"the counters of {len(models)} models were added up")
        if len(self.processes) > 1:
            notes.append(f"the counters of {len(self.processes)} engines were added up")
        restarts = sum(counters.restarts for counters in self.processes.values())
        if restarts:
            warnings.append(
                f"counters fall {restarts} times, which was taken for restarts of the server and added up; "
                "if pages are in the wrong order, give the earlier one first"
            )
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
        self.page: dict[tuple[bytes, tuple[tuple[bytes, bytes], ...]], float] = {}
        self.counters: dict[tuple[tuple[bytes, bytes], ...], Counters] = {}
        self.lengths: list[float] = []
        self.pages = 0

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
        self.pages += 1
        one_of_each: dict[tuple[bytes, tuple[tuple[bytes, bytes], ...]], float] = {}
        for (name, labels), value in sorted(self.page.items()):
            apart = tuple(label for label in labels if label[0] not in SAME_ROUNDS)
            one_of_each.setdefault((name, apart), value)
        for (name, labels), value in one_of_each.items():
            if name.endswith(b"_total"):
                self.counters.setdefault((*labels, (b"", name)), Counters()).read({"": value})
            elif value > 0 and len(self.lengths) < MOST_SERIES:  # 0 is the gauge before anything was drafted
                self.lengths.append(value)
        self.page = {}

    def _total(self, name: bytes) -> int | None:
        totals = [
            counters.since_start("") if self.pages == 1 else counters.since_first("")
            for labels, counters in self.counters.items()
            if labels[-1][1] == name
        ]
        return int(sum(total or 0 for total in totals)) if totals else None

    def evidence(self) -> Evidence | None:
        """Counters where the pages have them, else the mean of the gauges."""
        rounds, emitted = self._total(b"spec_verify_calls_total"), self._total(b"generation_tokens_total")
        if rounds is None and not self.lengths:
            return None
        warnings, notes = [], []
        gauge = sum(self.lengths) / len(self.lengths) if self.lengths else None
        if self.pages == 1 and rounds is not None:
            warnings.append("one metrics page: it counts everything since the server started, warm-up included")
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
