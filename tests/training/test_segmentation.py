"""The task of segmentation: it learns, is scored, and parts of a step add up to the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training import streets

from upscore.networks.classes import Classes, normalised
from upscore.training import curves, predictions
from upscore.training.augmentation import Augmentation
from upscore.training.confusion import Confusion
from upscore.training.labelled import read
from upscore.training.segmentation import Recipe, Segmentation, answer, measure
from upscore.training.settings import Settings
from upscore.training.trainer import Trainer

RECIPE = Recipe(batch_size=2, crops=((24, 32), (32, 40)), augmentation=Augmentation(scale=(0.8, 1.2)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return streets.write(tmp_path_factory.mktemp("streets"))


def task(data: Path, recipe: Recipe = RECIPE, network: nn.Module | None = None) -> Segmentation:
    torch.manual_seed(0)
    if network is None:
        network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, (1, 3), padding=(0, 1)))
    classes = Classes.read(data / "classes.json")
    train, val = (read(data / part, classes) for part in ("train", "val"))
    return Segmentation(network, classes, train, val, recipe, {"network": "tiny"})


def test_batches_are_normalised_views_of_the_crops_size(data: Path) -> None:
    tiny = task(data)
    for done, size in ((0.0, (24, 32)), (0.6, (32, 40))):
        pictures, labels = tiny.batch(torch.Generator().manual_seed(1), done)
        assert pictures.shape == (2, 3, *size)
        assert pictures.is_contiguous(memory_format=torch.channels_last)
        assert labels.shape == (2, *size)
        assert set(labels.unique().tolist()) <= {0, 1, 2, 3}
    again = tiny.batch(torch.Generator().manual_seed(1), done)
    assert torch.equal(again[0], pictures)
    assert torch.equal(again[1], labels)


def test_the_score_is_the_confusion_of_the_answers(data: Path) -> None:
    tiny = task(data)
    network = tiny.network.eval()
    counted = Confusion.empty(3)
    for item in tiny.validation:
        pixels = torch.from_numpy(np.array(item.picture)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            labels = network(normalised(pixels))[0].argmax(0).numpy()
        np.testing.assert_array_equal(answer(network, item), labels)
        counted = counted.with_pixels(np.asarray(item.labels), labels)
    scores = tiny.score(network)
    assert next(iter(scores)) == "mean IoU"
    assert scores == counted.metrics()
    told: list[float] = []
    np.testing.assert_array_equal(measure(network, tiny.validation, tiny.classes, told.append).counts, counted.counts)
    assert told == [0.5, 1.0]


class Fixed(nn.Module):
    """Scores that are parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.scores


def test_the_loss_weighs_classes_and_adds_lovasz(data: Path) -> None:
    plain, both = (task(data, Recipe(crops=((24, 32),), lovasz=lovasz), Fixed()) for lovasz in (0.0, 2.0))
    labels = torch.randint(0, 4, (2, 24, 32), generator=torch.Generator().manual_seed(3))
    batch = (torch.zeros(2, 3, 24, 32), labels)
    expected = nn.functional.cross_entropy(
        plain.network.scores,
        labels,
        plain.weights,
        ignore_index=3,
        reduction="sum",  # type: ignore[arg-type]
    )
    assert plain.loss(batch, 0).item() == pytest.approx(expected.item() / labels.numel())
    added = both.loss(batch, 0).item() - plain.loss(batch, 0).item()
    assert 0 < added / 2 < 1
    assert (plain.weights.argmax(), plain.weights.argmin()) != (0, 0)


def test_it_learns_and_shows_what_it_learned(data: Path, tmp_path: Path) -> None:
    settings = Settings(
        steps=40,
        rate=2e-2,
        optimizer="sgd",
        schedule="poly",
        warmup=3,
        clip=5,
        decay=0.8,
        score_every=20,
        save_every=20,
    )
    trainer = Trainer(task(data, Recipe(2, ((32, 40),), Augmentation((0.9, 1.1)), lovasz=0.5)), settings, tmp_path)
    before = trainer.task.score(trainer.network)["mean IoU"]
    assert trainer.run()
    assert trainer.best_score is not None
    assert trainer.best_score > max(0.8, before)
    assert [entry["step"] for entry in trainer.history] == [20, 40]
    assert trainer.history[1]["loss"] < trainer.history[0]["loss"]
    assert all(entry["score"] == entry["mean IoU"] for entry in trainer.history)

    curves.write(trainer.history, tmp_path / "history.json")
    curves.draw(trainer.history, tmp_path / "curves.svg")
    assert "mean IoU" in (tmp_path / "curves.svg").read_text()
    shown = predictions.spread(trainer.task.validation, 6)
    predictions.draw(trainer.network, shown, trainer.task.classes, tmp_path / "predictions.png")
    with predictions.Image.open(tmp_path / "predictions.png") as sheet:
        picture, truth, own = np.split(np.asarray(sheet), 3, axis=1)
    labels = np.asarray(shown[0].labels)
    height, width = labels.shape
    np.testing.assert_array_equal(picture[:height, :width], np.asarray(shown[0].picture))
    np.testing.assert_array_equal(truth[:height, :width], trainer.task.classes.draw(labels))
    answers = np.where(labels == 3, 3, answer(trainer.network.eval(), shown[0]))
    np.testing.assert_array_equal(own[:height, :width], trainer.task.classes.draw(answers))


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_lower_precision_learns_too_and_resumes_to_the_same_bits(data: Path, tmp_path: Path, precision: str) -> None:
    settings = Settings(steps=12, rate=1e-2, optimizer="adamw", warmup=2, clip=5, score_every=4, precision=precision)
    whole, part = (Trainer(task(data), settings, tmp_path / name) for name in ("whole", "part"))
    assert whole.run()

    def stop_after_five(progress: object) -> None:
        part._stop = part.step == 5

    assert not part.run(stop_after_five)
    resumed = Trainer(task(data), settings, tmp_path / "part")
    resumed.resume()
    assert resumed.step == 5
    assert resumed.run()
    for name, value in whole.network.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    assert [e | {"seconds": 0} for e in whole.history] == [e | {"seconds": 0} for e in resumed.history]
