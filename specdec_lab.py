"""The `specdec` command line: puts the commands together; each imports what it needs when it is called."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from specdec_commands import (
    comparing,
    converting,
    diagnosing,
    distilling,
    figures,
    importing,
    measuring,
    planning,
    reporting,
    sampling,
    serving,
    simulating,
    sweeping,
    validating,
)
from specdec_commands.console import Commands

app = typer.Typer(
    name="specdec",
    cls=Commands,
    help="Predict, measure and explain the speedup of speculative decoding.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

USAGE_ERROR: Any = typer.BadParameter.__mro__[1]
"""what the library raises for any bad use; it has no public name for it"""

for command in (  # in the order of `specdec --help`
    simulating.simulate,
    simulating.theory,
    serving.serve_sim,
    serving.replay,
    serving.latency,
    sweeping.sweep,
    planning.plan,
    measuring.measure,
    distilling.distill,
    comparing.lab,
    comparing.fit,
    comparing.predict,
    comparing.compare,
    validating.validate_published,
    diagnosing.diagnose,
    reporting.report,
    figures.figures,
    converting.convert,
    converting.check,
    sampling.check_sampler,
    sampling.greedy_diff,
):
    app.command()(command)
app.command("import")(importing.import_log)  # "import" can be no function's name


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, not only its line.")] = False,
) -> None:
    """Predict, measure and explain the speedup of speculative decoding."""
    del debug  # `main` looks for it, wherever it stands


def main() -> None:
    """Run the command line: errors in one line, exit code 2 for bad use, 3 for a fault of ours and 130 for Ctrl-C."""
    words = [word for word in sys.argv[1:] if word != "--debug"]  # wherever it stands
    try:
        code = app(words, prog_name="specdec", standalone_mode=False)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if len(words) < len(sys.argv[1:]):
            raise
        code = _explain(error)
    raise SystemExit(code or 0)


def _explain(error: Exception) -> int:
    """Print an error as one line on stderr, and give its exit code."""
    if isinstance(error, USAGE_ERROR):
        message = " ".join(error.format_message().split()).rstrip(".")
        path = error.ctx.command_path if error.ctx else "specdec"
        if message:  # without one it is no error but the help that a bare `specdec` prints
            typer.echo(f"specdec: {message}; see `{path} --help`", err=True)
        return 2
    if isinstance(error, ValueError | OSError):
        typer.echo(f"specdec: {error}", err=True)
        return 2
    typer.echo(f"specdec: {type(error).__name__}: {error}; `specdec --debug ...` shows where", err=True)
    return 3


if __name__ == "__main__":
    main()
