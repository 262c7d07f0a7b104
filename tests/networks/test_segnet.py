"""SegNet against its layers written out with torch's own functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks.gradients import check, randomise
from torch import Tensor

from upscore.networks.segnet import SegNet

DEPTHS = (2, 2, 3, 3, 3)


def plain(state: dict[str, Tensor], x: Tensor) -> Tensor:
    def block(name: str, x: Tensor) -> Tensor:
        x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)
        if name == "conv1_1_D":
            return x
        bn = f"{name}_bn"
        stats = state[f"{bn}.running_mean"], state[f"{bn}.running_var"], state[f"{bn}.weight"], state[f"{bn}.bias"]
        return F.relu(F.batch_norm(x, *stats))

    pooled = []
    for stage, depth in enumerate(DEPTHS, 1):
        for i in range(1, depth + 1):
            x = block(f"conv{stage}_{i}", x)
        size = x.shape[2:]
        x, switches = F.max_pool2d(x, 2, 2, ceil_mode=True, return_indices=True)
        pooled.append((switches, size))
    for stage, depth in reversed(list(enumerate(DEPTHS, 1))):
        switches, size = pooled.pop()
        x = F.max_unpool2d(x, switches, 2, 2, output_size=list(size))
        for i in range(depth, 0, -1):
            x = block(f"conv{stage}_{i}_D", x)
    return x


@pytest.mark.parametrize("size", [(64, 32), (45, 61), (1, 3)])
def test_is_its_layers_in_torch(size: tuple[int, int]) -> None:
    network = randomise(SegNet(5, width=2))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        found = network(x)
        assert found.shape == (2, 5, *size)
        torch.testing.assert_close(found, plain(network.state_dict(), x))


def test_the_decoders_channels_are_the_encoders_reversed() -> None:
    with torch.device("meta"):
        network = SegNet()
    decoder = [name for name in dict(network.named_children()) if name.endswith("_D")]
    assert [network.get_submodule(name).out_channels for name in decoder] == [
        512, 512, 512, 512, 512, 256, 256, 256, 128, 128, 64, 64, 11
    ]  # fmt: skip
    assert decoder[:4] == ["conv5_3_D", "conv5_2_D", "conv5_1_D", "conv4_3_D"]


def test_gradients() -> None:
    check(SegNet(2, width=2), 1, 3, 33, 40)
