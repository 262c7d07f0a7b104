"""The command as a process: how it ends."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COMMAND = [sys.executable, "-m", "upscore"]


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "terminated"])
def test_what_ends_a_run_leaves_no_half_written_file(tmp_path: Path, sign: signal.Signals, code: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    arguments = ["run", "upscale-x2", "photo.png", "-o", "big.png", "--threads", "1"]
    child = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(sign, signal.SIG_DFL),  # which shells let what runs behind them ignore
    )
    until = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) == 1 and child.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert len(list(tmp_path.iterdir())) == 2  # it is being written
    child.send_signal(sign)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == code, errors
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_an_error_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "run", "upscale-x3", "a.png", "-o", "b.png"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.decode().startswith("upscore: ")
    assert "upscale-x3" in done.stderr.decode()
    assert "upscale-x2" in done.stderr.decode()  # a value that would work
    assert done.stderr.count(b"\n") == 1
