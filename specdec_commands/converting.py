"""`specdec convert` and `specdec check`: acceptance in every unit and every engine's knobs, and a regression gate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specdec_commands.console import print_json, print_table
from specdec_commands.options import Json

if TYPE_CHECKING:
    from analysis.acceptance.conversion import Acceptance
    from analysis.regression import Comparison

Engine = Annotated[str, typer.Option(help="Engine that wrote a log; 'auto' finds out.")]


def convert(
    alpha: Annotated[float | None, typer.Option(help="Chance that a reached token is accepted; needs --gamma.")] = None,
    mean_length: Annotated[float | None, typer.Option(help="Tokens emitted per round; needs --gamma.")] = None,
    conditional: Annotated[
        str | None, typer.Option(help="Acceptance of each position once the one before was accepted, as in 0.8,0.7.")
    ] = None,
    marginal: Annotated[
        str | None, typer.Option(help="Chance that all positions up to each one are accepted, as in 0.8,0.56.")
    ] = None,
    accepted_share: Annotated[
        float | None, typer.Option(help="Accepted tokens / drafted tokens; needs --gamma.")
    ] = None,
    source: Annotated[
        list[Path] | None,
        typer.Option(
            "--from", help="A round table or run folder, a speculation_profile.json, an import, or logs of an engine."
        ),
    ] = None,
    gamma: Annotated[int | None, typer.Option(help="Draft length in tokens to convert to.")] = None,
    without_bonus: Annotated[
        bool, typer.Option("--without-bonus", help="The mean length does not count the bonus or correction token.")
    ] = False,
    per_request: Annotated[
        bool, typer.Option("--per-request", help="The mean length is over requests, and not over rounds.")
    ] = False,
    law: Annotated[
        str | None,
        typer.Option(
            help="iid (constant-conditional), minimum-variance, or measured (per-position); as given if left out."
        ),
    ] = None,
    to: Annotated[
        str, typer.Option(help="Engines with commas: vllm, llama.cpp, sglang, tensorrt-llm, aiconfigurator, dynamo.")
    ] = "all",
    from_draft: Annotated[str | None, typer.Option(help="Draft to take from a table that holds several.")] = None,
    from_gamma: Annotated[
        int | None, typer.Option(help="Draft length to take from a table that holds several.")
    ] = None,
    engine: Engine = "auto",
    method: Annotated[str | None, typer.Option(help="Name of the draft's method in the profile of --out.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write what --from holds as a speculation_profile.json.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert acceptance between its units and laws, and into engines' knobs for synthetic acceptance.

    Lengths count the bonus or correction token unless said otherwise. A mean length fits many laws: what was assumed or
    lost is in the warnings.

    Examples:

    - `specdec convert --mean-length 3.2 --gamma 4 --law minimum-variance --to vllm`
    - `specdec convert --from server.log --gamma 4`
    """
    from analysis.acceptance.conversion import convert as converted
    from analysis.acceptance.conversion import units
    from analysis.acceptance.profile import profile_of, write_profile
    from analysis.acceptance.sources import acceptance_of, read_acceptance
    from analysis.acceptance.synthetic import knobs

    numbers = {
        "--alpha": alpha, "--mean-length": mean_length, "--accepted-share": accepted_share,
        "--conditional": conditional, "--marginal": marginal,
    }  # fmt: skip
    names = [*(name for name, value in numbers.items() if value is not None), *(["--from"] if source else [])]
    if len(names) != 1:
        raise ValueError(f"give one of {', '.join(numbers)} and --from, got {' and '.join(names) or 'none'}")
    if (without_bonus or per_request) and mean_length is None:
        raise ValueError("--without-bonus and --per-request are about --mean-length")
    if not source and (out is not None or from_draft is not None or from_gamma is not None):
        raise ValueError("--out, --from-draft and --from-gamma are about --from FILE")
    found = None
    if source:
        measured = read_acceptance(source, from_draft, from_gamma, engine)
        start = acceptance_of(measured, gamma)
        found = {
            "rounds": measured.rounds,
            "gamma": measured.gamma,
            "mean_acceptance_length": measured.mean_length,
            "mean_acceptance_length_per_request": measured.mean_length_per_request,
        }
    else:
        start = _given(names[0], numbers[names[0]], gamma, without_bonus, per_request)
    result = converted(start, law, gamma)
    chosen = knobs(result.law, to)
    if source and out is not None:
        write_profile(profile_of(measured, method), out)
    values = units(result.law)
    if as_json:
        settings = {knob.engine: asdict(knob) for knob in chosen}
        print_json({**values, "measured": found, "warnings": list(result.warnings), "knobs": settings})
        return
    rows = [*values.items(), *((f"measured_{name}", value) for name, value in (found or {}).items())]
    print_table(("", "value"), [(name.replace("_", " "), _shown(value)) for name, value in rows])
    for knob in chosen:
        typer.echo(f"\n{knob.engine}: {knob.text or 'not possible'}\n    {knob.note}")
    _warn(result.warnings)


