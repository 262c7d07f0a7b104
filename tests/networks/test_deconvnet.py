"""DeconvNet against its layers written out with torch's own functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks.gradients import check, randomise
from torch import Tensor

from upscore.errors import ArgumentError
from upscore.networks.deconvnet import DeconvNet

DEPTHS = (2, 2, 3, 3, 3)


def plain(state: dict[str, Tensor], x: Tensor) -> Tensor:
    def block(name: str, x: Tensor, transposed: bool, padding: int) -> Tensor:
        function = F.conv_transpose2d if transposed else F.conv2d
        x = function(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)
        bn = f"bn_{name}"
        stats = state[f"{bn}.running_mean"], state[f"{bn}.running_var"], state[f"{bn}.weight"], state[f"{bn}.bias"]
        return F.relu(F.batch_norm(x, *stats))

    pooled = []
    for stage, depth in enumerate(DEPTHS, 1):
        for i in range(1, depth + 1):
            x = block(f"conv{stage}_{i}", x, False, 1)
        size = x.shape[2:]
        x, switches = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
        pooled.append((switches, size))
    x = block("fc7", block("fc6", x, False, 0), False, 0)
    x = block("fc6_deconv", x, True, 0)
    for stage, depth in reversed(list(enumerate(DEPTHS, 1))):
        switches, size = pooled.pop()
        x = F.max_unpool2d(x, switches, 2, 2, output_size=list(size))
        for i in range(1, depth + 1):
            x = block(f"deconv{stage}_{i}", x, True, 1)
    return F.conv2d(x, state["seg_score.weight"], state["seg_score.bias"])


@pytest.mark.parametrize("size", [(64, 96), (33, 51)])
def test_is_its_layers_in_torch(size: tuple[int, int]) -> None:
    network = randomise(DeconvNet(5, width=2, fc_kernel=2))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        found = network(x)
        assert found.shape == (2, 5, *size)
        torch.testing.assert_close(found, plain(network.state_dict(), x))


def test_the_papers_sizes() -> None:
    with torch.device("meta"):
        network = DeconvNet().eval()
        sizes = {}
        for name in ("fc6", "fc7", "fc6_deconv", "deconv5_3", "deconv4_3", "deconv3_3", "deconv2_2", "deconv1_2"):
            hook = lambda _m, _i, y, name=name: sizes.update({name: tuple(y.shape[1:])})  # noqa: E731
            network.get_submodule(name).register_forward_hook(hook)
        assert network(torch.empty(1, 3, 224, 224)).shape == (1, 21, 224, 224)
    assert sizes == {
        "fc6": (4096, 1, 1), "fc7": (4096, 1, 1), "fc6_deconv": (512, 7, 7), "deconv5_3": (512, 14, 14),
        "deconv4_3": (256, 28, 28), "deconv3_3": (128, 56, 56), "deconv2_2": (64, 112, 112),
        "deconv1_2": (64, 224, 224),
    }  # fmt: skip


def test_gradients() -> None:
    check(DeconvNet(2, width=2, fc_kernel=2), 1, 3, 33, 40)


def test_a_picture_that_is_too_small() -> None:
    with pytest.raises(ArgumentError, match=r"x: expected at least 193 rows and columns, got \(192, 224\); for exampl"):
        DeconvNet(width=1)(torch.zeros(1, 3, 192, 224))
