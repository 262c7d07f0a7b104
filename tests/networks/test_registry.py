"""Networks by name."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from upscore import networks
from upscore.errors import ArgumentError, FileFormatError, MissingDependencyError


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ArgumentError, match=r"network: expected one of .*upscale-x2.*, got 'upscale-x3'"):
        networks.find("upscale-x3")


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ArgumentError, match="name: expected a name that is not taken, got 'upscale-x2'"):
        networks.register(networks.find("upscale-x2"))


@pytest.mark.parametrize("content", ["text", "other"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights.safetensors"
    if content == "text":
        path.write_text("no weights")
    else:
        save_file({"head.weight": torch.zeros(3)}, path)
    with pytest.raises(FileFormatError, match=r"weights.safetensors: not weights of the network upscale-x2"):
        networks.find("upscale-x2").load(path)


def test_without_torch_the_extra_is_named() -> None:
    network = replace(networks.find("upscale-x2"), module="torch.no_such_module")
    with pytest.raises(MissingDependencyError, match=r"needs the package torch.*pip install 'upscore\[torch\]'"):
        network.build()


def test_the_registry_loads_no_torch() -> None:
    code = "import sys, upscore.networks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
