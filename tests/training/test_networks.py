"""The networks that can be trained, and what they can begin from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from upscore.cli import train
from upscore.errors import ArgumentError, FileFormatError
from upscore.networks.fcn import FCN16s, FCN32s
from upscore.training.networks import NETWORKS, begin_from, build, weights

# DeconvNet's encoder ends in a window of 7x7 at a 32nd; a smaller one does for small pictures.
OPTIONS: dict[str, dict[str, Any]] = {name: {"width": 1} for name in NETWORKS} | {
    "deconvnet": {"width": 1, "fc_kernel": 2}
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_scores_every_pixel_and_has_a_gradient(name: str) -> None:
    network = build(name, 5, OPTIONS[name])
    scores = network(torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    assert scores.shape == (2, 5, 64, 96)
    scores.square().mean().backward()
    learned = [p for p in network.parameters() if p.requires_grad]
    assert learned
    assert any(p.grad is not None for p in learned)


def test_the_command_has_a_subcommand_for_each() -> None:
    names = {command.name for command in train.app.registered_commands}
    assert names >= {*NETWORKS, "upscale-x2"}


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(
        ArgumentError, match=r"network: expected one of street, fcn32s, .*, got 'alexnet'; for example st"
    ):
        build("alexnet", 5, {})
    with pytest.raises(
        ArgumentError, match=r"option: expected one of .*padding, .*, got 'paddings'; for example --opt"
    ):
        build("fcn8s", 5, {"paddings": 1})
    with pytest.raises(ArgumentError, match=r"padding: expected 100"):
        build("fcn8s", 5, {"padding": 3})


def test_weights_are_read_from_safetensors_torchs_files_and_checkpoints(tmp_path: Path) -> None:
    state = {"weight": torch.arange(6.0).view(2, 3)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pth")
    torch.save({"best": state, "network": {}}, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pth", "a.pt"):
        assert torch.equal(weights(tmp_path / name)["weight"], state["weight"])
    (tmp_path / "b.safetensors").write_bytes(b"short")
    with pytest.raises(FileFormatError, match=r"b.safetensors: not weights in safetensors"):
        weights(tmp_path / "b.safetensors")


def test_an_fcn_begins_from_a_coarser_one_and_from_its_own(tmp_path: Path) -> None:
    coarse, fine, other = FCN32s(5, width=1), FCN16s(5, width=1), FCN32s(5, width=1)
    torch.save(coarse.state_dict(), tmp_path / "32s.pth")
    for network in (fine, other):
        begin_from(network, tmp_path / "32s.pth")
        assert torch.equal(network.state_dict()["conv1_1.weight"], coarse.state_dict()["conv1_1.weight"])
    torch.save({"something": torch.zeros(1)}, tmp_path / "else.pth")
    with pytest.raises(FileFormatError, match=r"else.pth: not weights that FCN16s can begin from \(coarser: expected"):
        begin_from(fine, tmp_path / "else.pth")
