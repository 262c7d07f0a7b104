"""The processes in which the frameworks run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from dialects.oracles import Worker


@pytest.fixture(scope="session")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Worker]]:
    """The process whose Keras runs on a backend: "tensorflow", "jax" or "torch"; started once a session."""
    running: dict[str, Worker] = {}

    def start(backend: str) -> Worker:
        if backend not in running:
            running[backend] = Worker(backend, tmp_path_factory.mktemp(backend))
        return running[backend]

    yield start
    for process in running.values():
        process.close()
