"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON, for machines.")]
Seed = Annotated[int, typer.Option(help="Seed; the same seed gives the same result.")]
TargetName = Annotated[str, typer.Option("--target", help="Embedded model, local folder or hub id of the target.")]
Temperature = Annotated[float, typer.Option(help="Sampling temperature; 0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="Keep the k most likely tokens, of target and draft alike.")]
TopP = Annotated[float | None, typer.Option(help="Keep the most likely tokens up to this probability.")]
MinP = Annotated[float | None, typer.Option(help="Keep tokens at least this likely relative to the likeliest.")]
Prompts = Annotated[
    Path | None, typer.Option(help='JSONL of {"prompt": ...} or Spec-Bench questions; the embedded set if left out.')
]
Draft = Annotated[
    str,
    typer.Option(
        help="distilled, int8[:L], int8-skip:A-B, early-exit:L, prompt-lookup[:N], suffix[:DEPTH], synthetic:ALPHA, "
        "suffix+NAME (a lookup, and another draft where it finds nothing), a local folder or a hub id."
    ),
]
Device = Annotated[str, typer.Option(help="'cpu', 'cuda', 'cuda:1', ...")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; by default what suits the device.")]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the forwards, as CUDA graphs on a GPU; minutes, the first time.")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; by default as many as torch takes.")]
RunFolder = Annotated[Path, typer.Argument(help="A folder that `specdec lab` or `specdec measure` wrote.")]

DEFAULT_TARGET = "smollm2-135m-instruct"
