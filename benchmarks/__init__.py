"""The race against the other engines: ``python -m benchmarks --help``."""
