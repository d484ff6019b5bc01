"""What the command shows of a fleet, and how it watches a rollout: as text, as JSON, by its exit code."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from holdfast_cli import output, watch
from holdfast_cli.failures import Refused
from holdfast_cli.main import holdfast
from holdfast_cli.session import Session
from support.shown_fleet import Shown, ShownFleet, running_rollout, wave


@pytest.fixture
def shown() -> Iterator[Shown]:
    server = Shown(ShownFleet(devices_a_region=4))
    yield server
    server.close()


def run(shown: Shown, *words: str) -> Result:
    return CliRunner().invoke(holdfast, ["--server", shown.address, *words], obj=Session(), catch_exceptions=False)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("fleet",), ["digits", "eu-west", "1.1.0 × 4", "ap-south"]),
        (("device", "list", "region=eu-west"), ["eu-west-000", "ring=canary", "digits 1.1.0"]),
        (("device", "show", "eu-west-000"), ["current", "1.2.0 (null-output)", "single"]),
        (("rollout", "status"), ["ro-3", "halted", "0 of 5", "*"]),
        (("rollout", "status", "ro-3"), ["1.1.0 → 1.2.0", "✗ null_rate ≤ 0.02  fail", "3 of 3 judged device(s) fail"]),
        (("rollbacks",), ["rb-1", "anna", "ben", "77 of 102"]),
        (("rollbacks", "rb-1"), ["wrong totals at two shops", "digits 1.3.0 → 1.1.0"]),
        (("release", "list"), ["1.2.0", "mira"]),
        (("decisions",), ["rollout halted ro-3", "null-output"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_text_tells_what_matters(shown: Shown, words: tuple[str, ...], expected: list[str]) -> None:
    result = run(shown, *words)
    assert result.exit_code == 0
    for text in expected:
        assert text in result.output


@pytest.mark.parametrize(
    "words",
    [("fleet",), ("device", "list"), ("rollout", "status"), ("rollbacks",), ("release", "list"), ("decisions",)],
    ids=" ".join,
)
def test_json_is_one_object_on_one_line_wherever_the_option_stands(shown: Shown, words: tuple[str, ...]) -> None:
    after, before = run(shown, *words, "--json"), run(shown, "--json", *words)
    assert after.output == before.output
    assert len(after.output.splitlines()) == 1
    assert isinstance(json.loads(after.output), dict)


def test_every_page_of_a_long_list_is_asked_for(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast_cli.device.PAGE", 5)
    assert len(json.loads(run(shown, "device", "list", "--json").output)["devices"]) == 12


def test_what_the_server_refuses_is_told_with_its_field_and_next_step(shown: Shown) -> None:
    with pytest.raises(Refused) as raised:
        run(shown, "device", "show", "nobody")
    assert (raised.value.code, raised.value.field) == ("not-found", "device")
    assert raised.value.next_step == "look at the list of devices"


def test_a_halted_rollout_ends_watching_with_3_and_its_cause(shown: Shown) -> None:
    result = run(shown, "rollout", "watch", "ro-3")
    assert result.exit_code == 3
    assert "halted: 3 of 3 judged device(s) fail" in result.output


def test_a_finished_rollout_ends_watching_with_0(shown: Shown) -> None:
    assert run(shown, "rollout", "watch", "ro-2", "--json").exit_code == 0


def test_watching_as_json_prints_one_object_for_each_change(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """What did not change is not said again; the rollout moves on when its first state was printed."""
    rollout = running_rollout()
    shown.fleet.rollout_list.append(rollout)
    monkeypatch.setattr(watch, "POLL_S", 0.02)
    printed: list[Any] = []
    asked = threading.Semaphore(0)

    def move() -> None:
        assert asked.acquire(timeout=10)
        rollout["waves"][2] = wave(3, 500, 17, "passed")
        assert asked.acquire(timeout=10)
        rollout["state"] = "finished"

    def remember(value: Any) -> None:
        printed.append(value)
        asked.release()

    monkeypatch.setattr(output, "as_json", remember)
    mover = threading.Thread(target=move)
    mover.start()
    assert run(shown, "rollout", "watch", "ro-4", "--json").exit_code == 0
    mover.join(timeout=10)
    assert [(one["state"], one["waves"][2]["state"]) for one in printed] == [
        ("running", "released"),
        ("running", "passed"),
        ("finished", "passed"),
    ]


def test_no_control_character_of_a_server_reaches_the_terminal(shown: Shown) -> None:
    """A device's or a person's words could else clear the screen, or write over what stands there."""
    hostile = "nice\x1b[2J\x1b[1;1Hpassed\r\x07\u202eover\nnext"
    shown.fleet.rollout_list[0]["cause"] = hostile
    shown.fleet.rollback_list[0]["reason"] = hostile
    shown.fleet.decision_list[0]["why"] = hostile
    for words in (("rollout", "status"), ("rollout", "status", "ro-3"), ("rollbacks", "rb-1"), ("decisions",)):
        result = run(shown, *words)
        assert "nice" in result.output
        assert not set("\x1b\r\x07\u202e") & set(result.output)


@pytest.mark.parametrize(
    ("part", "whole", "filled"), [(0, 300, 0), (1, 300, 1), (150, 300, 12), (299, 300, 23), (300, 300, 24), (5, 0, 0)]
)
def test_a_bar_is_never_empty_for_some_nor_full_for_most(part: int, whole: int, filled: int) -> None:
    assert output.bar(part, whole).count("█") == filled
