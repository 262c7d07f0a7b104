"""Deconvolutional networks: the three linear maps agree, inference ends at a minimum, layers stack."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from upscore.errors import ArgumentError, FileFormatError
from upscore.networks.deconvolutional import DeconvolutionalLayer, DeconvolutionalNetwork, unit


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_of(channels: int, filters: int, size: int, *, fan_in: int | None = None) -> DeconvolutionalLayer:
    generator = torch.Generator().manual_seed(2)
    return DeconvolutionalLayer(channels, filters, size, sparsity=0.2, fan_in=fan_in, generator=generator).double()


LAYERS = [(1, 4, 5, None), (3, 5, 4, None), (4, 6, 3, 2), (2, 3, 1, None)]


@pytest.mark.parametrize(("channels", "filters", "size", "fan_in"), LAYERS)
def test_the_three_linear_maps_are_adjoint(channels: int, filters: int, size: int, fan_in: int | None) -> None:
    layer = layer_of(channels, filters, size, fan_in=fan_in)
    maps, signal = normal(2, filters, 9 + size - 1, 12 + size - 1), normal(2, channels, 9, 12, seed=3)
    made = layer.synthesize(maps)
    torch.testing.assert_close(made, F.conv_transpose2d(maps, layer.weight, padding=size - 1))
    assert made.shape == signal.shape
    product = (made * signal).sum()
    torch.testing.assert_close((maps * layer.analyze(signal)).sum(), product)
    torch.testing.assert_close((layer.weight * layer.correlate(maps, signal)).sum(), product)


@pytest.mark.parametrize(("channels", "filters", "size", "fan_in"), LAYERS)
def test_their_sums_are_the_gradients_of_the_objective(
    channels: int, filters: int, size: int, fan_in: int | None
) -> None:
    layer = layer_of(channels, filters, size, fan_in=fan_in)
    maps, signal = normal(2, filters, 9 + size - 1, 12 + size - 1), normal(2, channels, 9, 12, seed=3)
    x, w = maps.clone().requires_grad_(), layer.weight.clone().requires_grad_()
    error = F.conv_transpose2d(x, w, padding=size - 1) - signal
    objective = error.square().sum((1, 2, 3)) / 2 + 0.2 * x.abs().sum((1, 2, 3))
    torch.testing.assert_close(layer.objective(signal, maps), objective.detach())
    of_maps, of_filters = torch.autograd.grad(objective.sum(), (x, w))
    torch.testing.assert_close(layer.analyze(error.detach()) + 0.2 * maps.sign(), of_maps)
    connected = layer.connections[:, :, None, None]
    torch.testing.assert_close(layer.correlate(maps, error.detach()), of_filters * connected)


@pytest.mark.parametrize(("channels", "filters", "size", "fan_in"), LAYERS)
def test_the_curvature_bounds_the_operator_closely(channels: int, filters: int, size: int, fan_in: int | None) -> None:
    layer = layer_of(channels, filters, size, fan_in=fan_in)
    spikes = torch.eye(filters * (8 + size - 1) * (7 + size - 1), dtype=torch.float64)
    matrix = layer.synthesize(spikes.reshape(-1, filters, 8 + size - 1, 7 + size - 1)).flatten(1)
    assert torch.linalg.matrix_norm(matrix, 2) ** 2 <= layer.curvature() * (1 + 1e-9)
    fine = torch.fft.fft2(layer.weight, s=(101, 103)).permute(2, 3, 1, 0)
    power = float(torch.linalg.matrix_norm(fine, 2).max()) ** 2
    assert power <= layer.curvature() * (1 + 1e-9)
    assert layer.curvature() <= 1.2 * power


def test_inference_never_raises_the_objective_and_ends_at_a_minimum() -> None:
    layer, signal = layer_of(2, 5, 3), normal(3, 2, 7, 10)
    values = []
    maps = torch.zeros(3, 5, 9, 12, dtype=torch.float64)
    for _ in range(30):
        values.append(layer.objective(signal, maps))
        maps = layer.infer(signal, steps=2, start=maps)
    assert (torch.stack(values).diff(dim=0) <= 0).all()
    maps = layer.infer(signal, steps=3000)
    correlation = layer.analyze(signal - layer.synthesize(maps))
    assert correlation.abs().max() <= 0.2 * (1 + 1e-6)
    torch.testing.assert_close(correlation[maps != 0], 0.2 * maps[maps != 0].sign(), rtol=0, atol=1e-6)


def test_a_sparse_code_is_found_again() -> None:
    """Few spikes, far apart: what is inferred has them at their places, smaller by little."""
    layer = layer_of(1, 4, 5)
    layer.sparsity = 0.01
    code = torch.zeros(1, 4, 30, 26, dtype=torch.float64)
    for k, y, x, value in ((0, 5, 6, 2.0), (1, 20, 20, -1.5), (3, 13, 9, 1.0), (2, 6, 19, 3.0)):
        code[0, k, y, x] = value
    found = layer.infer(layer.synthesize(code), steps=2000)
    torch.testing.assert_close(found, code, rtol=0, atol=0.03)
    assert set(map(tuple, (found.abs() > 0.1).nonzero().tolist())) == set(map(tuple, code.nonzero().tolist()))


def test_filters_have_length_one_and_reach_what_they_are_connected_to() -> None:
    layer = layer_of(6, 9, 3, fan_in=2)
    torch.testing.assert_close(layer.weight.flatten(1).norm(dim=1), torch.ones(9, dtype=torch.float64))
    assert layer.connections.sum(1).tolist() == [2] * 9
    assert layer.connections.sum(0).tolist() == [3] * 6
    assert torch.equal(layer.weight.flatten(2).abs().sum(2) != 0, layer.connections)


def test_unit_leaves_a_zero_filter_alone() -> None:
    filters = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 0.0]]]])
    torch.testing.assert_close(unit(filters).flatten(1), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def network_of(**options: object) -> DeconvolutionalNetwork:
    defaults = {"size": (5, 4), "sparsity": (0.3, 0.1), "channels": 2}
    return DeconvolutionalNetwork((3, 6), **{**defaults, **options}).double()  # type: ignore[arg-type]


def test_the_maps_of_a_layer_are_the_signal_of_the_next() -> None:
    network, images = network_of(fan_in=2), normal(2, 2, 11, 14)
    first, second = network.infer(images, steps=20)
    assert (first.shape, second.shape) == ((2, 3, 15, 18), (2, 6, 18, 21))
    lower, upper = network.layers
    torch.testing.assert_close(first, lower.infer(images, steps=20))
    torch.testing.assert_close(second, upper.infer(first, steps=20))
    torch.testing.assert_close(network.reconstruct(first, 0), lower.synthesize(first))
    torch.testing.assert_close(network.reconstruct(second), lower.synthesize(upper.synthesize(second)))
    both = torch.stack([lower.objective(images, first), upper.objective(first, second)])
    torch.testing.assert_close(network.objective(images, [first, second]), both)
    torch.testing.assert_close(network(images), network.reconstruct(network.infer(images)[-1]))


def test_another_sparsity_can_be_asked_for() -> None:
    network, images = network_of(), normal(1, 2, 11, 14)
    other = network_of(sparsity=(0.3, 0.02))
    first, second = network.infer(images, sparsity=(0.3, 0.02))
    torch.testing.assert_close([first, second], other.infer(images))
    assert (second != 0).sum() > (network.infer(images)[1] != 0).sum()
    torch.testing.assert_close(network.infer(images, sparsity=0.3)[0], first)
    network.layers[1].sparsity = 0.02
    torch.testing.assert_close(network.infer(images)[1], second)
    with pytest.raises(ArgumentError, match=r"sparsity: expected one, or one for each of the 2 layers, got \[0\.1\]"):
        network.infer(images, sparsity=[0.1])


def test_an_atom_is_what_a_spike_adds_to_the_picture() -> None:
    network = network_of()
    torch.testing.assert_close(network.atoms(0), network.layers[0].weight.data)
    maps = torch.zeros(1, 6, 30, 33, dtype=torch.float64)
    maps[0, 4, 15, 20] = 1
    picture = network.reconstruct(maps)
    assert network.atoms().shape == (6, 2, 8, 8)
    torch.testing.assert_close(picture[0, :, 15 - 7 : 15 + 1, 20 - 7 : 20 + 1], network.atoms()[4])
    torch.testing.assert_close(picture.square().sum(), network.atoms()[4].square().sum())


def test_the_seed_decides() -> None:
    same, other = network_of(fan_in=2), network_of(fan_in=2, seed=1)
    for name, value in network_of(fan_in=2).state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    assert not torch.equal(same.layers[1].weight, other.layers[1].weight)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    network = network_of(fan_in=2, seed=3).float()
    network.save(tmp_path / "dn.safetensors")
    again = DeconvolutionalNetwork.load(tmp_path / "dn.safetensors")
    assert again.options == network.options
    assert [layer.extra_repr() for layer in again.layers] == [layer.extra_repr() for layer in network.layers]
    images = normal(1, 2, 9, 12).float()
    assert torch.equal(again(images), network(images))


def test_another_file_is_refused(tmp_path: Path) -> None:
    noise, foreign = tmp_path / "noise.safetensors", tmp_path / "foreign.safetensors"
    noise.write_bytes(b"\xff" * 40)
    save_file({"weight": torch.ones(2)}, foreign)
    for path in (noise, foreign):
        with pytest.raises(FileFormatError, match=f"{path.name}: not a deconvolutional network that upscore wrote"):
            DeconvolutionalNetwork.load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": ()}, "filters: expected at least one layer, got (); for example filters=(16, 32)"),
        ({"filters": (4, 0)}, "filters: expected at least 1, got 0; for example filters=7"),
        (
            {"size": (3, 3, 3)},
            "size: expected one, or one for each of the 2 layers, got [3, 3, 3]; for example size=[3, 3]",
        ),
        ({"size": 0}, "size: expected at least 1, got 0; for example size=7"),
        ({"sparsity": -1.0}, "sparsity: expected a positive number, got -1.0; for example sparsity=0.5"),
        ({"sparsity": math.nan}, "sparsity: expected a positive number, got nan; for example sparsity=0.5"),
        ({"fan_in": 0}, "fan_in: expected 1 to 4, the channels of the signal, got 0; for example fan_in=4"),
    ],
)
def test_what_cannot_work_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        DeconvolutionalNetwork(**{"filters": (4, 6), "size": 3, **options})  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_signal_of_another_shape_is_named() -> None:
    network = network_of()
    message = "signal: expected shape (N, 2, H, W), got (1, 3, 8, 8); for example torch.randn(1, 2, 64, 64)"
    with pytest.raises(ArgumentError) as caught:
        network.infer(normal(1, 3, 8, 8))
    assert str(caught.value) == message
    with pytest.raises(
        ArgumentError, match=r"maps: expected the maps of 2 layers, got of 1; for example network\.infer"
    ):
        network.objective(normal(1, 2, 8, 8), [normal(1, 3, 12, 12)])
