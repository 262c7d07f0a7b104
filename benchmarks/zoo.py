"""Whole networks around transposed convolutions, as published, with random weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Shape = tuple[int, ...]


def _up(c_in: int, c_out: int, k: int = 4, s: int = 2, p: int = 1, *, bias: bool = False) -> list[nn.Module]:
    return [nn.ConvTranspose2d(c_in, c_out, k, s, p, bias=bias), nn.BatchNorm2d(c_out), nn.ReLU()]


def dcgan() -> nn.Module:
    """The generator of Radford, Metz, Chintala 2015: 100 numbers to a 64x64 picture."""
    widths = (1024, 512, 256, 128)
    layers = _up(100, widths[0], 4, 1, 0)
    for c_in, c_out in itertools.pairwise(widths):
        layers += _up(c_in, c_out)
    return nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], 3, 4, 2, 1), nn.Tanh())


class Pix2Pix(nn.Module):
    """The U-Net generator of Isola et al. 2017 at 256x256: eight levels down, eight up, each joined by a skip."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 64, 128, 256, 512, 512, 512, 512, 512)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, (c_in, c_out) in enumerate(itertools.pairwise(widths)):
            norm: list[nn.Module] = [nn.BatchNorm2d(c_out)] if 0 < level < 7 else []
            act: list[nn.Module] = [nn.LeakyReLU(0.2)] if level else []
            self.down.append(nn.Sequential(*act, nn.Conv2d(c_in, c_out, 4, 2, 1), *norm))
            skip = c_out * (1 if level == 7 else 2)
            tail: list[nn.Module] = [nn.BatchNorm2d(c_in)] if level else [nn.Tanh()]
            self.up.append(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(skip, c_in, 4, 2, 1), *tail))

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for down in self.down:
            x = down(x)
            skips.append(x)
        x = self.up[7](skips[7])
        for level in range(6, -1, -1):
            x = self.up[level](torch.cat([x, skips[level]], 1))
        return x


class _ResidualBlock1d(nn.Module):
    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()

        def convolution(dilation: int) -> nn.Module:
            return nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)

        self.first = nn.ModuleList(convolution(d) for d in (1, 3, 5))
        self.second = nn.ModuleList(convolution(1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(functional.leaky_relu(first(functional.leaky_relu(x, 0.1)), 0.1))
        return x


class _Mean(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([block(x) for block in self]).mean(0)


class HiFiGAN(nn.Module):
    """The V1 generator of Kong, Kim, Bae 2020: 80 mel bands to a waveform 256 times as long."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv1d(80, 512, 7, padding=3), nn.Conv1d(32, 1, 7, padding=3)
        self.ups, self.fusions = nn.ModuleList(), nn.ModuleList()
        for level, (rate, kernel) in enumerate(((8, 16), (8, 16), (2, 4), (2, 4))):
            c = 512 >> level
            self.ups.append(nn.ConvTranspose1d(c, c // 2, kernel, rate, (kernel - rate) // 2))
            self.fusions.append(_Mean(_ResidualBlock1d(c // 2, k) for k in (3, 7, 11)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        for up, fusion in zip(self.ups, self.fusions, strict=True):
            x = up(functional.leaky_relu(x, 0.1))
            x = fusion(x)
        return torch.tanh(self.after(functional.leaky_relu(x)))


class UNet(nn.Module):
    """Ronneberger, Fischer, Brox 2015, with padded convolutions; in 3D that of Çiçek et al. 2016."""

    def __init__(self, rank: int, channels_in: int, widths: tuple[int, ...], classes: int) -> None:
        super().__init__()
        convolution: Any = (nn.Conv2d, nn.Conv3d)[rank - 2]
        transposed: Any = (nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 2]
        norm: Any = (nn.BatchNorm2d, nn.BatchNorm3d)[rank - 2]
        self.pool: nn.Module = (nn.MaxPool2d, nn.MaxPool3d)[rank - 2](2)

        def double(c_in: int, c_out: int) -> nn.Module:
            one = [convolution(c_in, c_out, 3, padding=1, bias=False), norm(c_out), nn.ReLU()]
            return nn.Sequential(*one, convolution(c_out, c_out, 3, padding=1, bias=False), norm(c_out), nn.ReLU())

        self.down = nn.ModuleList(double(a, b) for a, b in zip((channels_in, *widths), widths, strict=False))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(transposed(a, b, 2, 2) for a, b in pairs)
        self.join = nn.ModuleList(double(2 * b, b) for _, b in pairs)
        self.score = convolution(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for down in self.down:
            x = down(self.pool(x) if skips else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.score(x)  # type: ignore[no-any-return]


class SegNet(nn.Module):
    """Pooling with switches down, unpooling and deconvolution up: Noh, Hong, Han 2015; Badrinarayanan et al. 2017."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512), classes: int = 12) -> None:
        super().__init__()
        steps = list(zip((3, *widths), widths, strict=False))
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in steps
        )
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.up = nn.ModuleList(nn.Sequential(*_up(b, classes if a == 3 else a, 3, 1)) for a, b in reversed(steps))

    def forward(self, x: Tensor) -> Tensor:
        switches: list[Tensor] = []
        for down in self.down:
            x, where = self.pool(down(x))
            switches.append(where)
        for up in self.up:
            x = up(self.unpool(x, switches.pop()))
        return x


class FCN8sHead(nn.Module):
    """From VGG's features to scores for each pixel: Long, Shelhamer, Darrell 2015."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        self.fr, self.pool4, self.pool3 = (nn.Conv2d(c, classes, 1) for c in (4096, 512, 256))
        self.upscore2 = nn.ConvTranspose2d(classes, classes, 4, 2, bias=False)
        self.upscore4 = nn.ConvTranspose2d(classes, classes, 4, 2, bias=False)
        self.upscore8 = nn.ConvTranspose2d(classes, classes, 16, 8, bias=False)

    def forward(self, fc7: Tensor, pool4: Tensor, pool3: Tensor) -> Tensor:
        x: Tensor = self.upscore2(self.fr(fc7))
        x = self.upscore4(x + self.pool4(pool4)[..., 5 : 5 + x.shape[-2], 5 : 5 + x.shape[-1]])
        x = self.upscore8(x + self.pool3(pool3)[..., 9 : 9 + x.shape[-2], 9 : 9 + x.shape[-1]])
        return x[..., 31 : 31 + 500, 31 : 31 + 500]


class DBNetHead(nn.Module):
    """The two branches that find text: Liao et al. 2020."""

    def __init__(self) -> None:
        super().__init__()

        def branch() -> nn.Module:
            first = [nn.Conv2d(256, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
            return nn.Sequential(*first, *_up(64, 64, 2, 2, 0), nn.ConvTranspose2d(64, 1, 2, 2), nn.Sigmoid())

        self.binary, self.threshold = branch(), branch()

    def forward(self, x: Tensor) -> Tensor:
        binary, threshold = self.binary(x), self.threshold(x)
        return torch.cat([binary, threshold, torch.sigmoid(50 * (binary - threshold))], 1)


def pose_head() -> nn.Module:
    """Three deconvolutions on a ResNet's features: Xiao, Wu, Wei 2018."""
    return nn.Sequential(*_up(2048, 256), *_up(256, 256), *_up(256, 256), nn.Conv2d(256, 17, 1))


class _Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.GroupNorm(32, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1)),
            *(nn.GroupNorm(32, c_out), nn.SiLU(), nn.Conv2d(c_out, c_out, 3, padding=1)),
        )
        self.skip: nn.Module = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.body(x)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, -1)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.out(y)  # type: ignore[no-any-return]


