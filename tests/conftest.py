"""What every test runs under: few threads, repeatable random cases, and no test that quietly does not run."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# Read by the libraries when they are first imported, which is after this file.
for _name, _value in {
    "OMP_NUM_THREADS": "2",
    "TF_NUM_INTRAOP_THREADS": "2",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_PLATFORMS": "cpu",
    "NO_COLOR": "1",
}.items():
    os.environ.setdefault(_name, _value)

# No deadline: on a busy machine a slow example says nothing about the code.
settings.register_profile("ci", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("random", settings.get_profile("ci"), derandomize=False)
settings.register_profile("quick", settings.get_profile("ci"), max_examples=10)
settings.register_profile("thorough", settings.get_profile("random"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

REQUIRE_ALL = os.environ.get("UPSCORE_REQUIRE_ALL", "0") == "1"
HARDWARE = "hardware: "  # the only reason that still skips when everything is required, e.g. "hardware: needs CUDA"


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not REQUIRE_ALL or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(HARDWARE):
        report.outcome = "failed"
        report.longrepr = f"skipped although UPSCORE_REQUIRE_ALL=1: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _forbid_skip(report)
    return report


@pytest.fixture
def restore_engine_settings() -> Generator[None]:
    """For tests that choose instruction sets or numbers of threads."""
    from upscore import cpu

    isa, threads = cpu.active(), cpu.threads()
    yield
    cpu.force(isa)
    cpu.set_threads(threads)
