"""Blocks of outputs that are dropped are handed out again, whatever was dropped before."""

from __future__ import annotations

import numpy as np

from upscore import engine

FLOAT = np.dtype(np.float32)
MEGABYTE = 1 << 18  # floats


def test_what_was_dropped_last_is_handed_out_again():
    for size in range(40, 80):  # 2.4 GB of other sizes, ten times what is kept
        engine.empty((1, 1, size * MEGABYTE), FLOAT)
    block = engine.empty((1, 1, 90 * MEGABYTE), FLOAT)
    address = block.ctypes.data
    del block
    assert engine.empty((1, 1, 90 * MEGABYTE), FLOAT).ctypes.data == address


def test_blocks_in_use_are_nobody_elses():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 4, 200) * (1 << 14)
    held: dict[int, np.ndarray] = {}
    for i, size in enumerate(sizes):
        held[i] = engine.empty((1, 1, int(size)), FLOAT)
        held[i][:] = i
        if i % 3 == 0:
            del held[int(rng.choice(list(held)))]
    for i, block in held.items():
        assert (block == i).all()
