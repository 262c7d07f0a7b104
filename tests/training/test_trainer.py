"""The training loop: stopped anywhere, it goes on to the same bits."""

from __future__ import annotations

import resource
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from upscore.errors import ArgumentError, FileFormatError, UpscoreError
from upscore.training.trainer import Progress, Trainer

SCRIPT = Path(__file__).with_name("tiny.py")
TINY = runpy.run_path(str(SCRIPT))
SETTINGS = TINY["SETTINGS"]


def trainer(folder: Path, **changes: Any) -> Trainer:
    return Trainer(TINY["Tiny"](), replace(SETTINGS, **changes), folder)


def results(finished: Trainer) -> dict[str, Any]:
    return {**finished.network.state_dict(), **{f"best {k}": v for k, v in finished.best.items()}}


def assert_same_bits(a: Trainer, b: Trainer) -> None:
    assert a.step == b.step == SETTINGS.steps
    assert a.best_score == b.best_score
    for name, value in results(a).items():
        assert torch.equal(value, results(b)[name]), name


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in tiny.py: with two threads the last bits differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    run = trainer(tmp_path_factory.mktemp("uninterrupted"))
    assert run.run()
    return run


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    uninterrupted: Trainer, tmp_path: Path, sign: signal.Signals
) -> None:
    child = subprocess.Popen([sys.executable, str(SCRIPT), str(tmp_path)])
    while not (tmp_path / "checkpoint.pt").exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(sign)
    assert child.wait() == (130 if sign == signal.SIGINT else -signal.SIGKILL)
    resumed = trainer(tmp_path)
    torch.set_num_threads(2)
    resumed.resume()
    assert torch.get_num_threads() == 1
    assert 4 <= resumed.step < SETTINGS.steps
    assert resumed.run()
    assert_same_bits(resumed, uninterrupted)


def test_it_learns_and_reports(uninterrupted: Trainer, tmp_path: Path) -> None:
    seen: list[Progress] = []
    run = trainer(tmp_path, steps=20)
    first = run.task.score(run.network)["error"]
    assert run.run(seen.append)
    assert [progress.step for progress in seen] == list(range(1, 21))
    assert [progress.score is None for progress in seen] == [True] * 6 + [False] * 14
    assert uninterrupted.best_score is not None
    assert uninterrupted.best_score > first


def test_another_seed_is_another_run(uninterrupted: Trainer, tmp_path: Path) -> None:
    other = trainer(tmp_path, seed=4)
    other.run()
    assert not torch.equal(other.best["0.weight"], uninterrupted.best["0.weight"])


def test_batches_add_up_to_the_gradients_of_one_large_batch(tmp_path: Path) -> None:
    run = trainer(tmp_path, accumulate=3)
    run.network.eval()  # so that samples do not see each other
    drawn: list[torch.Tensor] = []
    draw = run.task.batch

    def watched(generator: torch.Generator, done: float) -> torch.Tensor:
        drawn.append(draw(generator, done))
        return drawn[-1]

    run.task.batch = watched  # type: ignore[method-assign]
    run._gradients()
    found = [p.grad.clone() for p in run.network.parameters() if p.grad is not None]
    assert len(drawn) == 3
    assert not torch.equal(drawn[0], drawn[1])
    run.network.zero_grad()
    run.task.loss(torch.cat(drawn), 0.0).backward()  # type: ignore[no-untyped-call]
    for gradient, parameter in zip(found, run.network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_a_run_ends_early_when_nothing_gets_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([1.0, 3.0, 2.0, 3.0, 9.0])
    run = trainer(tmp_path, patience=2, score_every=3)
    monkeypatch.setattr(run.task, "score", lambda network: {"error": next(scores)})
    assert run.run()
    assert run.step == 12
    assert run.best_score == 3
    assert torch.load(run.checkpoint, weights_only=True)["step"] == 12
    again = trainer(tmp_path, patience=2, score_every=3)
    again.resume()
    assert again.run()
    assert again.step == 12


def test_a_loss_that_is_no_number_ends_the_run_and_spares_the_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path, rate=1e30, clip=1e30)
    message = (
        r"the loss is (nan|inf) in step \d+, .* the last checkpoint stays; start anew with a lower rate than 1e\+30"
    )
    with pytest.raises(UpscoreError, match=message):
        run.run()
    kept = torch.load(run.checkpoint, weights_only=True)["step"] if run.checkpoint.exists() else 0
    assert kept <= run.step < SETTINGS.steps


def test_resuming_a_different_run_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, steps=2).run()
    with pytest.raises(ArgumentError, match=r"rate: expected 0.01, as the run began, got 0.5; for example rate=0.01"):
        trainer(tmp_path, steps=2, rate=0.5).resume()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a file"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(damage)
    with pytest.raises(FileFormatError, match=r"checkpoint.pt: not a checkpoint that training wrote"):
        trainer(tmp_path).resume()


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """A limit on the size of files is what a full disk is like: writing goes well up to some byte."""
    run = trainer(tmp_path, steps=4)
    run.run()
    before = run.checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    message = r"checkpoint.pt: step 4 cannot be saved \(.*\); the one before it stays; with --resume the run goes on"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        with pytest.raises(UpscoreError, match=message):
            run.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert run.checkpoint.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
