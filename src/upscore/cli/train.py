"""``upscore train``: train a network on a folder of one's own. One subcommand for each network."""

from __future__ import annotations

import typer

from upscore.cli import train_upscaling

__all__ = ["app"]

app = typer.Typer(help="Train a network on data of your own.", no_args_is_help=True)
app.command("upscale-x2", epilog=train_upscaling.EXAMPLES)(train_upscaling.train)