def vae_decoder() -> nn.Module:
    """The decoder of latent diffusion (Rombach et al. 2022): nearest upsampling, then a convolution."""
    layers: list[nn.Module] = [nn.Conv2d(4, 512, 3, padding=1), _Residual(512, 512), _Attention(512)]
    layers.append(_Residual(512, 512))
    c_in = 512
    for level, c_out in enumerate((512, 512, 256, 128)):
        layers += [_Residual(c_in, c_out), _Residual(c_out, c_out), _Residual(c_out, c_out)]
        if level < 3:
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(c_out, c_out, 3, padding=1)]
        c_in = c_out
    return nn.Sequential(*layers, nn.GroupNorm(32, 128), nn.SiLU(), nn.Conv2d(128, 3, 3, padding=1))


def nearest(channels: int) -> nn.Module:
    """Nearest upsampling and a convolution, the "resize-convolution" of Odena, Dumoulin, Olah 2016."""
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, channels, 3, padding=1))


@dataclass(frozen=True)
class Network:
    """How to build it, and the shapes of what goes in."""

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[Shape, ...]


NETWORKS: tuple[Network, ...] = (
    Network("DCGAN generator", dcgan, ((1, 100, 1, 1),)),
    Network("pix2pix generator", Pix2Pix, ((1, 3, 256, 256),)),
    Network("HiFi-GAN V1 generator", HiFiGAN, ((1, 80, 50),)),
    Network("U-Net", lambda: UNet(2, 3, (64, 128, 256, 512, 1024), 2), ((1, 3, 128, 128),)),
    Network("SegNet", SegNet, ((1, 3, 176, 240),)),
    Network("FCN-8s head", FCN8sHead, ((1, 4096, 16, 16), (1, 512, 44, 44), (1, 256, 88, 88))),
    Network("DBNet head", DBNetHead, ((1, 256, 160, 160),)),
    Network("pose head", pose_head, ((1, 2048, 8, 6),)),
    Network("VAE decoder", vae_decoder, ((1, 4, 16, 16),)),
    Network("nearest + conv, 64 channels", lambda: nearest(64), ((1, 64, 128, 128),)),
    Network("nearest + conv, 256 channels", lambda: nearest(256), ((1, 256, 64, 64),)),
    Network("nearest + conv, 512 channels", lambda: nearest(512), ((1, 512, 32, 32),)),
    Network("3D U-Net", lambda: UNet(3, 1, (32, 64, 128, 256), 3), ((1, 1, 32, 48, 48),)),
)
TRAINED: tuple[Network, ...] = (
    Network("DCGAN generator, training step", dcgan, ((16, 100, 1, 1),)),
    Network("U-Net, training step", lambda: UNet(2, 3, (32, 64, 128, 256), 2), ((2, 3, 128, 128),)),
)
