"""What commands print: JSON for machines, tables and progress bars for people."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    import pandas as pd

_typed: ContextVar[tuple[str, ...] | None] = ContextVar("typed", default=None)


class Commands(TyperGroup):
    """The commands; they remember the words they are called with, so that what they write can name them."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
        """What parsing begins with."""
        _typed.set(tuple(args))
        return super().make_context(info_name, args, *more, **extra)


def command_line(processes: int = 1) -> str | None:
    """The command as it was typed; None where its function was called from Python.

    Args:
        processes: that torchrun started.
    """
    words = _typed.get()
    if words is None:
        return None
    program = ["specdec"] if processes == 1 else ["torchrun", f"--nproc-per-node={processes}", "-m", "specdec_lab"]
    return shlex.join([*program, *words])


def print_json(value: Any) -> None:
    """Print one line of JSON, an object with the command that made it.

    Raises:
        ValueError: a number is not finite, for JSON has none such.
    """
    if isinstance(value, Mapping):
        value = {**value, "command": command_line()}
    typer.echo(json.dumps(value, allow_nan=False, default=_plain))


def _plain(value: Any) -> Any:
    """NumPy numbers and arrays as JSON's own."""
    return value.tolist()


def print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows under a head: as wide as the terminal, or 160 columns into a file or pipe."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*map(escape, head), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def estimate_cells(result: dict[str, Any], name: str) -> tuple[str, str]:
    """`result[name]` and its interval `result[name_ci]`, as two cells; None where it could not be estimated."""
    if result[name] is None:
        return "none", ""
    interval = result[f"{name}_ci"]
    return f"{result[name]:.4f}", f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "one prompt only"


def interval_cells(row: Mapping[Any, Any], name: str) -> tuple[str, str]:
    """`row[name]` and the interval from `name_lo` to `name_hi`, as two cells; NaN bounds are of one prompt."""
    low, high = row[f"{name}_lo"], row[f"{name}_hi"]
    return f"{row[name]:.3f}", "one prompt only" if low != low else f"{low:.3f} to {high:.3f}"


def json_records(table: pd.DataFrame) -> list[dict[Any, Any]]:
    """Rows for JSON, which has no NaN: what is missing is null."""
    return table.astype(object).where(table.notna(), None).to_dict(orient="records")


class Progress:
    """A progress bar per stage on stderr; silent with --json."""

    def __init__(self, quiet: bool) -> None:
        from rich import progress
        from rich.console import Console

        self.bars = progress.Progress(
            progress.TextColumn("{task.description:14}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[detail]}"),
            console=Console(stderr=True),
            disable=quiet,
        )
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, stage: str, done: int, total: int, detail: str) -> None:
        """Move a stage's bar; a stage not seen before completes those before it."""
        self.bars.start()
        if stage not in self.tasks:
            for task in self.tasks.values():
                self.bars.update(task, completed=self.bars.tasks[task].total, detail="")
            self.tasks[stage] = self.bars.add_task(stage, total=total, detail=detail)
        self.bars.update(self.tasks[stage], completed=done, total=total, detail=detail)
