"""Bundling: what is written loads again and gives the stored output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from upscore import networks
from upscore.training import bundle


def run_folder(folder: Path, name: str) -> Path:
    """What a run of training leaves: weights and a card."""
    torch.manual_seed(1)
    network = networks.find(name).build()
    save_file(dict(network.state_dict()), folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": 7, "commit": "abc", "note": "old"}))
    return folder


@pytest.mark.parametrize("name", networks.names())
def test_a_bundle_replays_its_output(tmp_path: Path, name: str) -> None:
    run = run_folder(tmp_path, name)
    (tmp_path / "weights").mkdir()
    paths = bundle.pack(name, run, {"note": "new"}, tmp_path / "weights")
    endings = (".safetensors", ".pair.safetensors", ".json")
    assert [path.name for path in paths] == [f"{name}{ending}" for ending in endings]
    network, pair = networks.find(name).load(paths[0]), load_file(paths[1])
    assert pair["input"].shape[0] == 1
    assert pair["output"].std() > 0
    torch.testing.assert_close(network(pair["input"]), pair["output"])
    card = json.loads(paths[2].read_text())
    assert (card["steps"], card["commit"], card["note"]) == (7, "abc", "new")
    assert card["parameters"] == sum(p.numel() for p in network.parameters())
    assert {"date", "machine"} < set(card)


def test_kernels_are_halved_and_nothing_else(tmp_path: Path) -> None:
    run = run_folder(tmp_path, "street")
    (tmp_path / "weights").mkdir()
    before, after = (
        load_file(f) for f in (run / "street.safetensors", bundle.pack("street", run, {}, tmp_path / "weights")[0])
    )
    for name, tensor in before.items():
        assert after[name].dtype == (torch.float16 if tensor.dim() > 1 else tensor.dtype)
        torch.testing.assert_close(after[name].to(tensor.dtype), tensor, rtol=1e-3, atol=1e-6)


def test_the_examples_are_pictures() -> None:
    luma, street = bundle.example_luma(), bundle.example_street()
    assert luma.shape == (1, 1, 24, 36)
    assert 0 <= luma.min() < luma.max() <= 1
    assert street.shape == (1, 3, 48, 64)
    assert -2.2 < street.min() < -0.5 < 1 < street.max() < 2.7
