"""What a result has to say about where it was measured, and what that machine can do at most."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("numpy", "torch", "onnxruntime", "openvino", "ncnn", "tensorflow-cpu", "tensorflow")
# Large pages, and freed memory is kept: otherwise engines whose outputs come from malloc wait for fresh pages at every
# call, up to half of their time (the GNU C Library's manual, "Memory Allocation Tunables").
_TUNABLES = {"hugetlb": 1, "mmap_threshold": 1 << 32, "trim_threshold": 1 << 32}
MALLOC = ":".join(f"glibc.malloc.{name}={value}" for name, value in _TUNABLES.items())
ISA = ("sse2", "avx", "avx2", "fma", "avx512f", "avx512vl", "avx512bw", "asimd", "sve")


def with_malloc() -> None:
    """Begins this command again under these settings, which a process has from its start, for all engines alike."""
    if os.environ.get("GLIBC_TUNABLES") != MALLOC:
        os.environ["GLIBC_TUNABLES"] = MALLOC
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]])


def _cpu() -> tuple[str, list[str]]:
    fields: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    ids = " ".join(f"{key} {fields[key]}" for key in ("cpu family", "model", "stepping") if key in fields)
    return f"{name} ({ids})" if ids else name, [isa for isa in ISA if isa in flags]


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def describe(threads: int) -> dict[str, Any]:
    """CPU, instruction sets, threads, versions, commit and date."""
    cpu, isa = _cpu()
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        import upscore

        versions["upscore"] = upscore.__version__
        active = str(upscore.cpu.active())
    except (ImportError, AttributeError):
        active = "unknown"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "isa": isa,
        "upscore_isa": active,
        "threads": threads,
        "system": platform.platform(),
        "malloc": os.environ.get("GLIBC_TUNABLES", "as it is"),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _git("rev-parse", "HEAD"),
        "changed_since_commit": bool(_git("status", "--porcelain", "--", "src", "cpp", "benchmarks/*.py")),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0],
    }


def roofline(threads: int) -> dict[str, float]:
    """Measured GFLOP/s of multiply-adds and GB/s written and read, by a small C++ program built for this CPU."""
    source, program = ROOT / "benchmarks" / "roofline.cc", ROOT / "build" / "roofline"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        program.parent.mkdir(exist_ok=True)
        compiler = os.environ.get("CXX", "c++")
        flags = ["-std=c++20", "-O3", "-march=native", "-pthread"]
        subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True)
    result: dict[str, float] = json.loads(subprocess.check_output([program, str(threads)]))
    return result


def best_roofline(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """The higher of two measurements: disturbance only lowers them, and the higher bound is the harder one for us."""
    return {key: max(first[key], second[key]) for key in first}
