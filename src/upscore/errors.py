"""The errors upscore raises. Standard library only.

Every message names the argument, what was expected, what came, and a value that would work.
"""

from __future__ import annotations

__all__ = ["ArgumentError", "ArgumentTypeError", "FileFormatError", "MissingDependencyError", "UpscoreError"]


class UpscoreError(Exception):
    """The base of every error that upscore raises on purpose."""


class ArgumentError(UpscoreError, ValueError):
    """An argument has a value that cannot work.

    >>> raise ArgumentError("stride", "an integer of at least 1", 0, "stride=2")
    Traceback (most recent call last):
        ...
    upscore.errors.ArgumentError: stride: expected an integer of at least 1, got 0; for example stride=2
    """

    def __init__(self, argument: str, expected: str, got: object, example: str) -> None:
        super().__init__(f"{argument}: expected {expected}, got {got}; for example {example}")
        self.argument, self.expected, self.got, self.example = argument, expected, got, example

    def __reduce__(self) -> tuple[type[ArgumentError], tuple[str, str, object, str]]:
        return type(self), (self.argument, self.expected, self.got, self.example)


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument has a type (or an array a dtype) that cannot work."""


class FileFormatError(UpscoreError, ValueError):
    """A file does not hold what its kind of file must hold."""


class MissingDependencyError(UpscoreError, ImportError):
    """An optional dependency is needed and not installed; the message says which extra brings it."""

    def __init__(self, package: str, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the package {package}, which is not installed; for example pip install 'upscore[{extra}]'"
        )
        self.package, self.what, self.extra = package, what, extra

    def __reduce__(self) -> tuple[type[MissingDependencyError], tuple[str, str, str]]:
        return type(self), (self.package, self.what, self.extra)
