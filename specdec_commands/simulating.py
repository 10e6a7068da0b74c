"""`specdec simulate` and `specdec theory`: neither needs a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specdec_commands.console import estimate_cells, print_json, print_table
from specdec_commands.options import Json, Seed


def simulate(
    alpha: Annotated[float, typer.Option(help="Acceptance rate: chance that a reached drafted token is accepted.")],
    gamma: Annotated[int, typer.Option(help="Draft length in tokens; 0 decodes without a draft.")],
    cost_ratio: Annotated[float, typer.Option(help="One draft forward / one target forward with one new token.")],
    verify_ratio: Annotated[float, typer.Option(help="One target forward with gamma+1 new tokens / with one.")] = 1.0,
    rounds: Annotated[int, typer.Option(help="Rounds to simulate.")] = 200_000,
    seed: Seed = 0,
    engine: Annotated[str, typer.Option(help="'numpy', 'simpy', or 'auto': numpy where nothing contends.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Also write the round table (.parquet or .jsonl).")] = None,
    as_json: Json = False,
) -> None:
    """Simulate one request and print its speedup, with 95% intervals. No GPU, no model.

    Times are in units of one target forward with one new token.

    Examples:

    - `specdec simulate --alpha 0.8 --gamma 5 --cost-ratio 0.05 --verify-ratio 1.2`
    """
    from sim import engine as engines
    from sim.records import write_rounds
    from sim.theory import expected_tokens, speedup

    scenario = engines.ratio_scenario(alpha, gamma, cost_ratio, verify_ratio, rounds)
    result = engines.simulate_speedup(scenario, seed, engine)  # type: ignore[arg-type]  # checked there, with advice
    if out is not None:
        write_rounds(engines.simulate(scenario, seed, engine), out)  # type: ignore[arg-type]  # as above
    if as_json:
        print_json(result)
        return
    exact = float(expected_tokens(alpha, gamma)), float(speedup(alpha, gamma, cost_ratio, verify_ratio))
    print_table(
        ("", "simulated", "95% interval", "closed form"),
        [
            ("block efficiency [tokens/round]", *estimate_cells(result, "block_efficiency"), f"{exact[0]:.4f}"),
            ("speedup", *estimate_cells(result, "speedup"), f"{exact[1]:.4f}"),
        ],
    )
    typer.echo(f"{result['rounds']:,} rounds, {result['rounds_per_second']:,.0f} rounds simulated per second")


def theory(as_json: Json = False) -> None:
    """Print the source algorithm's speedup table beside its formula and the exact expected tokens per round.

    The formula 1/(1 - alpha + alpha/gamma) is an approximation; exact is Leviathan et al. 2023, eq. 1, which is the
    speedup where drafting is free.

    Examples:

    - `specdec theory`
    """
    from sim.theory import source_table

    table = source_table()
    if as_json:
        print_json(table.to_dict(orient="records"))
        return
    print_table(
        ("alpha", "gamma", "printed", "formula", "exact E[tokens]"),
        [
            (f"{r.alpha:g}", f"{r.gamma}", f"{r.printed:.1f}", f"{r.formula:.3f}", f"{r.exact:.3f}")
            for r in table.itertuples()
        ],
    )
