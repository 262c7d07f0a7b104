"""Mutated Caffe files: each must give an error of ours or a net, within 2 s and little memory.

    python tests/hostile/fuzz_caffe.py --count 20000

runs that many in processes of 500, so that a crash is seen and named. A case is its number: mutations are drawn
from a generator seeded by it, and ``--first N --count 1`` repeats one.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden" / "caffe"
SECONDS = 2.0
MEMORY = 64 << 20  # what the interpreter, its arenas and a net of the seeds' size may take besides the file
BATCH = 500

V1 = """name: "old" input: "data" input_dim: 1 input_dim: 3 input_dim: 16 input_dim: 12
layers { bottom: "data" top: "c1" name: "c1" type: CONVOLUTION blobs_lr: 1 blobs_lr: 2 weight_decay: 1
  weight_decay: 0 convolution_param { num_output: 4 pad: 1 kernel_size: 3 weight_filler { type: "xavier" } } }
layers { bottom: 'c1' top: 'c1' name: 'b1' type: BN bn_param { scale_filler { type: 'constant' value: 1 }
  shift_filler { type: 'constant' value: 0.001 } bn_mode: INFERENCE } }
layers { bottom: "c1" top: "c1" name: "r1" type: RELU }
layers { bottom: "c1" top: "p1" top: "m1" name: "p1" type: POOLING pooling_param { kernel_size: 2 stride: 2 } }
layers { bottom: "p1" bottom: "m1" top: "u1" name: "u1" type: UNPOOLING
  unpooling_param { unpool: MAX kernel_size: 2 stride: 2 unpool_h: 16 unpool_w: 12 } }
layers { bottom: "u1" top: "d1" name: "d1" type: DECONVOLUTION convolution_param { num_output: 4 kernel_size: 3 } }
"""
V0 = """input: "x" input_dim: 1 input_dim: 2 input_dim: 9 input_dim: 8
layers { layer { name: "pad" type: "padding" pad: 2 } bottom: "x" top: "p" }
layers { layer { name: "c" type: "conv" num_output: 3 kernelsize: 5 biasterm: false weight_filler { type: "gaussian"
  std: 0.1 } blobs_lr: 1. weight_decay: 0. } bottom: "p" top: "c" }
layers { layer { name: "n" type: "lrn" local_size: 3 alpha: 0.1 beta: 0.5 } bottom: "c" top: "n" }
layers { layer { name: "i" type: "innerproduct" num_output: 7 } bottom: "n" top: "i" }
layers { layer { name: "s" type: "softmax" } bottom: "i" top: "s" }
"""
MANY = """name: "many" state { phase: TEST level: 1 stage: "deploy" }
layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 1 dim: 6 dim: 8 dim: 8 } } }
layer { name: "sl" type: "Slice" bottom: "x" top: "s0" top: "s1" slice_param { axis: 1 slice_point: 2 } }
layer { name: "cat" type: "Concat" bottom: "s0" bottom: "s1" top: "cat" concat_param { axis: -3 } }
layer { name: "sc" type: "Scale" bottom: "cat" top: "cat" scale_param { bias_term: true axis: 1 num_axes: -1 } }
layer { name: "el" type: "Eltwise" bottom: "cat" bottom: "y" top: "el" eltwise_param { coeff: 1 coeff: -0.5 } }
layer { name: "rs" type: "Reshape" bottom: "el" top: "rs" reshape_param { shape { dim: 0 dim: -1 dim: 4 } axis: 0 } }
layer { name: "fl" type: "Flatten" bottom: "rs" top: "fl" }
layer { name: "em" type: "InnerProduct" bottom: "fl" top: "ip" inner_product_param { num_output: 5 } }
layer { name: "up" type: "Deconvolution" bottom: "el" top: "up" param { name: "w" lr_mult: 0 } convolution_param {
  num_output: 6 group: 6 kernel_size: 4 stride: 2 bias_term: false weight_filler { type: "bilinear" } } }
