"""Learning filters: the objective falls, planted filters are found, a stopped run goes on to the same bits."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from upscore.errors import ArgumentError, FileFormatError
from upscore.networks.deconvolutional import DeconvolutionalLayer, DeconvolutionalNetwork, unit
from upscore.training.deconvolutional import Learning, Round, Settings, pieces


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planted(filters: int, size: int, seed: int, *, count: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Filters, sparse maps and the pictures that they add up to, ``(count, 1, 30, 34)``."""
    generator = torch.Generator().manual_seed(seed)
    truth = unit(torch.randn(filters, 1, size, size, generator=generator))
    shape = (count, filters, 30 + size - 1, 34 + size - 1)
    spikes = torch.rand(shape, generator=generator) < 0.01
    signs = torch.randn(shape, generator=generator).sign()
    maps = spikes * signs * (1 + torch.rand(shape, generator=generator))
    return truth, maps, F.conv_transpose2d(maps, truth, padding=size - 1)


def learning(
    folder: Path,
    images: Tensor | None = None,
    *,
    rounds: int = 6,
    save_every: int = 2,
    seed: int = 0,
    **options: Any,
) -> Learning:
    images = planted(3, 4, 0, count=5)[2] if images is None else images
    options = {"filters": (4, 5), "size": (4, 3), "sparsity": (0.2, 0.1), "fan_in": 2, **options}
    return Learning(
        DeconvolutionalNetwork(**options, seed=seed), images, Settings(rounds, 10, save_every, seed), folder
    )


def test_planted_filters_are_found(tmp_path: Path) -> None:
    """Each of three filters of side 4 is, somewhere in one of eight of side 6, nearly alone; nothing fits better."""
    truth, maps, images = planted(3, 4, 1)
    run = learning(tmp_path, images, rounds=250, filters=(8,), size=6, sparsity=0.1, fan_in=None, seed=7)
    assert run.run()
    learned = run.network.layers[0].weight
    cosines = F.conv2d(F.pad(learned, (3, 3, 3, 3)), truth).abs().amax((2, 3))
    assert (cosines.amax(0) > 0.99).all()
    assert run.objective < 0.1 * float(maps.abs().sum())
    assert run.history[-1].snr > 18
    assert run.history[-1].density < 0.01


def test_the_objective_falls_and_is_that_of_filters_and_maps(tmp_path: Path) -> None:
    run = learning(tmp_path, rounds=40)
    seen: list[Round] = []

    def report(entry: Round) -> None:
        seen.append(entry)
        layer = run.layer
        error = F.conv_transpose2d(run.maps, layer.weight, padding=layer.size - 1) - run.observed
        objective = error.double().square().sum() / 2 + layer.sparsity * run.maps.double().abs().sum()
        assert entry.objective == pytest.approx(float(objective), rel=1e-5)
        assert layer.weight.flatten(1).norm(dim=1).max() <= 1 + 1e-6
        assert (layer.weight[~layer.connections] == 0).all()

    assert run.run(report)
    assert [(entry.layer, entry.number) for entry in seen] == [(layer, n) for layer in (1, 2) for n in range(1, 41)]
    for part in (seen[:40], seen[40:]):
        values = [entry.objective for entry in part]
        assert all(later <= earlier for earlier, later in itertools.pairwise(values))
        assert values[-1] < 0.9 * values[0]
    for layer in run.network.layers:
        torch.testing.assert_close(layer.weight.flatten(1).norm(dim=1), torch.ones(layer.filters))


def test_the_upper_layer_learns_from_the_maps_of_the_lower(tmp_path: Path) -> None:
    run = learning(tmp_path, rounds=8)
    assert run.run()
    lower = run.network.layers[0]
    assert run.number == 1
    assert run.observed.shape == (5, 4, 33, 37)
    assert float(lower.objective(run.images, run.observed).sum()) <= run.history[7].objective


def test_a_round_that_would_raise_the_objective_is_undone(tmp_path: Path) -> None:
    run = learning(tmp_path, rounds=9)
    for _ in range(4):
        run._one_round(lambda _: None)
    maps, filters, objective = run.maps.clone(), run.layer.weight.clone(), run.objective
    run.past_maps, run.momentum = maps + 50 * torch.randn_like(maps), 1e6
    run._one_round(lambda _: None)
    assert run.objective == objective
    assert torch.equal(run.maps, maps)
    assert torch.equal(run.layer.weight, filters)
    run._one_round(lambda _: None)
    assert run.objective < objective


def interrupt(after: int) -> Any:
    rounds = iter(range(1, after + 1))

    def report(_: Round) -> None:
        if next(rounds) == after:
            signal.raise_signal(signal.SIGINT)

    return report


