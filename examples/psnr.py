"""PSNR of ``upscale-x2`` and of bicubic interpolation over a folder of pictures.

    python examples/psnr.py photos                       the photographs that training held out
    python examples/psnr.py Set5 --all                   every picture of the folder

As the papers measure: each picture is halved (bicubic, antialiased, 8 bits), enlarged, and compared on Y of BT.601
without 2 border pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from upscore import networks
from upscore.networks.colour import psnr
from upscore.training.upscaling import CROP, BicubicUpscaling, choose_held_out, luma, shrink, upscaled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--all", action="store_true", help="every picture, not only the held-out ones")
    parser.add_argument("--weights", type=Path, help="weights other than the bundled ones")
    arguments = parser.parse_args()

    paths = sorted(path for path in arguments.folder.iterdir() if path.is_file())
    if not arguments.all:
        apart = choose_held_out([path.name for path in paths])
        paths = [path for path in paths if path.name in apart]
    ways = {"bicubic": BicubicUpscaling(), "upscale-x2": networks.find("upscale-x2").load(arguments.weights)}
    scores = []
    with torch.inference_mode():
        for path in paths:
            large = luma(path)
            small = shrink(large)
            scores.append([psnr(upscaled(way, small), large, crop=CROP) for way in ways.values()])
            print(f"{path.name:30}", *(f"{name} {score:6.2f}" for name, score in zip(ways, scores[-1], strict=True)))
    bicubic, network = np.mean(scores, axis=0)
    print(f"mean of {len(scores)}: bicubic {bicubic:.3f} dB, upscale-x2 {network:.3f} dB, {network - bicubic:+.3f} dB")


if __name__ == "__main__":
    main()
