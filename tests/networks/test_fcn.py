"""FCN against Caffe's sizes and numbers, torchvision's layers, and bilinear interpolation."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks.gradients import check, randomise
from torch import Tensor, nn

import upscore
from upscore import filters
from upscore.caffe.graph import Graph
from upscore.errors import ArgumentError
from upscore.networks.fcn import FCN, FCN8s, FCN16s, FCN32s

MAKERS = {32: FCN32s, 16: FCN16s, 8: FCN8s}
OFFSETS = {32: [19], 16: [5, 27], 8: [5, 9, 31]}
PLAIN_OFFSETS = {32: [16], 16: [-1, 8], 8: [-1, -1, 4]}


def caffes(stride: int, size: tuple[int, int], width: int) -> Any:
    """The NetParameter of the example that writes FCN with pycaffe's NetSpec."""
    path = Path(__file__).parents[2] / "examples/caffe/fcn.py"
    spec = importlib.util.spec_from_file_location("fcn_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fcn(stride, width=width, size=size, loss=False)


@pytest.mark.parametrize("stride", MAKERS)
@pytest.mark.parametrize("size", [(500, 500), (333, 501), (1, 64)])
def test_every_size_is_caffes(stride: int, size: tuple[int, int]) -> None:
    expected = Graph(caffes(stride, size, 64), device="meta").shapes
    with torch.device("meta"):
        network = MAKERS[stride]()
        found: dict[str, tuple[int, ...]] = {}
        pools: list[tuple[int, ...]] = []
        for name, layer in network.named_children():
            if name == "pool":
                layer.register_forward_hook(lambda _m, _i, y: pools.append(tuple(y.shape)))
            elif list(layer.parameters()):
                layer.register_forward_hook(lambda _m, _i, y, name=name: found.update({name: tuple(y.shape)}))
        found["score"] = tuple(network(torch.empty(1, 3, *size)).shape)
    found.update({f"pool{i}": shape for i, shape in enumerate(pools, 1)})
    assert len(found) == 13 + 5 + 3 + 1 + {32: 1, 16: 3, 8: 5}[stride]
    assert found == {name: expected[name] for name in found}
    if size == (500, 500):  # as measured on Caffe
        pooled = [found[f"pool{i}"][2] for i in range(1, 6)]
        assert pooled == [349, 175, 88, 44, 22]
        ups = {32: {"upscore": 544}, 16: {"upscore2": 34, "upscore16": 560}}
        ups[8] = {"upscore2": 34, "upscore_pool4": 70, "upscore8": 568}
        assert {name: found[name][2] for name in ups[stride]} == ups[stride]


@pytest.mark.parametrize("stride", MAKERS)
def test_crops_follow_from_the_layers(stride: int) -> None:
    with torch.device("meta"):
        assert list(MAKERS[stride]().crops.values()) == [(o, o) for o in OFFSETS[stride]]
        plain = MAKERS[stride](padding=1)
        assert list(plain.crops.values()) == [(o, o) for o in PLAIN_OFFSETS[stride]]
        for size in ((500, 500), (333, 501), (1, 37), (64, 32)):
            assert plain(torch.empty(2, 3, *size)).shape == (2, 21, *size)


@pytest.mark.parametrize("stride", MAKERS)
@pytest.mark.parametrize("channelwise", [True, False])
def test_numbers_are_caffes(stride: int, channelwise: bool) -> None:
    size = (37, 53)
    graph = Graph(caffes(stride, size, 1))
    generator = torch.Generator().manual_seed(stride)
    for layer in graph.layers:
        for blob in layer.module.blobs:
            fan = blob[0].numel() if blob.dim() > 1 else 1
            noise = torch.randn(blob.shape, generator=generator) * (2 / fan) ** 0.5
            if channelwise and layer.type == "Deconvolution":
                noise = noise * torch.eye(len(blob))[..., None, None]
            blob.data.copy_(noise)
    network = MAKERS[stride](width=1, channelwise=channelwise).eval()
    assert network.load_caffe(graph.named_blobs()) == []
    x = torch.randn(2, 3, *size, generator=generator)
    with torch.no_grad():
        expected = Graph.forward(graph, {"data": x}, keep=["score"])["score"]
        found = network(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def at_once(net: Any) -> Any:
    """The NetParameter with a Scale layer before the score layers of the skips, as voc-fcn8s-atonce has them."""
    found = type(net)()
    for layer in net.layer:
        if layer.name in ("score_pool4", "score_pool3"):
            pool = layer.bottom[0]
            found.layer.add(name=f"scale_{pool}", type="Scale", bottom=[pool], top=[f"scale_{pool}"])
            layer.bottom[0] = f"scale_{pool}"
        found.layer.add().CopyFrom(layer)
    return found


def test_the_skips_scales_come_from_caffes_weights() -> None:
    size = (37, 53)
    graph = Graph(at_once(caffes(8, size, 1)))
    generator = torch.Generator().manual_seed(0)
    for layer in graph.layers:
        for blob in layer.module.blobs:
            blob.data.copy_(torch.randn(blob.shape, generator=generator) / blob[0].numel() ** 0.5)
    blobs = graph.named_blobs()
    for name, factor in (("scale_pool4", 0.5), ("scale_pool3", 0.25)):
        blobs[name][0].data.fill_(factor)
    network = FCN8s(width=1, channelwise=False).eval()
    assert network.load_caffe(blobs) == []
    assert network.skip_scales == (0.5, 0.25)
    x = torch.randn(2, 3, *size, generator=generator)
    with torch.no_grad():
        expected = Graph.forward(graph, {"data": x}, keep=["score"])["score"]
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    blobs["scale_pool4"][0].data[3] = 0.125
    with pytest.raises(ArgumentError, match=r"one factor for all channels in layer 'scale_pool4', got 0.125 to 0.5"):
        network.load_caffe(blobs)
    encoder = {name: parts for name, parts in blobs.items() if name.startswith(("conv", "fc"))}
    network.load_caffe(encoder)
    assert network.skip_scales == (0.5, 0.25)
    network.load_caffe({name: parts for name, parts in blobs.items() if not name.startswith("scale_")})
    assert network.skip_scales == (1, 1)


def torchvision_like(width: int) -> tuple[dict[str, Tensor], nn.Sequential, nn.Sequential]:
    """A VGG-16 of these widths, built and named as torchvision's."""
    layers: list[nn.Module] = []
    channels = 3
    for depth, factor in zip((2, 2, 3, 3, 3), (1, 2, 4, 8, 8), strict=True):
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width * factor, 3, padding=1), nn.ReLU()]
            channels = width * factor
        layers.append(nn.MaxPool2d(2, 2))
    features = nn.Sequential(*layers)
    wide = 64 * width
    classifier = nn.Sequential(
        nn.Linear(channels * 49, wide), nn.ReLU(), nn.Dropout(), nn.Linear(wide, wide), nn.ReLU(), nn.Dropout(),
        nn.Linear(wide, 10),
    )  # fmt: skip
    state = {f"features.{k}": v for k, v in features.state_dict().items()}
    state |= {f"classifier.{k}": v for k, v in classifier.state_dict().items()}
    return state, features, classifier


