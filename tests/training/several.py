"""A run of the tiny task by several processes: ``torchrun --nproc-per-node 2 several.py FOLDER``."""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import torch

from upscore.training.processes import join
from upscore.training.trainer import Trainer

if __name__ == "__main__":
    tiny = runpy.run_path(str(Path(__file__).with_name("tiny.py")))
    torch.set_num_threads(1)
    trainer = Trainer(tiny["Tiny"](normalised=False), replace(tiny["SETTINGS"], patience=3), Path(sys.argv[1]), join())
    sys.exit(0 if trainer.run() else 130)
