"""The strongest activations, found in every kind of network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from upscore.caffe import prototxt, schema
from upscore.caffe.graph import Graph
from upscore.errors import ArgumentError
from upscore.explain.strongest import Activation, activations_of, look_back, strongest

NET = """
input: "data" input_dim: 1 input_dim: 3 input_dim: 9 input_dim: 12
layer { name: "conv" type: "Convolution" bottom: "data" top: "made"
  convolution_param { num_output: 4 kernel_h: 3 kernel_w: 5 stride: 1 weight_filler { type: "gaussian" std: 1 } } }
layer { name: "relu" type: "ReLU" bottom: "made" top: "made" }
layer { name: "pool" type: "Pooling" bottom: "made" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool" top: "conv2"
  convolution_param { num_output: 2 kernel_size: 2 weight_filler { type: "gaussian" std: 1 } } }
"""


def torch_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, (3, 5)), nn.ReLU(inplace=True), nn.MaxPool2d(2, ceil_mode=True),
                         nn.Conv2d(4, 2, 2)).eval()  # fmt: skip


def pictures(count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, 3, 9, 12, generator=generator) for _ in range(count)]


def test_the_strongest_of_each_map_and_where() -> None:
    net, seen = torch_net(), pictures()
    found = list(strongest(activations_of(net, "3"), iter(seen), [1], count=3))
    with torch.no_grad():
        outputs = torch.cat([net(x) for x in seen])[:, 1]
    best = outputs.flatten(1).max(1).values
    order = best.argsort(descending=True)[:3]
    assert [a.picture for a in found[0]] == order.tolist()
    for a in found[0]:
        assert a.map == 1
        assert a.value == pytest.approx(float(outputs[a.picture][a.place]))
        assert a.value == pytest.approx(float(best[a.picture]))
    by_default = [row[0] for row in strongest(activations_of(net, "3"), seen)]
    assert len(by_default) == 2
    assert by_default[0].value >= by_default[1].value


def test_a_layer_is_seen_before_the_next_overwrites_it() -> None:
    net, x = torch_net(), pictures(1)[0]
    with torch.no_grad():
        expected = net[0](x)
        assert expected.min() < 0
        torch.testing.assert_close(activations_of(net, "0")(x), expected)
        torch.testing.assert_close(activations_of(net, "1")(x), expected.clamp(min=0))


def test_an_exported_program_and_a_caffe_net_say_the_same() -> None:
    net, x = torch_net(), pictures(1)[0]
    graph = Graph(prototxt.read(NET, schema.NetParameter()))
    with torch.no_grad():
        for name, layer in (("conv", net[0]), ("conv2", net[3])):
            for blob, parameter in zip(graph.layer(name).module.blobs, layer.parameters(), strict=True):
                blob.copy_(parameter)
    program = torch.export.export(net, (x,)).module()
    looks = []
    for model, layer in ((net, "3"), (program, "3"), (graph, "conv2")):
        activations = activations_of(model, layer)
        ((best, *_),) = strongest(activations, [x], [1])
        looks.append(look_back(activations, x, best))
    for look in looks:
        assert look.activation == Activation(0, 1, looks[0].activation.place, pytest.approx(looks[0].activation.value))
        torch.testing.assert_close(look.projection, looks[0].projection)
    with torch.no_grad():
        torch.testing.assert_close(activations_of(graph, "conv")(x), net[0](x))
        torch.testing.assert_close(activations_of(graph, "made")(x), net[0](x).clamp(min=0))


def test_the_projection_stays_in_the_receptive_field() -> None:
    net, x = torch_net(), pictures(1)[0]
    look = look_back(activations_of(net, "0"), x, Activation(0, 2, (3, 4), 0.0))
    assert look.box == (3, 4, 6, 9)
    value = net[0](x)[0, 2, 3, 4].detach()
    torch.testing.assert_close(look.projection[:, 3:6, 4:9], value * net[0].weight[2].detach())


def test_errors() -> None:
    net = torch_net()
    with pytest.raises(ArgumentError, match="layer: expected one of 0, 1, 2, 3, got 'conv9'"):
        activations_of(net, "conv9")
    with pytest.raises(ArgumentError, match="layer: expected one of data, conv, relu, pool, conv2, got 'conv9'"):
        activations_of(Graph(prototxt.read(NET.replace('input: "data"', 'name: "n" input: "data"'),
                                           schema.NetParameter())), "conv9")  # fmt: skip
    flat = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten())
    with pytest.raises(ArgumentError, match=r"a layer that makes maps \(N, C, H, W\), got shape \(1, 108\) of '1'"):
        activations_of(flat, "1")(pictures(1)[0])
    with pytest.raises(ArgumentError, match="maps: expected numbers from 0 to 1, got 2"):
        list(strongest(activations_of(net, "3"), pictures(), [2]))
    with pytest.raises(ArgumentError, match="pictures: expected at least one, got none"):
        list(strongest(activations_of(net, "3"), []))
