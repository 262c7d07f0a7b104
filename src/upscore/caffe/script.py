"""Run an unchanged pycaffe program: its ``import caffe`` gets upscore's."""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import logging
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

__all__ = ["as_caffe", "run"]


class _Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``caffe`` and ``caffe.anything`` as ``upscore.caffe`` and its modules: the same ones, not copies."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "caffe" and not name.startswith("caffe."):
            return None
        try:
            importlib.import_module(f"upscore.{name}")
        except ModuleNotFoundError:
            return None
        return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = sys.modules[f"upscore.{spec.name}"]
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """The module has run as one of upscore; only its spec, which the import has replaced, is put back."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


@contextlib.contextmanager
def as_caffe() -> Iterator[None]:
    """While the block runs, ``import caffe`` imports :mod:`upscore.caffe`, even where Caffe itself is installed."""
    real = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "caffe"}
    finder = _Alias()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == "caffe"]:
            del sys.modules[name]
        sys.modules.update(real)


@contextlib.contextmanager
def _progress() -> Iterator[None]:
    """While the block runs, solvers report on stderr, as Caffe's do."""
    log, handler = logging.getLogger("upscore.caffe"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def run(path: str | os.PathLike[str], arguments: Sequence[str] = ()) -> None:
    """Run a program as ``python path arguments`` would, with upscore's ``caffe``."""
    argv, folder = sys.argv, str(Path(path).resolve().parent)
    sys.argv = [os.fspath(path), *arguments]
    sys.path.insert(0, folder)
    try:
        with as_caffe(), _progress():
            runpy.run_path(os.fspath(path), run_name="__main__")
    finally:
        sys.argv = argv
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
