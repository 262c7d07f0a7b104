"""The rule that nothing is skipped in silence, tried on a small suite of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = {
    "test_reason.py": "import pytest\ndef test_it():\n    pytest.skip('no such oracle')\n",
    "test_module.py": "import pytest\npytest.importorskip('no_such_package', reason='needs no_such_package')\n",
    "test_mark.py": "import pytest\n@pytest.mark.skipif(True, reason='not today')\ndef test_it(): pass\n",
    "test_hardware.py": "import pytest\ndef test_it():\n    pytest.skip('hardware: needs CUDA')\n",
    "test_xfail.py": "import pytest\n@pytest.mark.xfail(reason='known')\ndef test_it():\n    assert False\n",
    "test_pass.py": "def test_it():\n    assert 1 + 1 == 2\n",
}


@pytest.mark.parametrize(
    ("require_all", "code", "summary"),
    [("0", 0, "1 passed, 4 skipped, 1 xfailed"), ("1", 1, "1 failed, 1 passed, 1 skipped, 1 xfailed, 2 errors")],
)
def test_skips_are_failures_when_everything_is_required(
    tmp_path: Path, require_all: str, code: int, summary: str
) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    for name, text in SUITE.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --continue-on-collection-errors\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=os.environ | {"UPSCORE_REQUIRE_ALL": require_all},
        capture_output=True,
        text=True,
    )
    assert summary in done.stdout
    assert done.returncode == code
    if require_all == "1":
        for reason in ("no such oracle", "needs no_such_package", "not today"):
            assert f"skipped although UPSCORE_REQUIRE_ALL=1: {reason}" in done.stdout
