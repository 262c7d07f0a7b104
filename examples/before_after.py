"""The picture of the README: a detail of a photograph enlarged by bicubic interpolation and by ``upscale-x2``.

python examples/before_after.py          writes docs/images/before_after.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from upscore import networks
from upscore.networks import bicubic
from upscore.tiled.reading import read
from upscore.tiled.upscaling import upscale_rows

HERE = Path(__file__).parent
ZOOM = 2  # each enlarged pixel is shown as so many, a side


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, default=HERE / "photo.png")
    parser.add_argument("--detail", type=int, nargs=4, default=(92, 88, 118, 96), metavar=("X", "Y", "WIDTH", "HEIGHT"))
    parser.add_argument("-o", "--output", type=Path, default=HERE.parent / "docs" / "images" / "before_after.png")
    arguments = parser.parse_args()

    picture = read(arguments.photo)
    planes = picture.rows(0, picture.height)[:3]
    network = networks.find("upscale-x2").load()
    x, y, width, height = (2 * value for value in arguments.detail)
    panels = []
    for large in (
        bicubic.resize(planes, 2 * picture.height, 2 * picture.width),
        upscale_rows(network, planes, 0, picture.height, 0, picture.height),
    ):
        detail = np.rint(255 * large[:, y : y + height, x : x + width].clip(0, 1)).astype(np.uint8)
        panels.append(Image.fromarray(detail.transpose(1, 2, 0)).resize((ZOOM * width, ZOOM * height), 0))

    margin, caption = 8, 30
    size = (2 * panels[0].width + margin, panels[0].height + caption)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for panel, left, text in zip(panels, (0, panels[0].width + margin), ("bicubic x2", "upscore x2"), strict=True):
        sheet.paste(panel, (left, caption))
        draw.text((left + 2, 4), text, fill="black", font=font)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(arguments.output, optimize=True)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