def check(
    new: Annotated[
        list[Path],
        typer.Argument(
            help="A round table or run folder, a speculation_profile.json, an import, or logs of an engine."
        ),
    ],
    against: Annotated[list[Path], typer.Option(help="The same of the system before; may be repeated for log files.")],
    max_length_drop: Annotated[float, typer.Option(help="Share by which the mean length may fall.")] = 0.05,
    max_speedup_drop: Annotated[float, typer.Option(help="Share by which the speedup may fall.")] = 0.05,
    confidence: Annotated[float, typer.Option(help="1 - the chance of a false alarm, over both numbers.")] = 0.95,
    draft: Annotated[str | None, typer.Option(help="Draft to compare, where tables hold several.")] = None,
    gamma: Annotated[int | None, typer.Option(help="Draft length to compare, where tables hold several.")] = None,
    engine: Engine = "auto",
    as_json: Json = False,
) -> None:
    """Fail where acceptance length or speedup fell by more than allowed, beyond noise.

    Exit code 0 if neither did, 1 if one did, 2 on bad use. The speedup is compared where both files are round tables
    with rounds without a draft. Requests give the noise where the files have them.

    Examples:

    - `specdec check docs/lab --against docs/lab --draft prompt-lookup --gamma 5`
    - `specdec check new.log --against old.log --max-length-drop 0.03`
    """
    from analysis.acceptance.sources import check_enough, read_acceptance
    from analysis.regression import check_regression

    judged, before = (read_acceptance(paths, draft, gamma, engine) for paths in (new, against))
    for measured in (judged, before):
        check_enough(measured)
    result = check_regression(judged, before, max_length_drop, max_speedup_drop, confidence)
    if as_json:
        print_json(asdict(result))
    else:
        print_table(
            ("", "old", "new", "change", "interval", "allowed", "p", "detectable", "verdict"),
            [_row(one) for one in result.comparisons],
        )
        for one in result.comparisons:
            typer.echo(f"{one.quantity}: {one.test}; regressed where p < {one.level:g}")
        _warn(result.warnings)
    raise typer.Exit(1 if result.regressed else 0)


def _given(name: str, value: Any, gamma: int | None, without_bonus: bool, per_request: bool) -> Acceptance:
    """Acceptance from numbers on the command line."""
    from analysis.acceptance import conversion

    if name == "--conditional":
        return conversion.from_conditional(_rates(name, value))
    if name == "--marginal":
        return conversion.from_marginal(_rates(name, value))
    if gamma is None:
        raise ValueError(f"{name} needs the draft length: --gamma")
    match name:
        case "--alpha":
            return conversion.from_alpha(value, gamma)
        case "--accepted-share":
            return conversion.from_share(value, gamma)
    return conversion.from_mean(value, gamma, not without_bonus, per_request)


def _row(one: Comparison) -> tuple[str, ...]:
    interval = one.change_interval
    return (
        one.quantity,
        f"{one.old:.4f}",
        f"{one.new:.4f}",
        f"{one.change:+.1%}",
        "unknown" if interval is None else f"{interval[0]:+.1%} to {interval[1]:+.1%}",
        f"{-one.allowed_drop:.1%}",
        "unknown" if one.p_value is None else f"{one.p_value:.2g}",
        "unknown" if one.detectable_drop is None else f"{-one.detectable_drop:.1%}",
        "regressed" if one.regressed else "passed",
    )


def _rates(name: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name} must be numbers with commas between, as in 0.8,0.7, got '{text}'") from error


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return "unknown" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
