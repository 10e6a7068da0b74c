"""The `specdec` command line: puts the commands together; each imports what it needs when it is called."""

from __future__ import annotations

import sys
from typing import Annotated

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

app = typer.Typer(
    name="specdec",
    help="Predict, measure and explain the speedup of speculative decoding.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
    del debug  # `main` looks for it, so that errors before this call are covered too


def main() -> None:
    """Run the command line: errors in one line, exit code 2 for bad use, 3 for a fault of ours and 130 for Ctrl-C."""
    debug = "--debug" in sys.argv[1:]
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        if isinstance(error, ValueError):
            typer.echo(f"specdec: {error}", err=True)
            raise SystemExit(2) from None
        typer.echo(f"specdec: {type(error).__name__}: {error}; `specdec --debug ...` shows where", err=True)
        raise SystemExit(3) from None


if __name__ == "__main__":
    main()