layer { name: "cr" type: "Crop" bottom: "up" bottom: "y" top: "cr" crop_param { axis: 2 offset: 3 offset: 4 } }
layer { name: "ti" type: "Tile" bottom: "cr" top: "ti" tile_param { axis: 2 tiles: 3 } include { stage: "deploy" } }
layer { name: "bn" type: "BatchNorm" bottom: "ti" top: "bn" }
layer { name: "in2" type: "Interp" bottom: "bn" top: "interp" interp_param { zoom_factor: 2 pad_beg: -1 } }
layer { name: "am" type: "ArgMax" bottom: "interp" top: "am" argmax_param { axis: 1 top_k: 2 } }
layer { name: "du" type: "DummyData" top: "du" dummy_data_param { shape { dim: 2 dim: 3 } } }
layer { name: "pr" type: "PReLU" bottom: "du" top: "pr" exclude { phase: TRAIN } }
"""
NUMBERS = ["0", "-1", "1", "2", "3", "65536", "2147483647", "4294967295", "4294967296", "1e30", "nan", "-0.5", "1e400"]


def mutate_meaning(text: str, draw: random.Random) -> bytes:
    """A prototxt that still parses, mostly, and means something else: numbers, names, words and layers changed."""
    for _ in range(draw.randint(1, 3)):
        kind = draw.choice(
            [r"-?\b\d+(?:\.\d*)?\b", r'"[^"]*"', r"\b[A-Z][A-Z_]+\b", r"\b(?:true|false)\b", r"(?m)^layers? .*$"]
        )
        found = list(re.finditer(kind, text))
        if not found:
            continue
        at = draw.choice(found)
        other = draw.choice(found).group()
        new = draw.choice(NUMBERS) if kind.startswith("-") and draw.random() < 0.7 else other
        new = draw.choice([new, "", f"{new}\n{new}"]) if kind.startswith("(?m)") else new
        text = text[: at.start()] + new + text[at.end() :]
    return text.encode()


def mutate_text(text: str, draw: random.Random) -> bytes:
    """A prototxt changed in one to four places: tokens swapped, doubled, dropped, numbers replaced, nested deeper."""
    if draw.random() < 0.7:
        return mutate_meaning(text, draw)
    tokens = re.findall(r"\s+|\w+|[^\w\s]", text)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(tokens))
        kind = draw.randrange(8)
        if kind == 0:
            del tokens[at : at + draw.randint(1, 6)]
            tokens = tokens or [" "]
        elif kind == 1:
            tokens[at:at] = tokens[draw.randrange(len(tokens)) :][: draw.randint(1, 40)]
        elif kind == 2:
            other = draw.randrange(len(tokens))
            tokens[at], tokens[other] = tokens[other], tokens[at]
        elif kind == 3:
            numbers = [i for i, token in enumerate(tokens) if token.isdigit()]
            if numbers:
                tokens[draw.choice(numbers)] = draw.choice(NUMBERS)
        elif kind == 4:
            tokens = tokens[: at + 1]
        elif kind == 5:
            tokens[at:at] = [
                draw.choice(["{", "}", "[", "<", "layer {", '"', "'", "\x00", "# ", "\u2028"])
            ] * draw.choice([1, 1, 3, 2000])
        elif kind == 6:
            words = [i for i, token in enumerate(tokens) if token.isidentifier()]
            if len(words) > 1:
                tokens[draw.choice(words)] = tokens[draw.choice(words)]
        else:
            tokens *= draw.choice([2, 2, 8])
    data = "".join(tokens).encode()
    return mutate_bytes(data, draw) if draw.random() < 0.1 else data


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """A binary file changed in one to four places: bits, lengths, truncation, repetition."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(changed))
        kind = draw.randrange(7)
        if kind == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at] = draw.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 2:
            changed = changed[: max(1, at)]
        elif kind == 3:
            changed[at:at] = changed[draw.randrange(len(changed)) :][: draw.randint(1, 200)]
        elif kind == 4:
            changed[at : at + 5] = b"\xff\xff\xff\xff\x0f"
        elif kind == 5:
            del changed[at : at + draw.randint(1, 30)]
            changed = changed or bytearray(b"\0")
        else:
            changed[at : at + draw.randint(1, 64)] = draw.randbytes(draw.randint(1, 64))
    return bytes(changed)


