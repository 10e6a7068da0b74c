"""Prometheus pages: differences, restarts, several engines, what is absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.engine_logs import read_log


def page(drafts: int, passed: list[int], engine: str = "0", prefix: str = "vllm:") -> str:
    """A metrics page of one engine; all drafts are full."""
    labels = "" if prefix == "llamacpp:" else f'engine="{engine}",model_name="m"'
    counters = {
        "num_drafts_total": drafts,
        "num_draft_tokens_total": drafts * len(passed),
        "num_accepted_tokens_total": sum(passed),
    }
    braces = f"{{{labels}}}" if labels else ""
    lines = [f"{prefix}spec_decode_{name}{braces} {value}" for name, value in counters.items()]
    comma = "," if labels else ""
    lines += [
        f'{prefix}spec_decode_num_accepted_tokens_per_pos_total{{{labels}{comma}position="{position}"}} {count:.5e}'
        for position, count in enumerate(passed)
    ]
    return "\n".join(["# TYPE counter", "process_cpu_seconds_total 3.1", *lines]) + "\n"


def write(folder: Path, **pages: str) -> list[Path]:
    paths = []
    for name, text in pages.items():
        paths.append(folder / f"{name}.prom")
        paths[-1].write_text(text)
    return paths


@pytest.mark.parametrize("prefix", ["vllm:", "vllm_", "ray_vllm_", "llamacpp:"])
def test_two_pages_give_their_difference(tmp_path: Path, prefix: str) -> None:
    paths = write(tmp_path, before=page(100, [90, 80], prefix=prefix), after=page(300, [190, 120], prefix=prefix))
    log = read_log(paths)
    assert log.engine == ("llama.cpp" if prefix == "llamacpp:" else "vllm")
    assert (log.rounds, log.drafted, log.accepted) == (200, 400, 140)
    assert log.marginal_acceptance == (0.5, 0.2)
    assert log.warnings == ()
    alone = read_log(paths[1])
    assert (alone.rounds, alone.accepted) == (300, 310)
    assert "one metrics page" in alone.warnings[0]


def test_pages_in_one_file_are_a_series_and_a_fall_is_a_restart(tmp_path: Path) -> None:
    (path,) = write(tmp_path, all=page(100, [50]) + page(300, [150]) + page(40, [20]))
    log = read_log(path)
    assert (log.rounds, log.accepted) == (200 + 40, 100 + 20)
    assert log.series is not None
    assert log.series["rounds"].tolist() == [200, 40]
    assert "counters fall 1 times" in log.warnings[0]


def test_engines_are_added_up_each_by_its_own_counters(tmp_path: Path) -> None:
    before = page(100, [50]) + page(1000, [900], engine="1")
    after = page(200, [150]) + page(1100, [920], engine="1")
    log = read_log(write(tmp_path, before=before, after=after))
    assert (log.rounds, log.accepted) == (200, 120)
    assert "counters of 2 engines" in " ".join(log.notes)


def test_an_engine_that_starts_between_the_pages_counts_from_zero_and_one_that_ends_is_left_out(tmp_path: Path) -> None:
    before, other = page(100, [50]), page(1000, [900], engine="1")
    log = read_log(write(tmp_path, before=before, after=page(200, [150]) + other))
    assert (log.rounds, log.accepted) == (100 + 1000, 100 + 900)
    assert log.warnings == (
        "the counters of 1 engines are not on the first metrics page: all that they count was taken",
    )
    log = read_log(write(tmp_path, before=before + other, after=page(200, [150])))
    assert (log.rounds, log.accepted) == (100, 100)
    assert log.warnings == ("the counters of 1 engines are not on the last metrics page and were left out",)


def test_a_counter_that_a_cut_page_lacks_is_missing_and_not_zero(tmp_path: Path) -> None:
    whole = {"before": page(100, [50, 20]), "after": page(300, [150, 80])}
    for cut in whole:
        text = whole[cut]
        pages = whole | {cut: text[: text.index("vllm:spec_decode_num_accepted_tokens_total")]}
        log = read_log(write(tmp_path, **pages))
        assert (log.rounds, log.drafted, log.accepted, log.mean_acceptance_length) == (200, 400, None, None)
        assert log.marginal_acceptance is None
        assert log.warnings == (
            "3 counters are not on both the first and the last metrics page: their growth is not known",
        )


def test_a_page_that_holds_no_counters_is_named(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, before='vllm:num_requests_running{engine="0"} 3.0\n', after=page(300, [150])))
    assert log.rounds == 300
    assert any("before.prom holds nothing of vllm" in warning for warning in log.warnings)
    assert any("one metrics page" in warning for warning in log.warnings)


def test_more_accepted_than_drafted_is_named(tmp_path: Path) -> None:
    counter = 'num_draft_tokens_total{engine="0",model_name="m"} '
    (path,) = write(tmp_path, one=page(100, [50]).replace(f"{counter}100", f"{counter}40"))
    assert any("accepted <= drafted does not hold: accepted is 50" in warning for warning in read_log(path).warnings)


def test_positions_that_do_not_add_up_are_named(tmp_path: Path) -> None:
    text = page(100, [50, 20]).replace("accepted_tokens_total", "accepted_tokens_total", 1)
    wrong = text.replace(
        '_accepted_tokens_total{engine="0",model_name="m"} 70', '_accepted_tokens_total{engine="0",model_name="m"} 71'
    )
    assert wrong != text
    (path,) = write(tmp_path, one=wrong)
    assert any("sum of accepted by position = accepted does not hold" in warning for warning in read_log(path).warnings)


def test_a_page_without_speculation_says_so_instead_of_zero(tmp_path: Path) -> None:
    (path,) = write(tmp_path, off='vllm:num_requests_running{engine="0"} 3.0\nvllm:prompt_tokens_total 5\n')
    with pytest.raises(ValueError, match="speculation was off"):
        read_log(path)


def test_damaged_samples_are_counted(tmp_path: Path) -> None:
    (path,) = write(tmp_path, one=page(100, [50]) + 'vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 1x\n')
    log = read_log(path)
    assert (log.rounds, log.skipped_lines) == (100, 1)


def test_sglang_counts_what_lies_between_pages_and_else_reads_its_gauges(tmp_path: Path) -> None:
    def sglang(calls: int, tokens: int, length: float) -> str:
        return (
            f'sglang:spec_accept_length{{tp_rank="0"}} {length}\n'
            f'sglang:spec_verify_calls_total{{tp_rank="0"}} {calls}\n'
            f'sglang:spec_verify_calls_total{{tp_rank="1"}} {calls}\n'  # the same rounds on another rank
            f"sglang:generation_tokens_total {tokens}\n"
        )

    log = read_log(write(tmp_path, before=sglang(1000, 2000, 2.0), after=sglang(1500, 3500, 9.0)))
    assert (log.rounds, log.emitted, log.mean_acceptance_length) == (500, 1500, 3.0)
    (gauge,) = write(
        tmp_path, gauge='sglang:spec_accept_length{tp_rank="0"} 2.5\nsglang:spec_accept_length{tp_rank="1"} 0\n'
    )
    only = read_log(gauge)
    assert (only.rounds, only.mean_acceptance_length, only.level) == (None, 2.5, "mean")
