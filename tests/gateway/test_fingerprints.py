"""A device's fingerprint has what each of its workers measured, each word once."""

from __future__ import annotations

import pytest

from holdfast_gateway.fingerprints import together


@pytest.mark.parametrize(
    ("measured", "whole"),
    [
        ([], {}),
        ([{"runtime": "a 1"}, {"runtime": "a 1"}], {"runtime": "a 1"}),
        ([{"runtime": "a 1", "numpy": "2"}, {"runtime": "b 2", "numpy": "2"}], {"runtime": "a 1; b 2", "numpy": "2"}),
        ([{"runtime": "a 1; b 2"}, {"runtime": "b 2; c 3"}], {"runtime": "a 1; b 2; c 3"}),
    ],
)
def test_every_worker_is_heard_and_no_word_is_said_twice(measured: list[dict[str, str]], whole: dict[str, str]) -> None:
    assert together(measured) == whole
