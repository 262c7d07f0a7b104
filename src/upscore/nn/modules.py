"""``ConvTranspose1d``, ``2d`` and ``3d``: torch's modules, computed by upscore.

They are subclasses of torch's, with the same constructor, attributes and ``state_dict``; what holds for those
(``isinstance``, hooks, parametrizations, pruning, pickling) holds for these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from upscore.errors import ArgumentError
from upscore.geometry import Geometry, Ints, pairs, per_axis
from upscore.nn import functional
from upscore.nn.functional import Padding, Terms

__all__ = ["ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


class _ConvTranspose(torch.nn.modules.conv._ConvTransposeNd):
    """What the three ranks share: the padding that torch does not know, and the forward pass."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Ints,
        stride: Ints = 1,
        padding: Padding = 0,
        output_padding: Ints = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Ints = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        plain = isinstance(padding, int) or (not isinstance(padding, str) and all(isinstance(p, int) for p in padding))
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding if plain else 0,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
        )  # torch's layer of the rank comes next in the order of resolution
        if not plain:
            self.padding = padding if isinstance(padding, str) else pairs("padding", padding, self._rank, least=0)  # type: ignore[assignment]
            # Fails here rather than at the first call.
            self._settle(self.output_padding)

    @property
    def _rank(self) -> int:
        return len(self.kernel_size)

    def forward(self, input: Tensor, output_size: Ints | None = None) -> Tensor:  # noqa: A002
        """The layer on ``input``; ``output_size`` (spatial, or whole) chooses among the sizes that lead back to it.

        Those are the sizes that the ordinary convolution with the same arguments takes to the input's: ``stride``
        many per axis, as in torch and TensorFlow. ``functional`` accepts any.

        Raises:
            ArgumentError: (a ValueError) for another ``output_size``, as torch does.
        """
        size = None if output_size is None else self._choose(input, output_size)
        # As attributes they would be looked for last among the parameters; a parametrized weight is none of them.
        parameters = self._parameters
        weight, bias = parameters.get("weight"), parameters.get("bias")
        function = _FUNCTIONS[self._rank]
        return function(
            input,
            self.weight if weight is None else weight,
            self.bias if bias is None else bias,
            self.stride,
            self.padding,
            self.output_padding if size is None else 0,
            self.groups,
            self.dilation,
            output_size=size,
        )

    def _choose(self, input: Tensor, output_size: Ints) -> tuple[int, ...]:  # noqa: A002
        """``output_size`` without batch and channels, checked."""
        rank = self._rank
        if not isinstance(output_size, int):
            others = input.dim() - rank
            wanted = tuple(output_size)
            output_size = wanted[others:] if len(wanted) == rank + others else wanted
        size = per_axis("output_size", output_size, rank, least=1)
        n = input.shape[-rank:]
        smallest = tuple(self._smallest(n))
        if any(not lo <= m < lo + s for m, lo, s in zip(size, smallest, self.stride, strict=True)):
            largest = tuple(lo + s - 1 for lo, s in zip(smallest, self.stride, strict=True))
            raise ArgumentError(
                "output_size", f"sizes from {smallest} to {largest} for an input of {tuple(n)}", size, f"{largest}"
            )
        return size

    def _smallest(self, n: tuple[int, ...]) -> list[int]:
        if self.padding == "same":
            return [(ni - 1) * s + 1 for ni, s in zip(n, self.stride, strict=True)]
        plain = self._settle(0)
        axes = zip(n, plain.stride, plain.extent, plain.crop, strict=True)
        return [(ni - 1) * s + e - lo - hi for ni, s, e, (lo, hi) in axes]

    def _settle(self, output_padding: Ints) -> Geometry:
        ones = (1, self.in_channels, *(1,) * self._rank)
        terms = Terms(self.stride, self.padding, output_padding, self.groups, self.dilation)
        return functional.settle(self._rank, ones, self.weight.shape, None, terms)


class ConvTranspose1d(_ConvTranspose, torch.nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d``, and ``padding`` may be "same", "valid" or a pair: (N, C_in, L) to (N, C_out, L').

    >>> ConvTranspose1d(2, 3, kernel_size=16, stride=8, padding=4)(torch.ones(1, 2, 100)).shape
    torch.Size([1, 3, 800])
    """


class ConvTranspose2d(_ConvTranspose, torch.nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d``, and ``padding`` may be "same", "valid" or a (before, after) pair per axis.

    Args:
        in_channels, out_channels, kernel_size, stride, output_padding, groups, bias, dilation, padding_mode, device,
            dtype: as in torch.nn.ConvTranspose2d.
        padding: as in :func:`upscore.nn.functional.conv_transpose2d`.

    Shape: (N, C_in, H, W) or (C_in, H, W) to (N, C_out, H', W') or (C_out, H', W').

    For inference the weights are packed once, and again when they change; see :mod:`upscore.nn.packing`.

    >>> layer = ConvTranspose2d(3, 8, kernel_size=(3, 4), stride=2, padding="same")
    >>> layer(torch.ones(1, 3, 5, 7)).shape, layer(torch.ones(1, 3, 5, 7), output_size=(9, 14)).shape
    (torch.Size([1, 8, 10, 14]), torch.Size([1, 8, 9, 14]))
    >>> layer.load_state_dict(torch.nn.ConvTranspose2d(3, 8, (3, 4), 2).state_dict())
    <All keys matched successfully>
    """


class ConvTranspose3d(_ConvTranspose, torch.nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d``, and ``padding`` may be "same", "valid" or a (before, after) pair per axis.

    >>> ConvTranspose3d(2, 3, kernel_size=2, stride=2)(torch.ones(1, 2, 4, 5, 6)).shape
    torch.Size([1, 3, 8, 10, 12])
    """


_FUNCTIONS = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
