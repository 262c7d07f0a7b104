"""``upscore run``: a network over pictures: files, folders and globs.

What is run is found by the first arguments: each function of ``FINDERS`` looks at the words of the command line and
answers with a ``Runner`` and the words that are left, or with None when they are not meant for it.
"""

from __future__ import annotations

import glob
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from upscore.cli.runner import Finder, Options, Runner
from upscore.errors import ArgumentError, UpscoreError

__all__ = ["FINDERS", "run"]

EXAMPLES = """
Examples:\n
  upscore run upscale-x2 photo.jpg -o big.png\n
  upscore run upscale-x2 photos/ -o big/ --format png\n
  upscore run upscale-x2 'scans/*.tif' -o big/ --json\n
  upscore run street photo.jpg -o classes.png\n
  upscore run street photos/ -o labels/ --labels\n
  upscore run deploy.prototxt weights.caffemodel photo.jpg -o classes.png
"""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}
"""What is taken from a folder; a file that is named is tried whatever its name."""


class _Upscaler:
    form: str | None = None

    def __init__(self, network: Any, options: Options) -> None:
        self.network, self.options = network, options
        self.ending = f"_x{network.factor}"

    def __call__(self, source: Path, target: Path, tick: Callable[[float], None]) -> dict[str, Any]:
        from upscore.tiled.upscaling import upscale_file

        return upscale_file(self.network, source, target, quality=self.options.quality, tick=tick)


class _Segmenter:
    def __init__(self, network: Any, classes: Any, options: Options) -> None:
        import torch

        from upscore.nn import accelerate
        from upscore.tiled.segmenting import SIDE

        self.network = accelerate(network.fold()).to(memory_format=torch.channels_last)
        self.classes, self.options = classes, options
        self.ending = "_labels" if options.labels else "_classes"
        self.form: str | None = "png" if options.labels else None
        self.side = options.side or SIDE

    def __call__(self, source: Path, target: Path, tick: Callable[[float], None]) -> dict[str, Any]:
        from upscore.tiled.segmenting import draw_file, label_file

        if self.options.labels:
            return label_file(self.network, self.classes, source, target, side=self.side, tick=tick)
        quality = self.options.quality
        return draw_file(self.network, self.classes, source, target, side=self.side, quality=quality, tick=tick)


def _bundled(words: list[str], options: Options) -> tuple[Runner, list[str]] | None:
    """A network of the registry, by its name."""
    from upscore.networks import find

    network = find(words[0])
    weights = network.load(options.weights)
    if network.classes is not None:
        return _Segmenter(weights, network.classes, options), words[1:]
    return _Upscaler(weights, options), words[1:]


def _caffe(words: list[str], options: Options) -> tuple[Runner, list[str]] | None:
    """A Caffe model: a prototxt and its weights."""
    from upscore.cli.run_caffe import find

    return find(words, options)


FINDERS: list[Finder] = [_caffe, _bundled]