def seeds() -> list[tuple[str, bytes, Callable[[Path], None]]]:
    """Suffix, contents, and what reads them."""
    import numpy as np

    from upscore.caffe import caffemodel, hdf5, prototxt, schema, weights
    from upscore.caffe.graph import Graph
    from upscore.caffe.net import Net

    tiny = (GOLDEN / "tiny_unet.prototxt").read_text()
    graph = Graph(prototxt.read(tiny, schema.NetParameter()))

    def net(path: Path) -> None:
        param = prototxt.read(path, schema.NetParameter(), lenient=path.stat().st_size % 2 == 0)
        Graph(param, device="meta")
        Graph(param, max_bytes=8 << 20)
        Net(param, schema.TEST)

    def model(path: Path) -> None:
        weights.read(path)
        graph.load(path)

    with tempfile.TemporaryDirectory() as folder:
        state = caffemodel.Snapshot(7, "net.caffemodel", 1, [np.ones((3, 2), np.float32), np.zeros(4, np.float32)])
        caffemodel.write_state(Path(folder, "s"), state)
        caffemodel.write_mean(Path(folder, "m"), np.ones((1, 3, 5, 4), np.float32))
        hdf5.write_state(Path(folder, "s.h5"), state)
        solverstate, mean, solverstate_h5 = (Path(folder, n).read_bytes() for n in ("s", "m", "s.h5"))
    texts: list[tuple[str, bytes, Callable[[Path], None]]] = [
        (".prototxt", text.encode(), net) for text in (tiny, V1, V0, MANY)
    ]
    binary = (GOLDEN / "tiny_unet.caffemodel").read_bytes()
    return [
        *texts * 2,
        *[(".caffemodel", binary, model)] * 6,
        (".solverstate", solverstate, lambda path: void(caffemodel.read_state(path))),
        (".binaryproto", mean, lambda path: void(caffemodel.read_mean(path))),
        (".caffemodel.h5", (GOLDEN / "tiny_unet.caffemodel.h5").read_bytes(), model),
        (".solverstate.h5", solverstate_h5, lambda path: void(hdf5.read_state(path))),
    ]


def void(_: object) -> None:
    """Take a result and give none."""


def peak(reset: bool = False) -> int:
    """The largest resident memory since the last reset, in bytes; 0 where Linux does not say."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) * 1024 if found else 0


def run_one(case: int, known: list[tuple[str, bytes, Callable[[Path], None]]], folder: Path) -> tuple[str, float, int]:
    """Run one case; returns what came of it, the seconds and the memory.

    Raises:
        AssertionError: for any error that is not ours, too much time or too much memory.
    """
    from upscore.errors import UpscoreError

    draw = random.Random(case)
    suffix, data, read = known[case % len(known)]
    changed = mutate_text(data.decode(), draw) if suffix == ".prototxt" else mutate_bytes(data, draw)
    path = folder / f"case{suffix}"
    path.write_bytes(changed)
    before, start = peak(reset=True), time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path)
        outcome = "net"
    except UpscoreError:
        outcome = "error"
    except Exception as error:
        raise AssertionError(f"case {case} ({suffix}): {type(error).__name__}: {error}") from error
    seconds, memory = time.perf_counter() - start, peak() - before
    assert seconds < SECONDS, f"case {case} ({suffix}): took {seconds:.2f} s"
    assert memory < 4 * len(changed) + MEMORY, (
        f"case {case} ({suffix}): took {memory >> 20} MiB for {len(changed)} bytes"
    )
    return f"{suffix} {outcome}", seconds, memory


def run(first: int, count: int) -> tuple[Counter[str], float, int]:
    """Run cases in this process; returns the outcomes, the longest time and the largest memory."""
    import torch

    torch.set_num_threads(1)
    known = seeds()
    outcomes: Counter[str] = Counter()
    slowest, largest = 0.0, 0
    with tempfile.TemporaryDirectory() as name:
        run_one(0, known, Path(name))  # what is loaded once is not the file's doing
        for case in range(first, first + count):
            print(case, file=sys.stderr, flush=True)
            outcome, seconds, memory = run_one(case, known, Path(name))
            outcomes[outcome] += 1
            slowest, largest = max(slowest, seconds), max(largest, memory)
    return outcomes, slowest, largest


def main() -> int:
    """Run many cases in processes of their own and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--here", action="store_true", help="in this process")
    options = parser.parse_args()
    if options.here:
        print(repr(tuple(run(options.first, options.count))))
        return 0
    outcomes: Counter[str] = Counter()
    slowest, largest, failures = 0.0, 0, 0
    for first in range(options.first, options.first + options.count, BATCH):
        count = min(BATCH, options.first + options.count - first)
        done = subprocess.run(
            [sys.executable, __file__, "--here", "--first", str(first), "--count", str(count)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            failures += 1
            print(f"FAILED from {first}: exit {done.returncode}\n{done.stderr[-1500:]}")
            continue
        found, seconds, memory = eval(done.stdout, {"Counter": Counter})
        outcomes.update(found)
        slowest, largest = max(slowest, seconds), max(largest, memory)
        print(f"{first + count}: slowest {slowest:.2f} s, largest {largest >> 20} MiB", flush=True)
    print(dict(sorted(outcomes.items())))
    print(f"{outcomes.total()} cases, slowest {slowest:.2f} s, largest {largest / 2**20:.1f} MiB, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
