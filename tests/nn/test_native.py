import os
import subprocess
import sys
import textwrap

import pytest
import torch

from upscore.geometry import Geometry
from upscore.nn import native

TEAM = """
import os, signal, warnings
import torch
from upscore import nn

warnings.simplefilter("ignore", DeprecationWarning)  # Python's own, about forking with threads
torch.set_num_threads(3)
torch.manual_seed(0)
layer, x = nn.ConvTranspose2d(32, 24, (3, 4), (1, 2)), torch.randn(2, 32, 50, 41)
torch.ones(1 << 20).exp()  # torch's threads are here from now on

def threads():
    return set(os.listdir("/proc/self/task"))

with torch.no_grad():
    before = threads()
    expected = layer(x)
"""
needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="hardware: needs Linux's /proc")


def run_alone(program):
    """What ``program`` prints after ``TEAM``, in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", TEAM + textwrap.dedent(program)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_proc
def test_layers_run_in_the_threads_that_torch_has():
    assert run_alone("print(len(before) >= 3, threads() == before)") == "True True\n"


@needs_proc
@pytest.mark.parametrize("first", ["upscore", "torch"])
def test_numpy_layers_too_whichever_was_imported_first(first):
    program = f"""
    import os
    import {first}
    import numpy as np
    import upscore as up

    def threads():
        return set(os.listdir("/proc/self/task"))

    def added(function, *arguments):
        before = threads()
        function(*arguments)
        return len(threads() - before)

    up.cpu.set_threads(3)
    layer, x = up.plan(np.ones((32, 24, 3, 4), "float32")), np.ones((2, 32, 50, 41), "float32")
    if "{first}" == "upscore":
        print(added(layer, x))
    import torch
    torch.set_num_threads(3)
    print(added(torch.ones, 1 << 20), added(layer, x))
    """
    program = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["2"] * (first == "upscore") + ["2", "0"], done.stderr


@needs_proc
def test_bits_do_not_depend_on_torchs_threads():
    out = run_alone(
        """
        with torch.no_grad():
            for count in (1, 2, 7):
                torch.set_num_threads(count)
                print(torch.equal(layer(x), expected))
        """
    )
    assert out == "True\n" * 3


@needs_proc
def test_forked_children_leave_the_threads_that_they_lost():
    """OpenMP's runtime would wait for ever for the threads that were not forked."""
    out = run_alone(
        """
        with torch.no_grad():
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                os._exit(not (layer(x).numpy() == expected.numpy()).all())  # torch itself would wait
            print(os.waitpid(child, 0)[1], torch.equal(layer(x), expected))
        """
    )
    assert out == "0 True\n"


@needs_proc
def test_several_python_threads_compute_at_once():
    out = run_alone(
        """
        from concurrent.futures import ThreadPoolExecutor

        def one(_):
            with torch.no_grad():
                return torch.equal(layer(x), expected)

        with ThreadPoolExecutor(4) as pool:
            print(set(pool.map(one, range(40))))
        """
    )
    assert out == "{True}\n"


@pytest.mark.parametrize("last", [False, True])
def test_no_foreign_memory_is_read_where_shapes_do_not_fit(last):
    """Of what reaches the engine past the checks of ``functional``: tensors are read by their address."""
    x, w = torch.randn(1, 3, 4, 4), torch.randn(5, 2, 3, 3)
    x = x.to(memory_format=torch.channels_last) if last else x
    geometry = Geometry((3, 3), 2)
    for t in (x, x.double()):
        with pytest.raises((TypeError, ValueError)):
            native.conv_transpose(t, w, None, geometry, (9, 9), 1, keep=False)
    with pytest.raises((TypeError, ValueError)):
        native.input_gradient(x, w.double(), geometry, (1, 1), 1)
