"""``upscore train``: train a network on a folder of one's own. One subcommand for each network."""

from __future__ import annotations

import typer

from upscore.cli import train_deconvolutional, train_segmentation, train_upscaling

__all__ = ["app"]

_SEGMENTING = {
    "street": "The small network for streets",
    "fcn32s": "FCN-32s",
    "fcn16s": "FCN-16s",
    "fcn8s": "FCN-8s",
    "deconvnet": "DeconvNet",
    "segnet": "SegNet",
    "unet": "U-Net",
}

app = typer.Typer(help="Train a network on data of your own.", no_args_is_help=True)
app.command("upscale-x2", epilog=train_upscaling.EXAMPLES)(train_upscaling.train)
app.command(train_deconvolutional.NAME, epilog=train_deconvolutional.EXAMPLES)(train_deconvolutional.train)
for name, words in _SEGMENTING.items():
    summary = f"{words}, to tell the classes of pixels."
    app.command(name, short_help=summary, epilog=train_segmentation.EXAMPLES)(train_segmentation.train)
