"""The command ``upscore``: assembles the subcommands, turns errors into one line and an exit code."""

from __future__ import annotations

import signal
import sys

import typer

from upscore._version import __version__
from upscore.cli import caffe, evaluate, explain, models, run, size, train, translate, visualize
from upscore.errors import UpscoreError

app = typer.Typer(
    name="upscore",
    help="The transposed convolution (deconvolution) and the networks built on it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.command("evaluate", epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command("explain", epilog=explain.EXAMPLES)(explain.explain)
app.command("run", epilog=run.EXAMPLES)(run.run)
app.command("models", epilog=models.EXAMPLES)(models.models)
app.command("size", epilog=size.EXAMPLES)(size.size)

app.command("translate", epilog=translate.EXAMPLES)(translate.translate)
app.command("visualize", epilog=visualize.EXAMPLES)(visualize.visualize)
app.add_typer(caffe.app, name="caffe")
app.add_typer(train.app, name="train")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"upscore {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """The options of the command itself."""


def main() -> None:
    """Run the command; an UpscoreError or a missing file is one line on stderr and exit code 2, Ctrl-C is 130.

    A termination leaves as an exit does, so that no half-written file stays.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        app()
    except (UpscoreError, OSError) as error:
        typer.echo(f"upscore: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("upscore: interrupted", err=True)
        sys.exit(130)
