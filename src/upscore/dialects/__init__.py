"""Every framework's transposed convolution, read into the normal form and written from it."""

from __future__ import annotations
