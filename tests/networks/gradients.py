"""The gradients of a whole network, against differences of its outputs."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and evaluation mode, with parameters and statistics that hide nothing (no zeros, no ones)."""
    generator = torch.Generator().manual_seed(seed)
    network = network.double().eval()
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            if tensor.dim() > 1:
                tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
            elif name.endswith(("running_var", "weight")):
                tensor.copy_(1 + 0.2 * noise.tanh())
            else:
                tensor.copy_(0.1 * noise)
    return network


def check(network: nn.Module, *shape: int, training: bool = False) -> None:
    """The gradients of the input and every parameter, each along a random direction, against central differences.

    ``training`` is for networks without dropout: normalised by the batch, and not by statistics.
    """
    randomise(network).train(training)
    generator = torch.Generator().manual_seed(1)

    def noise(shape: torch.Size) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    values = {name: p.detach().requires_grad_() for name, p in network.named_parameters()}
    values["x"] = noise(torch.Size(shape)).requires_grad_()

    def run(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional_call(network, {k: v for k, v in values.items() if k != "x"}, (values["x"],))

    output = run(values)
    weights = noise(output.shape)
    grads = torch.autograd.grad((output * weights).sum(), list(values.values()))
    step = 1e-7  # so small that hardly a rectifier or a switch changes its mind on the way
    with torch.no_grad():
        for (name, value), grad in zip(values.items(), grads, strict=True):
            assert grad.any(), f"the gradient of {name} is zero and proves nothing"
            way = noise(value.shape)
            way /= way.norm()
            ahead, behind = (run({**values, name: value + sign * step * way}) for sign in (1, -1))
            expected = ((ahead - behind) * weights).sum() / (2 * step)
            found = (grad * way).sum()
            assert abs(found - expected) <= 1e-5 * grad.norm(), f"{name}: {found} is not {expected}"