def test_weights_of_torchvisions_vgg16() -> None:
    torch.manual_seed(0)
    state, features, classifier = torchvision_like(1)
    network = FCN8s(5, padding=1, width=1).eval()
    fresh = network.load_vgg(state)
    assert fresh == ["score_fr", "score_pool4", "score_pool3", "upscore2", "upscore_pool4", "upscore8"]
    nn.init.normal_(network.score_fr.weight)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        vector = classifier.eval()[:6](features(x).flatten(1))
        expected = F.linear(vector, network.score_fr.weight.flatten(1), network.score_fr.bias)
        scores, pools = network.scores(x)
    assert expected.abs().max() > 0
    # fc6 is padded by 3, so that its middle sees what the fully connected layer saw.
    torch.testing.assert_close(scores[:, :, 3, 3], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pools[5], features(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stride", MAKERS)
@pytest.mark.parametrize("padding", [100, 1])
def test_zeroed_skips_leave_the_bilinear_upsampling_of_the_scores(stride: int, padding: int) -> None:
    torch.manual_seed(0)
    network = MAKERS[stride](3, width=1, padding=padding).eval()
    nn.init.normal_(network.score_fr.weight)  # the skips' score layers start at zero
    x = torch.randn(1, 3, 230, 261)
    with torch.no_grad():
        small, _ = network.scores(x)
        found = network(x)
    factors = {32: [32], 16: [2, 16], 8: [2, 2, 8]}[stride]
    large, begin = small, 0
    whole = small.numpy()
    for factor in factors:
        large = F.interpolate(large, scale_factor=factor, mode="bilinear", align_corners=False)
        weights = filters.channelwise(filters.bilinear((factor, factor)), 3)
        whole = upscore.conv_transpose(whole, weights.astype(np.float32), stride=factor, groups=3)
        begin = factor * begin + factor // 2  # where `large` begins in `whole`
    offset = {100: {32: 19, 16: 27, 8: 31}, 1: {32: 16, 16: 8 + 16, 8: 4 + 8 + 16}}[padding][stride]
    rows, columns = found.shape[2:]
    inner = slice(48, -48)
    exact = slice(None) if padding == 100 else inner  # with plain padding the upsampled scores are cropped in between
    expected = whole[:, :, offset:, offset:][:, :, :rows, :columns]
    np.testing.assert_allclose(found[..., exact, exact], expected[..., exact, exact], atol=1e-5)
    start = offset - begin
    pixels = F.pad(large, (max(-start, 0),) * 4)[..., max(start, 0) :, max(start, 0) :][..., :rows, :columns]
    assert found[..., inner, inner].std() > 0
    torch.testing.assert_close(found[..., inner, inner], pixels[..., inner, inner], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", MAKERS)
@pytest.mark.parametrize("padding", [100, 1])
def test_gradients(stride: int, padding: int) -> None:
    network = FCN(stride, 2, width=2, padding=padding, learned=True, channelwise=padding == 1)
    check(network, 1, 3, 5, 40)


def test_staged_training_goes_on_from_the_coarser_weights() -> None:
    torch.manual_seed(0)
    coarse, middle, fine = FCN32s(3, width=1), FCN16s(3, width=1), FCN8s(3, width=1)
    randomise(coarse)
    in_a_files_order = dict(sorted(coarse.state_dict().items()))  # biases before weights
    assert middle.double().continue_from(in_a_files_order) == ["score_pool4", "upscore2", "upscore16"]
    assert not middle.score_pool4.weight.any()
    randomise(middle)
    kept = middle.state_dict()
    assert fine.double().continue_from(kept) == ["score_pool3", "upscore_pool4", "upscore8"]
    state = fine.state_dict()
    assert all(torch.equal(state[name], kept[name]) for name in kept if name in state)


def coarse_and_fine(stride: int, padding: int) -> tuple[FCN, FCN]:
    """FCN-32s with some scores, and the network of that stride that goes on from it, stage by stage."""
    torch.manual_seed(0)
    coarse = FCN32s(3, width=1, padding=padding).double().eval()
    nn.init.normal_(coarse.score_fr.weight)
    nn.init.normal_(coarse.score_fr.bias)
    fine: FCN = coarse
    for finer in (16, 8):
        if finer >= stride:
            before, fine = fine, MAKERS[finer](3, width=1, padding=padding).double().eval()
            fine.continue_from(before.state_dict())
    return coarse, fine


@pytest.mark.parametrize(("stride", "cut"), [(16, 1 / 8), (8, 1 / 8 + 1 / 32)])
def test_the_finer_network_starts_with_the_coarser_ones_output(stride: int, cut: float) -> None:
    """But for corners of the interpolation.

    Upsampled twofold first, linearly interpolated scores are known at a quarter to either side of every knot only;
    the line between cuts the corner there by an eighth of the second difference. So does every further doubling,
    by an eighth of what is then a quarter of it.
    """
    coarse, fine = coarse_and_fine(stride, 100)
    x = torch.randn(2, 3, 97, 130, dtype=torch.float64)
    with torch.no_grad():
        scores = F.pad(coarse.scores(x)[0], (2, 2, 2, 2))  # zeros lie beyond the border
        difference = (fine(x) - coarse(x)).abs().max()
    corners = sum(scores.diff(n=2, dim=axis).abs().max() for axis in (2, 3))
    assert 0 < difference <= cut * corners


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("padding", [100, 1])
def test_the_finer_network_starts_aligned_with_the_coarser(stride: int, padding: int) -> None:
    coarse, fine = coarse_and_fine(stride, padding)

    def ramp(_layer: nn.Module, _inputs: tuple[Tensor], scores: Tensor) -> Tensor:
        rows, columns = (torch.arange(n, dtype=scores.dtype) for n in scores.shape[2:])
        return (3 * rows[:, None] - 2 * columns).expand_as(scores)

    for network in (coarse, fine):  # a ramp has no corners to cut
        network.score_fr.register_forward_hook(ramp)
    x = torch.zeros(1, 3, 230, 261, dtype=torch.float64)
    inner = (..., slice(48, -48), slice(48, -48))
    with torch.no_grad():
        found, expected = fine(x)[inner], coarse(x)[inner]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.diff(dim=2), torch.full_like(found.diff(dim=2), 3 / 32))


def test_what_cannot_be_continued_from() -> None:
    middle = FCN16s(2, width=1)
    with pytest.raises(ArgumentError) as error:
        middle.continue_from(FCN8s(2, width=1).state_dict())
    assert str(error.value) == (
        "coarser: expected the weights of an FCN of a stride above 16, got those of an FCN-8s; "
        "for example FCN16s().continue_from(FCN32s().state_dict())"
    )
    with pytest.raises(ArgumentError, match="of a stride above 16, got those of an FCN-16s"):
        middle.continue_from(middle.state_dict())
    with pytest.raises(ArgumentError, match="of a stride above 8, got none of a layer that upsamples to pixels"):
        FCN8s(2, width=1).continue_from({"conv1_1.weight": torch.zeros(1)})
    before = {name: value.clone() for name, value in middle.state_dict().items()}
    with pytest.raises(
        ArgumentError, match=r"blobs: expected shape \(2, 64, 1, 1\) for layer 'score_fr', got \(5, 64, "
    ):
        middle.continue_from(FCN32s(5, width=1).state_dict())
    assert all(torch.equal(value, before[name]) for name, value in middle.state_dict().items())


def test_skips_are_scaled_for_training_at_once() -> None:
    network = randomise(FCN8s(2, width=1, skip_scales=(0.01, 0.0001)))
    plain = FCN8s(2, width=1).double().eval()
    state = network.state_dict()
    plain.load_state_dict(
        state
        | {
            "score_pool4.weight": state["score_pool4.weight"] * 1e-2,
            "score_pool3.weight": state["score_pool3.weight"] * 1e-4,
        }
    )
    x = torch.randn(1, 3, 9, 14, dtype=torch.float64)
    torch.testing.assert_close(network(x), plain(x))


def test_upsampling_is_fixed_or_learned() -> None:
    for learned in (False, True):
        network = FCN8s(2, width=1, learned=learned)
        assert network.upscore8.weight.requires_grad is learned
        np.testing.assert_allclose(network.upscore8.weight[1, 0].detach(), filters.bilinear((8, 8)), rtol=1e-6)


def test_errors_name_the_argument() -> None:
    with pytest.raises(ArgumentError, match="stride: expected 32, 16 or 8, got 4; for example stride=8"):
        FCN(4)
    with pytest.raises(ArgumentError, match=r"padding: expected 100, the paper's, or 1, the plain one, got 0"):
        FCN8s(padding=0)
    with pytest.raises(ArgumentError, match="width: expected at least 1, got 0"):
        FCN8s(width=0)
