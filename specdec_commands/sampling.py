"""`specdec check-sampler` and `specdec greedy-diff`: does a sampler keep the target's distribution?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specdec_commands.console import Progress, command_line, print_json, print_table
from specdec_commands.loading import load_if_it_fits
from specdec_commands.options import DEFAULT_TARGET, Device, Draft, Dtype, Json, Prompts, Seed, TargetName, Threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


def check_sampler(
    sampler: Annotated[
        str | None, typer.Argument(help="module:callable; the current directory is searched too.")
    ] = None,
    gamma: Annotated[int, typer.Option(help="Draft length in tokens.")] = 4,
    vocab: Annotated[int, typer.Option(help="Vocabulary size of the trial, at least 3.")] = 8,
    max_samples: Annotated[
        int | None, typer.Option(help="Rounds at most; by default what detects a total variation of 0.005 everywhere.")
    ] = None,
    seed: Seed = 0,
    self_test: Annotated[bool, typer.Option("--self-test", help="Try the harness on samplers of known worth.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for check.json and a plot of where the mass moved.")] = None,
    as_json: Json = False,
) -> None:
    """Test whether a sampler is lossless: exit code 0 if it is, 1 if not, 2 on bad use.

    The sampler is `sampler(p, q, n, rng) -> int array [n, gamma+1]` with p [gamma+1, vocab] or [n, gamma+1, vocab] and
    q alike with gamma rows. It drafts from q itself; row i is round i of one stream, emitted tokens first, -1 after the
    last. A correct sampler is called lossy with probability 1e-9 at most.

    Examples; the second tries a faulty one of this lab's own:

    - `specdec check-sampler my_engine.sampling:verify --gamma 4 --vocab 8`
    - `specdec check-sampler analysis.losslessness.stateful_mutants:bonus_missing --gamma 2 --vocab 4`
    """
    from analysis import losslessness

    if self_test:
        rows = losslessness.self_test(seed, max_samples)
        if as_json:
            print_json([asdict(row) | {"right": row.right} for row in rows])
        else:
            typer.echo(losslessness.markdown(rows))
        raise typer.Exit(0 if all(row.right for row in rows) else 1)
    if sampler is None:
        raise ValueError("name a sampler as module:callable, or ask for --self-test")
    tested = losslessness.load_callable(sampler)
    if not as_json:
        planned = losslessness.plan(gamma, vocab, max_samples)
        typer.echo(
            f"up to {planned.rounds:,} rounds, {planned.hypotheses:,} hypotheses; a total variation of "
            f"{planned.detectable_tv:.4f} at any position or pair is detected with 99.9% power",
            err=True,
        )
    try:
        result = losslessness.check(tested, gamma, vocab, max_samples, seed)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"{sampler} raised {type(error).__name__}: {error}") from error
    if out is not None:
        from paper_figs.mass_moved import draw
        from sim.records import write_json

        write_json(result.to_dict() | {"command": command_line()}, out / "check.json")
        draw(result, out, sampler)
    if as_json:
        print_json(result.to_dict())
    else:
        typer.echo(f"{result.verdict}\n\n{result.table()}")
    raise typer.Exit(0 if result.lossless else 1)


def greedy_diff(
    draft: Draft,
    gamma: Annotated[int, typer.Option(help="Draft length in tokens.")] = 4,
    target: TargetName = DEFAULT_TARGET,
    prompts: Prompts = None,
    limit: Annotated[int | None, typer.Option(help="Compare the first so many prompts of every category.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Output tokens per prompt.")] = 64,
    device: Device = "cpu",
    dtype: Dtype = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Compare greedy outputs without and with a draft; call each first difference a numeric tie or a bug.

    Exit code 0 where there is no bug, else 1.

    Examples:

    - `specdec greedy-diff --draft prompt-lookup --gamma 6`
    """
    from analysis.losslessness import classify_divergence
    from real.greedy_diff import GREEDY, greedy_pair
    from real.loading import load_draft
    from real.prompt_sets import first_of_each, read_prompts

    chosen = first_of_each(read_prompts(prompts), limit)
    loaded = load_if_it_fits(target, device, dtype, threads)
    source = load_draft(draft, loaded, GREEDY)
    found = []
    with Progress(quiet=as_json) as progress:
        for index, prompt in enumerate(chosen):
            progress("greedy", index, len(chosen), prompt.id)
            pair = greedy_pair(loaded, source, loaded.encode(prompt.text), gamma, max_new_tokens)
            divergence = classify_divergence(
                pair.reference,
                pair.other,
                _array(pair.reference_logits),
                _array(pair.other_logits),
                dtype=str(loaded.decoder.dtype).removeprefix("torch."),
                width=loaded.decoder.width,
                layers=loaded.decoder.layers,
            )
            found.append({"prompt": prompt.id, **divergence.to_dict()})
        progress("greedy", len(chosen), len(chosen), "")
    if as_json:
        print_json(found)
    else:
        print_table(("prompt", "verdict"), [(row["prompt"], row["verdict"]) for row in found])
    raise typer.Exit(1 if any(row["kind"] == "bug" for row in found) else 0)


def _array(logits: Tensor | None) -> NDArray[np.float64] | None:
    return None if logits is None else logits.double().cpu().numpy()
