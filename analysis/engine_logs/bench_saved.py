"""What serving benchmarks save as JSON: `vllm bench serve --save-result` and SGLang's `bench_serving --output-file`."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from analysis.engine_logs.bench import TIMES_TOLERANCE, Runs
from analysis.engine_logs.documents import StepTimes
from analysis.engine_logs.evidence import Evidence
from analysis.engine_logs.rows import Rows
from analysis.engine_logs.values import Malformed, first, real, shares

SHARED_NAMES = {
    "tpot_ms": ("mean_tpot_ms",),
    "itl_ms": ("mean_itl_ms",),
    "requests": ("completed",),
    "duration_seconds": ("duration",),
    "output_tokens_per_second": ("output_throughput",),
}


class SavedRuns:
    """The JSON that a benchmark saves, with one entry per request where it was asked for in detail."""

    markers: tuple[bytes, ...] = ()
    signs: tuple[bytes, ...] = ()

    def __init__(
        self, format_name: str, keys: Iterable[str], names: Mapping[str, tuple[str, ...]], chunk_times: bool
    ) -> None:
        self.runs = Runs(format_name, chunk_times)
        self.keys = frozenset(keys)
        self.names = names
        self.requests = Rows(
            ("run", "request_id", "prompt_tokens", "output_tokens", "rounds", "mean_acceptance_length",
             "first_token_seconds", "start_seconds", "seconds_per_round")
        )  # fmt: skip

    def end_file(self) -> None:
        """Runs stand for themselves."""

    def line(self, text: bytes) -> None:
        """This format is JSON."""

    def record(self, record: Mapping[str, Any], around: Sequence[Mapping[str, Any]]) -> None:
        """Read one run."""
        run: dict[str, float | None] = {}
        for name, keys in self.names.items():
            value = first(record, *keys)
            run[name] = None if value is None else real(value, keys[0])
        listed = first(record, "spec_decode_per_position_acceptance_rates")
        rates = [] if listed is None else shares(listed.tolist() if isinstance(listed, array) else listed, "a rate")
        if run.get("mean") is None and run.get("rounds") is None:
            raise Malformed("it holds no acceptance length and no number of drafts")
        for name, measured in self._requests(record).items():
            self.runs.identities.compare(
                f"the mean {name[:-3].upper()} = that of the requests' itls (to 5%)",
                ("the mean in ms", run[name]), ("that of itls", measured), TIMES_TOLERANCE * measured,
                f"run {self.runs.runs}",
            )  # fmt: skip
            run[name] = measured if run[name] is None else run[name]
        self.runs.add(run, rates)

    def _requests(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Keep the run's requests; their mean time between chunks, and per output token after the first, in ms."""
        steps = step_times(record.get("itls")) if self.runs.chunk_times else None
        outputs, inputs, ttfts, starts = (
            _numbers(record.get(name)) for name in ("output_lens", "input_lens", "ttfts", "start_times")
        )
        if steps is None:
            return {}
        per_token = []
        for index, (count, total) in enumerate(zip(steps.counts, steps.sums, strict=True)):
            output = _at(outputs, index)
            timed = output is not None and output > 1 and count > 0
            mean = (output - 1) / count if output is not None and timed else None
            if output is not None and timed:
                per_token.append(total / (output - 1))
            self.requests.add(
                self.runs.runs, str(index), _at(inputs, index), output, count, mean, _at(ttfts, index),
                _at(starts, index), total / count if count else None,
            )  # fmt: skip
        rounds = sum(steps.counts)
        means = {"itl_ms": 1000 * sum(steps.sums) / rounds} if rounds else {}
        return means | ({"tpot_ms": 1000 * sum(per_token) / len(per_token)} if per_token else {})

    def evidence(self) -> Evidence | None:
        """All runs together."""
        found = self.runs.evidence(self.requests.frame())
        return None if found is None else _with_request_mean(found)


def _with_request_mean(found: Evidence) -> Evidence:
    """The same, with the mean over requests of (output tokens - 1) / chunks after the first token."""
    if found.requests is None or "mean_acceptance_length" not in found.requests:
        return found
    note = "a request's rounds are its chunks after the first token, and its mean is (output tokens - 1) / rounds"
    mean = float(found.requests["mean_acceptance_length"].mean())
    return replace(found, mean_per_request=mean, notes=(*found.notes, note))


def step_times(value: Any) -> StepTimes | None:
    """Number and sum of each request's times between chunks, from a list of lists of seconds."""
    if isinstance(value, StepTimes) or value is None:
        return value
    times = StepTimes()
    if not isinstance(value, list):
        raise Malformed("itls is no list")
    for inner in value:
        if not isinstance(inner, list):
            raise Malformed("itls is no list of lists")
        numbers = [real(number, "a time between chunks") for number in inner]
        times.counts.append(len(numbers))
        times.sums.append(sum(numbers))
    return times


def _numbers(value: Any) -> Sequence[float]:
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()


def _at(values: Sequence[float], index: int) -> float | None:
    if index >= len(values):
        return None
    value = values[index]
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def vllm_saved() -> SavedRuns:
    """What `vllm bench serve --save-result` writes."""
    return SavedRuns(
        "vLLM benchmark result",
        ("spec_decode_acceptance_length", "spec_decode_num_drafts"),
        {
            "rate": ("spec_decode_acceptance_rate",),
            "mean": ("spec_decode_acceptance_length",),
            "rounds": ("spec_decode_num_drafts",),
            "drafted": ("spec_decode_draft_tokens",),
            "accepted": ("spec_decode_accepted_tokens",),
            **SHARED_NAMES,
        },
        chunk_times=True,
    )


def sglang_saved() -> SavedRuns:
    """What SGLang's `bench_serving --output-file` writes, a run a line."""
    names = {"mean": ("accept_length",), **SHARED_NAMES}
    return SavedRuns("SGLang benchmark result", ("accept_length",), names, chunk_times=False)