@pytest.mark.parametrize("after", [3, 6, 9])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path, after: int) -> None:
    whole, stopped = learning(tmp_path / "whole"), learning(tmp_path / "parts")
    assert whole.run()
    before = signal.getsignal(signal.SIGINT)
    assert not stopped.run(interrupt(after))
    assert signal.getsignal(signal.SIGINT) is before
    again = learning(tmp_path / "parts")
    again.resume()
    assert len(again.history) == after
    assert again.run()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value), name
    assert torch.equal(again.maps, whole.maps)
    assert [entry.objective for entry in again.history] == [entry.objective for entry in whole.history]


def test_a_run_killed_between_checkpoints_goes_on_from_the_last(tmp_path: Path) -> None:
    whole, killed = learning(tmp_path / "whole"), learning(tmp_path / "parts")
    assert whole.run()
    killed.folder.mkdir()

    def fail(entry: Round) -> None:
        if entry.number == 5:
            raise SystemExit("killed")

    with pytest.raises(SystemExit):
        killed.run(fail)
    again = learning(tmp_path / "parts")
    again.resume()
    assert again.round == 4
    assert again.run()
    assert torch.equal(again.network.layers[1].weight, whole.network.layers[1].weight)


def test_the_seed_decides(tmp_path: Path) -> None:
    runs = [learning(tmp_path / str(i), seed=seed) for i, seed in enumerate((1, 1, 2))]
    for run in runs:
        run.run()
    same, other = (torch.equal(runs[0].network.layers[1].weight, run.network.layers[1].weight) for run in runs[1:])
    assert same
    assert not other


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run = learning(tmp_path)
    run.run(interrupt(1))
    for other, message in (
        (learning(tmp_path, rounds=7), "rounds: expected 6, as the run began, got 7; for example rounds=6"),
        (learning(tmp_path, filters=(4, 6)), r"filters: expected \[4, 5\], as the run began, got \[4, 6\]"),
        (learning(tmp_path, run.images + 1), "photos: expected '[0-9a-f]{16}', as the run began"),
    ):
        with pytest.raises(ArgumentError, match=message):
            other.resume()
    run.checkpoint.write_bytes(b"half a checkpoint")
    with pytest.raises(FileFormatError, match=r"checkpoint\.pt: not a checkpoint that training wrote"):
        learning(tmp_path).resume()


def test_filters_begin_as_pieces_of_what_they_are_connected_to() -> None:
    """Power is in one place of two channels alone: every piece has it, but for the filter that does not see them."""
    layer = DeconvolutionalLayer(3, 3, 2, sparsity=0.1)
    layer.connections.copy_(torch.tensor([[True, True, False], [False, True, True], [False, False, True]]))
    observed = torch.zeros(2, 3, 5, 6)
    observed[1, 0, 4, 5], observed[1, 1, 4, 5] = 3.0, 4.0
    found = pieces(layer, observed, torch.Generator().manual_seed(0))
    assert found[0, :, 1, 1].tolist() == pytest.approx([0.6, 0.8, 0])
    assert found[1, :, 1, 1].tolist() == pytest.approx([0, 1, 0])
    torch.testing.assert_close(found[2], layer.weight[2])


def test_pieces_are_drawn_by_their_power() -> None:
    observed = torch.zeros(1, 1, 1, 21)
    observed[..., 5], observed[..., 15] = 1.0, 3.0
    generator = torch.Generator().manual_seed(3)
    layer = DeconvolutionalLayer(1, 400, 1, sparsity=0.1)
    layer.weight.copy_(-layer.weight.abs())
    observed[..., 5] *= -1  # to tell the two: the filters come out as -1 and 1
    found = pieces(layer, observed, generator).flatten()
    assert 0.87 < float((found > 0).double().mean()) < 0.93  # 9 to 1


def test_a_sparsity_that_leaves_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"sparsity: expected less than [\d.]+ in layer 1: from there on all maps are zero, got 50"
    ):
        learning(tmp_path, sparsity=(50, 0.1))
    run = learning(tmp_path, sparsity=(0.2, 50))
    with pytest.raises(
        ArgumentError, match=r"in layer 2: from there on all maps are zero, got 50; for example sparsity="
    ):
        run.run()


def test_pictures_smaller_than_a_filter_are_named(tmp_path: Path) -> None:
    message = (
        "images: expected pictures of at least 7 x 7 pixels, the size of a filter, got 6 x 9; for example torch.randn"
    )
    with pytest.raises(ArgumentError, match=message):
        learning(tmp_path, torch.randn(2, 1, 6, 9), size=7)


def test_black_pictures_teach_nothing_and_break_nothing(tmp_path: Path) -> None:
    run = learning(tmp_path, torch.zeros(2, 1, 12, 15))
    assert run.run()
    assert run.objective == 0
    for layer in run.network.layers:
        assert layer.weight.isfinite().all()
