"""Optimisers and schedules by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from upscore.errors import ArgumentError
from upscore.training.settings import PRECISIONS, Settings, fastest


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_kernels_decay_and_biases_do_not(name: str, kind: type[torch.optim.Optimizer]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, (3, 2)), nn.BatchNorm2d(4), nn.Linear(2, 2))
    network[2].requires_grad_(False)
    settings = Settings(steps=10, optimizer=name, rate=0.25, momentum=0.75, weight_decay=0.5)
    optimizer = settings.optimizer_for(network)
    assert type(optimizer) is kind
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(network.named_parameters())
    assert decays == {
        id(named["0.weight"]): 0.5,
        **{id(named[name]): 0.0 for name in ("0.bias", "1.weight", "1.bias")},
    }
    assert all(group["lr"] == 0.25 for group in optimizer.param_groups)
    if name == "sgd":
        assert all(group["momentum"] == 0.75 for group in optimizer.param_groups)


@pytest.mark.parametrize("schedule", ["cosine", "poly", "step"])
def test_rates_rise_in_the_warmup_and_then_fall(schedule: str) -> None:
    settings = Settings(steps=100, rate=2.0, warmup=10, schedule=schedule)
    rates = [settings.rate_at(step) for step in range(100)]
    assert rates[:9] == sorted(rates[:9])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) <= 2.0
    assert rates[-1] < 0.05
    assert Settings(steps=100, rate=2.0, warmup=0, schedule=schedule).rate_at(0) == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"optimizer": "lion"},
            r"optimizer: expected one of adam, adamw, sgd, got 'lion'; for example optimizer='adam'",
        ),
        ({"schedule": "flat"}, r"schedule: expected one of cosine, poly, step, got 'flat'"),
        ({"precision": "int8"}, r"precision: expected one of float32, bfloat16, float16, got 'int8'"),
        ({"accumulate": 0}, r"accumulate: expected at least 1, got 0; for example accumulate=1"),
        ({"steps": 0}, r"steps: expected at least 1, got 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Settings(**{"steps": 10, **change})


def test_the_fastest_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastest("cpu") in PRECISIONS
    for has, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has, raising=False)
        assert fastest("cpu") == expected
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert fastest("cpu") == "float32"
