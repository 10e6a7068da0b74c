"""The `specdec` command line: puts the commands together; each imports what it needs when it is called."""

from __future__ import annotations

import typer

from specdec_commands import comparing, distilling, measuring, sampling, simulating

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
    measuring.measure,
    distilling.distill,
    comparing.lab,
    comparing.fit,
    comparing.predict,
    comparing.compare,
    sampling.check_sampler,
    sampling.greedy_diff,
):
    app.command()(command)


def main() -> None:
    """Run the command line: errors in one line, exit code 2 for bad use and 130 for Ctrl-C."""
    try:
        app(standalone_mode=True)
    except ValueError as error:
        typer.echo(f"specdec: {error}", err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
