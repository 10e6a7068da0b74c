"""`specdec lab`, `fit`, `predict` and `compare`: predictions from calibration, beside measurements."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specdec_commands.console import Progress, command_line, interval_cells, json_records, print_json, print_table
from specdec_commands.loading import load_if_it_fits, longest_prompt_tokens, sampling_settings
from specdec_commands.options import (
    DEFAULT_TARGET,
    Compile,
    Device,
    Dtype,
    Json,
    MinP,
    Prompts,
    RunFolder,
    Seed,
    TargetName,
    Temperature,
    Threads,
    TopK,
    TopP,
)

if TYPE_CHECKING:
    from analysis.fit import Calibration


def lab(
    out: Annotated[Path, typer.Option(help="Run folder.")],
    target: TargetName = DEFAULT_TARGET,
    draft: Annotated[
        list[str] | None,
        typer.Option(help="NAME@CALIBRATED:MEASURED,...: a draft, the gamma to calibrate it at, and those to predict."),
    ] = None,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    prompts: Prompts = None,
    calibration_prompts: Annotated[int, typer.Option(help="Calibration prompts per category.")] = 8,
    evaluation_prompts: Annotated[int, typer.Option(help="Held-out prompts per category.")] = 10,
    max_new_tokens: Annotated[int, typer.Option(help="Output tokens per prompt and configuration.")] = 18,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = None,
    compiled: Compile = False,
    threads: Threads = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder, if there is one.")] = False,
    as_json: Json = False,
) -> None:
    """Calibrate, predict configurations that calibration never saw, measure them, and compare.

    Writes rounds.parquet, forwards.parquet, run.json, comparison.csv, report.md and the figure (PNG, PDF, CSV). Ctrl-C
    keeps what is measured; `--resume` goes on from there.

    Examples:

    - `specdec lab --out runs/lab --draft prompt-lookup@5:2,3 --draft early-exit:24@2:1`
    """
    from real import experiment
    from real.prompt_sets import EMBEDDED_PROMPTS, read_prompts
    from real.tensor_parallel import world

    if world()[1] > 1:
        raise ValueError(
            "`specdec lab` runs in one process; measure a target that needs several with `specdec measure`"
        )
    plan = experiment.Plan(
        drafts=tuple(experiment.DraftPlan.parse(text) for text in draft or experiment.DEFAULT_DRAFTS),
        settings=sampling_settings(temperature, top_k, top_p, min_p),
        calibration_prompts=calibration_prompts,
        evaluation_prompts=evaluation_prompts,
        max_new_tokens=max_new_tokens,
        contexts=(64, 256),
        repeats=12,
        seed=seed,
    )
    prompt_set = read_prompts(prompts)
    loaded = load_if_it_fits(
        target, device, dtype, threads, drafts=[one.name for one in plan.drafts], compiled=compiled,
        tokens=max(longest_prompt_tokens(prompt_set), *plan.contexts) + max_new_tokens + plan.new_tokens[-1],
        caches=2 + sum(len(one.evaluation_gammas) for one in plan.drafts),
    )  # fmt: skip
    with Progress(quiet=as_json) as progress:
        try:
            experiment.run(
                loaded, prompt_set, plan, out, resume, progress,
                command=command_line(), prompts_file=prompts or EMBEDDED_PROMPTS,
            )  # fmt: skip
        except KeyboardInterrupt:
            again = command_line() or ""
            again += "" if resume else " --resume"
            typer.echo(f"interrupted; {out} keeps what is measured so far. Resume with: {again}", err=True)
            raise typer.Exit(130) from None
    _compare(out, seed, as_json)


def fit(folder: RunFolder, seed: Seed = 0, as_json: Json = False) -> None:
    """Fit latency and acceptance to a run's calibration rounds, and say where a fit is poor.

    Examples:

    - `specdec fit docs/lab`
    """
    from analysis.fit.summary import fit_summary
    from analysis.report import acceptance_section, costs_section, latency_section

    calibration = _calibrate(folder, seed)
    if as_json:
        print_json(fit_summary(calibration))
        return
    for section in (acceptance_section, latency_section, costs_section):
        typer.echo(section(calibration) + "\n")


def predict(
    folder: RunFolder,
    draft: Annotated[str | None, typer.Option(help="A calibrated draft; all of them if left out.")] = None,
    gamma: Annotated[list[int] | None, typer.Option(help="Draft lengths to predict, e.g. --gamma 2 --gamma 4.")] = None,
    prompts: Annotated[int, typer.Option(help="Prompts a measurement would have; sets the interval's width.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Output tokens per prompt.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(help="Length of a prompt in tokens.")] = 100,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Predict the speedup of any draft length and category from a run's calibration, with 95% predictive intervals.

    Examples:

    - `specdec predict docs/lab --draft prompt-lookup --gamma 2 --gamma 5`
    """
    from analysis import predict as prediction

    calibration = _calibrate(folder, seed)
    names = [draft] if draft else sorted(calibration.drafts)
    design = prediction.make_design(calibration, names, gamma or [1, 2, 3, 4], prompts, max_new_tokens, prompt_tokens)
    table = prediction.predict(calibration, design, seed)
    if as_json:
        print_json(json_records(table))
        return
    print_table(
        ("draft", "gamma", "category", "speedup", "95% interval"),
        [
            (row["draft"], str(row["gamma"]), row["category"], *interval_cells(row, "predicted"))
            for row in table.to_dict(orient="records")
        ],
    )


def compare(folder: RunFolder, seed: Seed = 0, as_json: Json = False) -> None:
    """Predict a run's held-out configurations again and compare with what was measured; rewrites report and figure.

    Examples:

    - `specdec compare docs/lab`
    """
    _compare(folder, seed, as_json)


def _compare(folder: Path, seed: int, as_json: bool) -> None:
    """Predict from the calibration rounds, compare with the evaluation rounds, write the report and the figure."""
    from analysis.compare import compare, measured, score
    from analysis.predict import design_of, predict
    from analysis.report import headline, write_report
    from paper_figs.predicted_vs_measured import draw
    from sim.records import read_metadata, read_rounds, write_atomically

    metadata, rounds = read_metadata(folder / "run.json"), read_rounds(folder / "rounds.parquet")
    calibration = _calibrate(folder, seed)
    predictions = predict(calibration, design_of(rounds, metadata.settings["max_new_tokens"]), seed)
    comparison = compare(predictions, measured(rounds, seed))
    write_atomically(folder / "comparison.csv", lambda part: comparison.to_csv(part, index=False))
    caption = f"{metadata.target} on {metadata.device}, {metadata.threads} threads, {metadata.dtype}"
    held_out = comparison[comparison["held_out"]]
    figure = draw(held_out, folder, caption)
    report = write_report(folder, metadata, calibration, comparison, figure["png"])
    result = score(comparison, seed=seed)
    if as_json:
        print_json({**asdict(result), "configurations": json_records(comparison), "report": str(report)})
        return
    print_table(
        ("configuration", "predicted", "95% interval", "measured", "95% interval", "error"),
        [
            (
                row["config"],
                *interval_cells(row, "predicted"),
                *interval_cells(row, "measured"),
                f"{row['error_percent']:+.1f}%",
            )
            for row in held_out.to_dict(orient="records")
        ],
    )
    typer.echo(headline(result).replace("**", "") + f"\nreport: {report}")


def _calibrate(folder: Path, seed: int) -> Calibration:
    from analysis.fit import calibrate
    from sim.forwards import read_forwards
    from sim.records import read_rounds

    return calibrate(read_rounds(folder / "rounds.parquet"), read_forwards(folder / "forwards.parquet"), seed)