def run(
    words: Annotated[list[str], typer.Argument(metavar="NETWORK PICTURE...", help="A network and pictures.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write, or a folder for several.")],
    form: Annotated[str | None, typer.Option("--format", help="In a folder: png, tif, jpg or webp.")] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG and WebP.")] = 95,
    weights: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Your own weights.")] = None,
    mean: Annotated[str | None, typer.Option(help="Caffe: 104,117,123 (of ImageNet, without it) or a file.")] = None,
    scale: Annotated[float, typer.Option(help="Caffe: what values minus the mean are multiplied by.")] = 1.0,
    order: Annotated[str, typer.Option(help="Caffe: bgr or rgb, of the channels.")] = "bgr",
    blob: Annotated[str | None, typer.Option(help="Caffe: the blob to write; the last one without it.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Write the classes' numbers, as a PNG.")] = False,
    side: Annotated[int | None, typer.Option(min=1, help="Look for classes at this longer side.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all the processors without it.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Run a network over pictures; PICTURE is a file, a folder or a glob.

    PNG and TIFF keep 16 bits a channel, and are written band by band however large; colour profiles, transparency and
    the upright orientation stay. A picture that cannot be read is reported and the others go on (exit code 1).

    A network that tells classes sees the picture with its longer side brought to --side pixels (720 without it); its
    scores are interpolated to the picture's size, and the classes drawn over it with a legend below.
    """
    options = Options(weights, quality, mean, scale, order, blob, labels, side)
    runner, names = next(found for finder in FINDERS if (found := finder(words, options)) is not None)
    for option, given in (("--labels", labels), ("--side", side is not None)):
        if given and not isinstance(runner, _Segmenter):
            raise ArgumentError(option, "a bundled network that tells classes", repr(words[0]), "upscore run street")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    jobs = _jobs(names, output, form or runner.form, runner.ending)
    if not force:
        for _, target in jobs:
            _refuse_to_replace(target)
    results = _all(jobs, runner, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(results, indent=2, ensure_ascii=False))
    if any("error" in result for result in results):
        raise typer.Exit(1)


def _refuse_to_replace(target: Path) -> None:
    if target.exists():
        raise ArgumentError("--output", "a file that does not exist", target, "--force to replace it")


def _jobs(names: list[str], output: Path, form: str | None, ending: str) -> list[tuple[Path, Path]]:
    """Which picture is written where; ``--output`` is a folder when it is one, ends in a slash, or must be."""
    if not names:
        raise ArgumentError("PICTURE", "at least one picture, folder or glob", "none", "photo.jpg")
    sources = [found for name in names for found in _sources(name)]
    folder = output.is_dir() or len(sources) != 1 or Path(names[0]).is_dir() or output.suffix == ""
    if folder and output.is_file():
        raise ArgumentError("--output", "a folder, because there are several pictures", output, "-o big/")
    jobs = []
    for source, place in sources:
        suffix = f".{form.lstrip('.').lower()}" if form is not None else source.suffix
        suffix = suffix if suffix.lower() in _SUFFIXES - {".bmp"} else ".png"
        jobs.append((source, output / place.with_name(f"{place.stem}{ending}{suffix}") if folder else output))
    taken: dict[Path, Path] = {}
    for source, target in jobs:
        if target in taken:
            raise ArgumentError("--output", f"a place of its own for {source}", f"{target}, as {taken[target]}", "-o")
        if target.resolve() == source.resolve():
            raise ArgumentError("--output", "a file other than the picture itself", target, "-o big/")
        taken[target] = source
    return jobs


def _sources(name: str) -> list[tuple[Path, Path]]:
    """The pictures that a word means, each with its place below an output folder."""
    path = Path(name)
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
        if not inside:
            raise ArgumentError("PICTURE", "a folder with pictures", path, "photos/")
        return [(p, p.relative_to(path)) for p in inside]
    if not path.exists() and glob.has_magic(name):
        matching = sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file())
        if not matching:
            raise ArgumentError("PICTURE", "a glob that matches files", repr(name), "'photos/*.jpg'")
        return [(p, Path(p.name)) for p in matching]
    return [(path, Path(path.name))]


def _all(jobs: list[tuple[Path, Path]], runner: Runner, *, quiet: bool) -> list[dict[str, Any]]:
    """Run every job; a file that fails is reported and does not stop the others."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    results: list[dict[str, Any]] = []
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        for number, (source, target) in enumerate(jobs, 1):
            task = bar.add_task(f"{source.name} ({number} of {len(jobs)})", total=1.0)
            result: dict[str, Any] = {"input": str(source), "output": str(target)}
            began = time.monotonic()
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                done = runner(source, target, lambda fraction, task=task: bar.update(task, completed=fraction))  # type: ignore[misc]
                result.update(done, seconds=round(time.monotonic() - began, 3))
            except (UpscoreError, OSError, MemoryError) as error:
                result = {"input": str(source), "error": _message(source, error)}
                console.print(f"upscore: {result['error']}", markup=False)
            bar.remove_task(task)
            results.append(result)
            if not quiet and "error" not in result:
                notes = "".join(f"; {note}" for note in result["notes"])
                size = f"{result['width']} x {result['height']}, {result['seconds']:.1f} s"
                typer.echo(f"{target} ({size}{notes})")
    return results


def _message(source: Path, error: Exception) -> str:
    if isinstance(error, UpscoreError):
        return str(error)
    if isinstance(error, FileNotFoundError) and not source.exists():
        return f"{source}: no such file"
    return f"{source}: {'not enough memory' if isinstance(error, MemoryError) else error}"
