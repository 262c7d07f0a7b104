"""Draw the landscape of the examples: mountains, a lake, a bare tree, by formula and seed. NumPy and Pillow.

    python examples/draw_photo.py            writes examples/photo.png (480 x 320)

Photographs come with owners; this picture comes with upscore. It is drawn large, with shading, haze, reflections and
twigs thinner than a pixel, and then made smaller the way the training data is: bicubic, antialiased, 8 bits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from upscore.networks import bicubic

WIDTH, HEIGHT = 960, 640
OVERSAMPLED = 2
NORTH, EAST, TURNED = 1664.0, 352.0, 0.2
Array = NDArray[np.float64]


def fractal(size: int, slope: float, seed: int) -> Array:
    """Noise whose spectrum falls as ``frequency ** -slope``: ``(size, size)``, periodic, mean 0, deviation 1."""
    rng = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    f[0, 0] = np.inf
    phases = rng.normal(size=f.shape) + 1j * rng.normal(size=f.shape)
    noise = np.fft.irfft2(phases * f**-slope, (size, size))
    return (noise - noise.mean()) / noise.std()


def bilinear(grid: Array, y: Array, x: Array) -> Array:
    """``grid`` at real coordinates, periodic; further axes of the grid are kept."""
    n = len(grid)
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    v, u = y - y0, x - x0
    if grid.ndim > 2:
        v, u = v[..., None], u[..., None]
    a, b = y0 % n, x0 % n
    c, d = (y0 + 1) % n, (x0 + 1) % n
    return (1 - v) * ((1 - u) * grid[a, b] + u * grid[a, d]) + v * ((1 - u) * grid[c, b] + u * grid[c, d])


def terrain(size: int = 2048) -> tuple[Array, Array]:
    """Heights ``(size, size)`` and colours ``(size, size, 3)`` of a country of ridges, woods and snow."""
    ridges = 1 - np.abs(fractal(size, 2.0, 5)) / 1.6
    rough = fractal(size, 1.75, 2)
    broad = fractal(size, 2.6, 13)
    height = 60 * ridges + 46 * broad + 14 * rough
    dy, dx = np.gradient(height)
    steep = np.hypot(dx, dy)
    fine = fractal(size, 0.7, 4)
    rock = np.array([0.40, 0.37, 0.36]) * (1 + 0.16 * fine[..., None])
    grass = np.array([0.30, 0.35, 0.17]) * (1 + 0.22 * fine[..., None])
    snow = np.array([0.95, 0.96, 1.0]) * (1 + 0.015 * fine[..., None])
    green = smooth((52 - height - 8 * fine) / 20)[..., None] * smooth((2.3 - steep) / 0.8)[..., None]
    colour = rock * (1 - green) + grass * green
    white = smooth((height - 74 + 9 * rough) / 12)[..., None] * smooth((2.6 - steep) / 0.8)[..., None]
    colour = colour * (1 - white) + snow * white
    # Firs: one in every few cells, a narrow cone each, dark, where the ground is neither steep nor high.
    rng = np.random.default_rng(8)
    where = np.argwhere((rng.random((size, size)) < 0.05 * smooth((38 - height + 14 * rough) / 20)) & (steep < 1.6))
    for y, x in where:
        tall = 3.0 + 3.5 * rng.random()
        tint = np.array([0.10, 0.17, 0.08]) * (0.7 + 0.6 * rng.random())
        for j in (-1, 0, 1):
            for i in (-1, 0, 1):
                at = ((y + j) % size, (x + i) % size)
                height[at] += tall * (1.0 if i == j == 0 else 0.25)
                colour[at] = tint
    return height, colour


def smooth(x: Array) -> Array:
    """0 below 0, 1 above 1, smooth between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def landscape(width: int, height: int) -> Array:
    """The view over the country, ``(height, width, 3)`` in [0, 1]."""
    ground, colour = terrain()
    sun = np.array([-0.62, 0.42, 0.66])
    sun /= np.linalg.norm(sun)
    dy, dx = np.gradient(ground)
    normal = np.stack([-dx, np.full_like(dx, 1.6), -dy], axis=-1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    light = np.clip(normal @ sun, 0, None)[..., None]
    lit = colour * (0.34 * np.array([0.72, 0.84, 1.1]) + 1.12 * light * np.array([1.0, 0.93, 0.80]))

    horizon, focal, water = 0.44 * height, 1.35 * width, 5.0
    eye = water + 16
    depth = np.geomspace(30, 1500, 1800)
    across = (np.arange(width) + 0.5 - width / 2) / focal + TURNED
    z, x = depth[:, None] + NORTH, depth[:, None] * across[None, :] + EAST
    level = np.maximum(bilinear(ground, z, x), water)
    level[depth < 60] = water
    elevation = np.maximum.accumulate((level - eye) * focal / depth[:, None], axis=0)  # rows above the horizon
    sky = sky_of(width, height, horizon)
    picture = sky.copy()
    above = horizon - np.arange(height)
    hit = np.stack([np.searchsorted(elevation[:, c], above) for c in range(width)], axis=1)
    land = hit < len(depth)
    hit = np.minimum(hit, len(depth) - 1)
    columns = np.broadcast_to(np.arange(width), hit.shape)
    far = depth[hit]
    painted = bilinear(lit, far + NORTH, far * across[columns] + EAST)
    haze = (1 - np.exp(-((far / 1500) ** 1.3)))[..., None]
    rows, across_rows = np.mgrid[0:height, 0:width] / 1.0
    leaves = bilinear(fractal(1024, 0.6, 41), 0.45 * rows, 0.45 * across_rows)
    painted *= 1 + 0.3 * np.clip(leaves, -2, 2)[..., None]
    painted = painted * (1 - haze) + np.array([0.70, 0.77, 0.87]) * haze
    picture[land] = painted[land]
    wet = land & (level[hit, columns] <= water + 1e-9)
    return mirrored(picture, wet, far, horizon, height)


def sky_of(width: int, height: int, horizon: float) -> Array:
    """Blue that pales towards the horizon, with clouds."""
    t = np.clip(np.arange(height) / horizon, 0, 1)[:, None, None]
    blue = np.array([0.26, 0.47, 0.78]) * (1 - t) + np.array([0.80, 0.87, 0.93]) * t
    y, x = np.mgrid[0:height, 0:width] / height
    distance = 1 / (0.16 + np.clip(1 - y * height / horizon, 0, 1))
    cloud = bilinear(fractal(512, 1.75, 21), 60 * distance + 50, 75 * (x - 0.75) * distance + 300)
    cover = smooth((cloud + 0.35) / 2.2)[..., None]
    return blue * (1 - cover) + np.array([0.99, 0.97, 0.95]) * cover


def mirrored(picture: Array, wet: NDArray[np.bool_], far: Array, horizon: float, height: int) -> Array:
    """Water shows the picture above it, upside down, broken by ripples that shrink with distance."""
    rows, columns = np.nonzero(wet)
    shore = np.where(wet.any(axis=0), wet.argmax(axis=0), height)
    shore = np.rint(np.convolve(np.pad(shore, 8, mode="edge"), np.ones(17) / 17, mode="valid")).astype(int)
    ripple = bilinear(fractal(1024, 1.1, 31), 9e3 / far, columns_of(far) * 60 / far)[rows, columns]
    source = 2 * shore[columns] - rows - 2 + ripple * 2.2 * (rows - horizon) / height * 9
    source = np.clip(source, 0, height - 1)
    reflected = picture.copy()[source.astype(int), columns]
    glance = np.clip((rows - horizon) / (height - horizon), 0, 1)[:, None]
    deep = np.array([0.06, 0.15, 0.18])
    picture[rows, columns] = reflected * (0.85 - 0.5 * glance) + deep * (0.15 + 0.5 * glance)
    return picture


def columns_of(far: Array) -> Array:
    return np.broadcast_to(np.arange(far.shape[1], dtype=float), far.shape)


def foreground(image: Image.Image) -> None:
    """A bare tree and grass at the near shore."""
    rng = np.random.default_rng(3)
    draw = ImageDraw.Draw(image)
    width, height = image.size

    def branch(x: float, y: float, angle: float, length: float, thick: float) -> None:
        steps = 6
        for _ in range(steps):
            angle += rng.normal(0, 0.09)
            nx, ny = x + length / steps * np.cos(angle), y - length / steps * np.sin(angle)
            tone = int(28 + 18 * rng.random())
            draw.line([(x, y), (nx, ny)], fill=(tone + 8, tone, tone - 6), width=max(1, round(thick)))
            if thick > 3:
                side = thick / 2 - 0.5
                draw.line([(x - side, y), (nx - side, ny)], fill=(126, 108, 88), width=max(1, round(thick / 5)))
            x, y = nx, ny
            if thick > 1.2 and rng.random() < 0.2:
                branch(x, y, angle + rng.choice([-1, 1]) * rng.uniform(0.4, 0.9), length * 0.62, thick * 0.5)
        if length > height / 45:
            for turn in (-1, 1):
                branch(x, y, angle + turn * rng.uniform(0.15, 0.55), length * rng.uniform(0.68, 0.84), thick * 0.66)

    branch(0.17 * width, 1.01 * height, 1.5, 0.2 * height, 0.02 * height)
    for _ in range(2600):
        x = rng.random() * width
        root = height * (1.02 - 0.05 * np.sin(3 * x / width + 0.4) * rng.random())
        tall, lean = height * rng.uniform(0.02, 0.10), rng.normal(0.1, 0.35)
        tone = rng.uniform(0.45, 1.25)
        colour = tuple(int(min(255, c * tone)) for c in (118, 116, 52))
        curve = [(x + lean * tall * t**1.8, root - tall * t) for t in np.linspace(0, 1, 7)]
        draw.line(curve, fill=colour, width=int(rng.integers(1, 4)))


def draw_large() -> NDArray[np.uint8]:
    """The picture at 960 x 640, ``(H, W, 3)``."""
    scene = landscape(OVERSAMPLED * WIDTH, OVERSAMPLED * HEIGHT)
    image = Image.fromarray(np.rint(255 * np.clip(scene, 0, 1) ** 0.9).astype(np.uint8))
    foreground(image)
    return halved(np.asarray(image))


def halved(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Half the size, bicubic and antialiased, 8 bits."""
    height, width = picture.shape[:2]
    planes = bicubic.resize(picture.transpose(2, 0, 1).astype(np.float32), height // 2, width // 2)
    return np.rint(planes.clip(0, 255)).astype(np.uint8).transpose(1, 2, 0)


if __name__ == "__main__":
    target = Path(__file__).with_name("photo.png")
    Image.fromarray(halved(draw_large())).save(target, optimize=True)
    print(f"wrote {target}")
