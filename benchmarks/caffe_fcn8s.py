"""voc-FCN-8s at 500 x 500: upscore's Caffe graph against the same net written in plain torch, in one run.

    python benchmarks/caffe_fcn8s.py --runs 5

The two take turns, so that whatever else the machine does hits both. Weights are random; the outputs must agree.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

VGG = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]


def prototxt() -> str:
    """The net of Long, Shelhamer and Darrell (2015), with its pad of 100 and its crops."""
    lines = [
        'layer { name: "input" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 500 dim: 500 } } }'
    ]

    def conv(name: str, bottom: str, channels: int, kernel: int, pad: int = 0, relu: bool = True) -> str:
        lines.append(
            f'layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}" convolution_param {{ '
            f'num_output: {channels} kernel_size: {kernel} pad: {pad} weight_filler {{ type: "msra" }} }} }}'
        )
        if relu:
            lines.append(f'layer {{ name: "relu_{name}" type: "ReLU" bottom: "{name}" top: "{name}" }}')
        return name

    def up(name: str, bottom: str, kernel: int, stride: int) -> str:
        lines.append(
            f'layer {{ name: "{name}" type: "Deconvolution" bottom: "{bottom}" top: "{name}" param {{ lr_mult: 0 }} '
            f"convolution_param {{ num_output: 21 kernel_size: {kernel} stride: {stride} bias_term: false "
            'weight_filler { type: "gaussian" std: 0.05 } } }'
        )
        return name

    def fuse(name: str, coarse: str, fine: str, offset: int) -> str:
        lines.append(
            f'layer {{ name: "{fine}c" type: "Crop" bottom: "{fine}" bottom: "{coarse}" top: "{fine}c" '
            f"crop_param {{ axis: 2 offset: {offset} }} }}"
        )
        lines.append(f'layer {{ name: "{name}" type: "Eltwise" bottom: "{coarse}" bottom: "{fine}c" top: "{name}" }}')
        return name

    last = "data"
    for block, (channels, count) in enumerate(VGG, 1):
        for i in range(1, count + 1):
            last = conv(f"conv{block}_{i}", last, channels, 3, 100 if (block, i) == (1, 1) else 1)
        lines.append(
            f'layer {{ name: "pool{block}" type: "Pooling" bottom: "{last}" top: "pool{block}" '
            "pooling_param { pool: MAX kernel_size: 2 stride: 2 } }"
        )
        last = f"pool{block}"
    last = conv("score_fr", conv("fc7", conv("fc6", last, 4096, 7), 4096, 1), 21, 1, relu=False)
    conv("score_pool4", "pool4", 21, 1, relu=False)
    conv("score_pool3", "pool3", 21, 1, relu=False)
    last = fuse("fuse_pool4", up("upscore2", last, 4, 2), "score_pool4", 5)
    last = fuse("fuse_pool3", up("upscore_pool4", last, 4, 2), "score_pool3", 9)
    up("upscore8", last, 16, 8)
    lines.append(
        'layer { name: "score" type: "Crop" bottom: "upscore8" bottom: "data" top: "score" crop_param { offset: 31 } }'
    )
    return "\n".join(lines)


class PlainFCN8s(nn.Module):
    """The same net as somebody writes it in torch."""

    def __init__(self) -> None:
        super().__init__()
        blocks, last = [], 3
        for block, (channels, count) in enumerate(VGG):
            layers: list[nn.Module] = []
            for i in range(count):
                layers += [nn.Conv2d(last, channels, 3, padding=100 if block == i == 0 else 1), nn.ReLU(inplace=True)]
                last = channels
            blocks.append(nn.Sequential(*layers, nn.MaxPool2d(2, 2, ceil_mode=True)))
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Sequential(
            nn.Conv2d(512, 4096, 7), nn.ReLU(inplace=True), nn.Conv2d(4096, 4096, 1), nn.ReLU(inplace=True)
        )
        self.score_fr, self.score_pool4 = nn.Conv2d(4096, 21, 1), nn.Conv2d(512, 21, 1)
        self.score_pool3 = nn.Conv2d(256, 21, 1)
        self.upscore2 = nn.ConvTranspose2d(21, 21, 4, 2, bias=False)
        self.upscore_pool4 = nn.ConvTranspose2d(21, 21, 4, 2, bias=False)
        self.upscore8 = nn.ConvTranspose2d(21, 21, 16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pools, last = [], x
        for block in self.blocks:
            last = block(last)
            pools.append(last)
        up2 = self.upscore2(self.score_fr(self.fc(last)))
        h, w = up2.shape[2:]
        up4 = self.upscore_pool4(up2 + self.score_pool4(pools[3])[:, :, 5 : 5 + h, 5 : 5 + w])
        h, w = up4.shape[2:]
        up8 = self.upscore8(up4 + self.score_pool3(pools[2])[:, :, 9 : 9 + h, 9 : 9 + w])
        return up8[:, :, 31 : 31 + x.shape[2], 31 : 31 + x.shape[3]]


def main() -> None:
    """Measure and print."""
    from upscore.caffe import prototxt as text
    from upscore.caffe import schema
    from upscore.caffe.graph import Graph

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    graph = Graph(text.read(prototxt(), schema.NetParameter())).eval()
    plain = PlainFCN8s().eval()
    ours = [b for layer in graph.layers for b in layer.module.blobs]
    order = {id(p): p for p in plain.parameters()}
    with torch.no_grad():
        for theirs, blob in zip(_in_graph_order(plain), ours, strict=True):
            order.pop(id(theirs))
            theirs.copy_(blob)
    assert not order
    graph.for_inference()
    x = torch.randn(1, 3, 500, 500) * 50
    contestants: dict[str, Callable[[], Tensor]] = {
        "upscore": lambda: graph({"data": x}, keep=["score"])["score"],
        "plain torch": lambda: plain(x),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    with torch.no_grad():
        first = {name: run() for name, run in contestants.items()}
        difference = (first["upscore"] - first["plain torch"]).abs().max() / first["plain torch"].abs().max()
        for _ in range(options.runs):
            for name, run in contestants.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    result = {name: {"median_s": statistics.median(t), "min_s": min(t), "max_s": max(t)} for name, t in times.items()}
    if options.json:
        print(json.dumps({"threads": options.threads, "difference": float(difference), **result}))
        return
    print(
        f"voc-FCN-8s forward, 500 x 500, {options.threads} threads, {options.runs} runs, "
        f"outputs agree to {difference:.1e}"
    )
    for name, t in result.items():
        print(f"{name:12s} median {t['median_s']:.3f} s   from {t['min_s']:.3f} to {t['max_s']:.3f}")


def _in_graph_order(plain: PlainFCN8s) -> list[nn.Parameter]:
    """The plain net's parameters in the order of the prototxt's layers."""
    parts = [plain.blocks, plain.fc, plain.score_fr, plain.score_pool4, plain.score_pool3]
    parts += [plain.upscore2, plain.upscore_pool4, plain.upscore8]
    return [p for part in parts for p in part.parameters()]


if __name__ == "__main__":
    main()
