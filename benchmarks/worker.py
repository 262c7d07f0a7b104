"""One engine in a process of its own, told what to do by lines of JSON: ``python -m benchmarks.worker ENGINE THREADS``.

{"do": "prepare", "layer": {...}, "backward": false, "exact": [files of float64 arrays]}
                                      -> {"error": 1e-7, "seconds": 0.001} or {"not_supported": "..."}
{"do": "time", "seconds": 0.03}       -> {"seconds": [...]}, one number per call
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import backward, peers
from benchmarks.layers import Layer

# Float32 engines sum in an order of their own; anything beyond this is another layer, not rounding.
TOLERANCE = 1e-5


Prepared = tuple[Callable[[], Any], tuple[Any, ...]]


def _prepare(engine: str, threads: int, order: dict[str, Any]) -> tuple[Prepared, dict[str, Any]]:
    """What to run, with the arrays that it reads (some engines borrow their memory), and the answer."""
    layer = Layer.from_dict(order["layer"])
    arrays: tuple[Any, ...] = layer.arrays()
    if order["backward"]:
        arrays += (layer.output_gradient(),)
        run, fetch = backward.ENGINES[engine](layer, *arrays, threads)
    else:
        run, one = peers.ENGINES[engine](layer, *arrays, threads)

        def fetch(result: Any) -> tuple[Any, ...]:
            return (one(result),)

    values = fetch(run())
    exact = [np.load(file, mmap_mode="r") for file in order["exact"]]
    error = max(peers.relative_error(v, e) for v, e in zip(values, exact, strict=True))
    if not error < TOLERANCE:
        raise ValueError(f"{engine} computes another layer: relative error {error:.1e} on {layer.name}")
    start = time.perf_counter()
    run()
    return (run, arrays), {"error": error, "seconds": time.perf_counter() - start}


def _time(run: Callable[[], Any], seconds: float) -> list[float]:
    """One call to wake the threads and fill the caches, then calls until the time is up, three at least."""
    run()
    taken: list[float] = []
    gc.disable()
    while sum(taken) < seconds or len(taken) < 3:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
        if sum(taken) > 10 * seconds:
            break
    gc.enable()
    return taken


def main(engine: str, threads: int) -> None:
    # Engines print to stdout as they like; the answers go through a copy of it that they do not know.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    prepared: Prepared | None = None
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["do"] == "prepare":
                prepared = None  # frees the last layer before the next one is built
                gc.collect()
                prepared, answer = _prepare(engine, threads, order)
            elif prepared is None:
                raise RuntimeError("nothing was prepared")
            else:
                answer = {"seconds": _time(prepared[0], order["seconds"])}
        except (peers.NotSupportedError, ImportError) as reason:
            answer = {"not_supported": str(reason) or type(reason).__name__}
        except Exception as error:  # the race goes on without this engine, and says so
            answer = {"failed": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
