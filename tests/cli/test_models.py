"""``upscore models``."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from upscore import networks
from upscore.cli.main import app
from upscore.errors import ArgumentError


def models(*words: str) -> str:
    result = CliRunner().invoke(app, ["models", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_list_names_every_network() -> None:
    listed = json.loads(models("--json"))
    assert [fact["name"] for fact in listed] == list(networks.names())
    shown = models()
    for fact in listed:
        assert fact["name"] in shown
        assert f"{fact['parameters']:,}" in shown


def test_a_card() -> None:
    card = json.loads(models("upscale-x2", "--json"))
    assert card == {"name": "upscale-x2", "kind": "upscale"} | networks.find("upscale-x2").card() | card
    shown = models("upscale-x2")
    assert f"{card['psnr']['network']}" in shown
    assert "psnr network" in shown


def test_an_unknown_network() -> None:
    with pytest.raises(ArgumentError, match=r"network: expected one of .*, got 'upscale-x9'"):
        models("upscale-x9")
