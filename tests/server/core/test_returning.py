"""Who is back from a release, by their own word, and since when."""

from __future__ import annotations

import pytest

from holdfast_server.core.returning import Returning, Said, observed

BAD, GOOD = "sha256:bad", "sha256:good"
GONE = Returning(devices=("a", "b"))


def said(device: str, serving: str | None, at: int) -> Said:
    return Said(device=device, serving=serving, at_monotonic_us=at)


@pytest.mark.parametrize(
    ("name", "reports", "devices", "back"),
    [
        ("nobody spoke", [], ("a", "b"), {}),
        ("one is back", [said("a", GOOD, 5)], ("a", "b"), {"a": 5}),
        ("its first word counts", [said("a", GOOD, 5), said("a", GOOD, 9)], ("a", "b"), {"a": 5}),
        ("serving nothing is not back", [said("a", None, 5)], ("a", "b"), {}),
        ("one more turns up", [said("c", BAD, 5), said("c", GOOD, 7)], ("a", "b", "c"), {"c": 7}),
        ("one that never served it is no matter", [said("d", GOOD, 5)], ("a", "b"), {}),
        ("back, and on it again", [said("a", GOOD, 5), said("a", BAD, 6)], ("a", "b"), {}),
    ],
)
def test_table(name: str, reports: list[Said], devices: tuple[str, ...], back: dict[str, int]) -> None:
    found = observed(GONE, BAD, reports)
    assert (found.devices, found.back) == (devices, back), name
    assert found.complete == (set(devices) == set(back))
