"""The race itself: every engine in a process of its own, the rounds of all of them interleaved."""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import backward, peers
from benchmarks.layers import Layer

ROOT = Path(__file__).parents[1]

# After its turn an engine's threads may look for more work for a while; nobody else starts before they sleep.
REST = 0.02


class Engine:
    """One worker process and what it answered last."""

    def __init__(self, name: str, threads: int, log: Path) -> None:
        self.name, self.threads, self.log = name, threads, log
        self._process: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        count = str(self.threads)
        few = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TORCHINDUCTOR_COMPILE_THREADS": "1", "UPSCORE_NUM_THREADS": count}
        with self.log.open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", self.name, count],
                cwd=ROOT,
                env=os.environ | few | quiet,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )

    def ask(self, **order: Any) -> dict[str, Any]:
        """The worker's answer; a worker that died is reported as failed and started again by the next question."""
        if self._process is None:
            self._process = self._start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(order) + "\n")
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._process.wait()
        self._process = None
        return {"failed": f"the process ended with code {code}: {self.log.read_text()[-300:].strip()}"}

    def close(self) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait()
            self._process = None


@dataclass(frozen=True)
class Settings:
    """How long to measure. ``seconds`` is the time an engine gets in each round of each layer."""

    rounds: int = 15
    seconds: float = 0.04
    threads: int = 2
    backward: bool = False

    # An engine that needs longer than this for one call gets three rounds: its place is clear after one.
    slow: float = 0.5


def _save_exact(layer: Layer, settings: Settings, folder: Path) -> list[str]:
    """The right values, computed once in float64 and left in files for the workers."""
    values = backward.exact(layer) if settings.backward else (peers.exact(layer),)
    files = [str(folder / f"exact{i}.npy") for i in range(len(values))]
    for file, value in zip(files, values, strict=True):
        np.save(file, value)
    return files


def _statistics(samples: Sequence[float]) -> dict[str, Any]:
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return {
        "ms": statistics.median(samples) * 1e3,
        "low_ms": low * 1e3,
        "high_ms": high * 1e3,
        "min_ms": min(samples) * 1e3,
        "rounds": len(samples),
    }


def _race_layer(layer: Layer, engines: Sequence[Engine], settings: Settings, folder: Path) -> dict[str, Any]:
    """Each engine's statistics over the rounds; one sample of a round is the median of its calls."""
    exact = _save_exact(layer, settings, folder)
    order = {"do": "prepare", "layer": layer.as_dict(), "backward": settings.backward, "exact": exact}
    results: dict[str, Any] = {engine.name: engine.ask(**order) for engine in engines}
    running = [engine for engine in engines if "seconds" in results[engine.name]]
    samples: dict[str, list[float]] = {engine.name: [] for engine in running}
    shuffle = random.Random(layer.name)
    for done in range(settings.rounds):
        turn = [e for e in running if done < 3 or results[e.name]["seconds"] < settings.slow]
        shuffle.shuffle(turn)
        for engine in turn:
            time.sleep(REST)
            answer = engine.ask(do="time", seconds=settings.seconds)
            if "seconds" in answer:
                samples[engine.name].append(statistics.median(answer["seconds"]))
            else:
                results[engine.name] = answer
                running = [e for e in running if e is not engine]
    for name, taken in samples.items():
        if len(taken) > 1 and "seconds" in results[name]:
            results[name] = {"error": results[name]["error"]} | _statistics(taken)
    return results


def race(layers: Sequence[Layer], names: Sequence[str], settings: Settings) -> Iterator[dict[str, Any]]:
    """One row of results after the other, with a progress bar."""
    columns = (TextColumn("{task.description:32.32s}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory() as folder, Progress(*columns) as progress:
        engines = [Engine(name, settings.threads, Path(folder, f"{name}.log")) for name in names]
        task = progress.add_task("starting", total=len(layers))
        try:
            # Not counted: processes still start, and memory that the system has not handed out yet is slow once.
            for layer in layers[:1]:
                _race_layer(layer, engines, replace(settings, rounds=1), Path(folder))
            for layer in layers:
                progress.update(task, description=layer.name)
                results = _race_layer(layer, engines, settings, Path(folder))
                times = sorted((result["ms"], name) for name, result in results.items() if "ms" in result)
                progress.console.print(f"{layer.name}: {', '.join(f'{name} {ms:.3g}' for ms, name in times)} ms")
                progress.advance(task)
                yield {"layer": layer.as_dict(), "engines": results}
        finally:
            for engine in engines:
                engine.close()
