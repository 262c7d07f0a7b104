"""Several processes do what one does that accumulates as many batches."""

from __future__ import annotations

import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from upscore.training.processes import Processes, join
from upscore.training.trainer import Trainer

HERE = Path(__file__).parent
TINY = runpy.run_path(str(HERE / "tiny.py"))


def test_without_torchrun_there_is_one() -> None:
    assert join() == Processes(0, 1)
    assert Processes().any(True)
    assert not Processes().any(False)
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    Processes().mean_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]


def test_two_processes_end_where_one_ends_that_accumulates_two_batches(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(HERE / "several.py"), str(tmp_path / "two")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    settings = replace(TINY["SETTINGS"], accumulate=2, patience=3)
    one = Trainer(TINY["Tiny"](normalised=False), settings, tmp_path / "one")
    assert one.run()
    two = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)
    assert two["step"] == one.step
    for name, value in one.network.state_dict().items():
        torch.testing.assert_close(two["network"][name], value, rtol=1e-4, atol=1e-6)
    assert two["network"]["0.weight"].ne(TINY["Tiny"](normalised=False).network[0].weight).any()
