"""Which instruction set and how many threads: visible, forcible, and what was forced is what ran."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import upscore as up
from upscore import cpu
from upscore.errors import ArgumentError

pytestmark = pytest.mark.usefixtures("restore_engine_settings")

# A layer, its gradients, and what ran; float32, where a fused multiply-add rounds otherwise than two operations.
PROGRAM = """
import hashlib, json
import numpy as np
import upscore as up

rng = np.random.default_rng(0)
x, w = rng.standard_normal((1, 24, 9, 13), np.float32), rng.standard_normal((24, 10, 4, 3), np.float32)
layer = up.plan(w, stride=(2, 3))
y = layer(x)
grads = up.conv_transpose_backward(y, x, w, stride=(2, 3))
bits = hashlib.sha256(b"".join(a.tobytes() for a in (y, *grads))).hexdigest()
result = {"active": up.cpu.active(), "threads": up.cpu.threads(), "why": layer.why, "bits": bits}
"""


def run(program=PROGRAM, **environment):
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("UPSCORE_")}, **environment}
    return subprocess.run(
        [sys.executable, "-c", program + "\nprint(json.dumps(result))"], capture_output=True, text=True, env=environment
    )


def here():
    names = {}
    exec(PROGRAM, names)
    return names["result"]


def test_available_sets_are_those_of_the_machine():
    names = cpu.available()
    assert names[0] == "baseline"
    assert cpu.active() in names
    if sys.platform == "linux" and os.uname().machine == "x86_64":
        with open("/proc/cpuinfo") as info:
            flags = set(next(line for line in info if line.startswith("flags")).split())
        assert ("avx2" in names) == ({"avx2", "fma"} <= flags)
        assert ("avx512" in names) == ({"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags)
        assert "amx" not in names or {"avx512f", "amx_tile", "amx_bf16"} <= flags  # and the system lets it be used


@pytest.mark.parametrize("isa", cpu.available())
def test_the_environment_forces_and_so_does_force(isa):
    done = run(UPSCORE_FORCE_ISA=isa)
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    assert there["active"] == isa
    assert there["why"].startswith(f"{isa}: ")
    cpu.force(isa)
    assert cpu.active() == isa
    assert here()["why"].startswith(f"{isa}: ")
    assert here()["bits"] == there["bits"]


def test_the_forced_set_is_the_one_that_runs():
    """The baseline of x86-64 has no fused multiply-add: its bits differ from those of the wider sets."""
    bits = {}
    for isa in cpu.available():
        cpu.force(isa)
        bits[isa] = here()["bits"]
    if "avx2" not in bits:
        pytest.skip("hardware: needs AVX2")
    if "UPSCORE_SANITIZED" in os.environ:
        pytest.skip("hardware: a sanitized build is hardly optimised, and fuses nothing")
    assert bits["baseline"] != bits["avx2"]


@pytest.mark.parametrize("isa", cpu.available())
def test_vectors_are_as_wide_as_the_set(isa):
    """16 bytes in the baseline (SSE2 and NEON), 32 in AVX2, 64 in AVX-512, with and without a matrix unit."""
    cpu.force(isa)
    width = {"baseline": 16, "avx2": 32, "avx512": 64, "amx": 64}[isa]
    for dtype in (np.float32, np.float64):
        layer = up.plan(np.ones((12, 10, 4, 3), dtype), stride=(2, 3))  # too few channels for a matrix unit
        layer(np.ones((1, 12, 9, 13), dtype))
        assert f"vectors of {width // np.dtype(dtype).itemsize} positions" in layer.why


def test_plans_keep_the_set_they_were_packed_for():
    first, last = cpu.available()[0], cpu.available()[-1]
    x, w = np.ones((1, 3, 5, 4), np.float32), np.ones((3, 2, 3, 3), np.float32)
    cpu.force(first)
    layer = up.plan(w, stride=2)
    cpu.force(last)
    layer(x)
    assert layer.why.startswith(f"{first}: ")
    again = up.plan(w, stride=2)
    again(x)
    assert again.why.startswith(f"{last}: ")


def test_an_unknown_set_is_refused():
    with pytest.raises(ArgumentError, match=r"isa: expected one of baseline.*, got 'mmx'; for example isa='"):
        cpu.force("mmx")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("UPSCORE_FORCE_ISA", "mmx", "UPSCORE_FORCE_ISA: expected one of baseline"),
        ("UPSCORE_NUM_THREADS", "0", "UPSCORE_NUM_THREADS: expected an integer of at least 1, got '0'"),
        ("UPSCORE_NUM_THREADS", "many", "UPSCORE_NUM_THREADS: expected an integer of at least 1, got 'many'"),
    ],
)
def test_an_environment_that_cannot_work_is_refused(name, value, words):
    done = run(**{name: value})
    assert done.returncode == 1
    assert words in done.stderr


def test_threads():
    assert json.loads(run(UPSCORE_NUM_THREADS="3").stdout)["threads"] == 3
    assert json.loads(run(UPSCORE_NUM_THREADS="", UPSCORE_FORCE_ISA="").stdout)["threads"] == len(
        os.sched_getaffinity(0)
    )
    cpu.set_threads(5)
    assert cpu.threads() == 5
    cpu.set_threads(10**9)
    assert cpu.threads() == 1024
    with pytest.raises(ArgumentError, match="count: expected an integer of at least 1, got 0"):
        cpu.set_threads(0)


def test_the_same_bits_in_every_process():
    assert (
        json.loads(run(UPSCORE_NUM_THREADS="1").stdout)["bits"]
        == json.loads(run(UPSCORE_NUM_THREADS="4").stdout)["bits"]
    )
    assert len(here()["bits"]) == 2 * hashlib.sha256().digest_size
