"""Windows as people write them; a typo is named with the option it stands in."""

from __future__ import annotations

import pytest

from holdfast_cli import time_windows
from holdfast_shared.errors import Malformed
from holdfast_shared.wire.assignment import TimeSpan, Windows


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("22:00-04:00", TimeSpan(from_="22:00", to="04:00")),
        (" 01:30 - 02:45 ", TimeSpan(from_="01:30", to="02:45")),
        ("Sat,Sun 00:00-00:00", TimeSpan(from_="00:00", to="00:00", days=(5, 6))),
        ("sun, mon 02:00-05:00", TimeSpan(from_="02:00", to="05:00", days=(0, 6))),
    ],
)
def test_a_window_is_a_part_of_some_days(text: str, expected: TimeSpan) -> None:
    assert time_windows.windows([text], []) == Windows(download=(expected,))
    assert time_windows.windows([], [text, text]) == Windows(switch=(expected, expected))


def test_without_either_there_is_none() -> None:
    assert time_windows.windows([], []) is None


@pytest.mark.parametrize(
    "text", ["", "22:00", "22-04", "24:00-04:00", "22:60-04:00", "Sa 22:00-04:00", "Xyz 22:00-04:00"]
)
def test_a_window_with_a_typo_names_the_option(text: str) -> None:
    for option, given in (("--download-window", ([text], [])), ("--switch-window", ([], [text]))):
        with pytest.raises(Malformed) as raised:
            time_windows.windows(*given)
        assert raised.value.field == option
        assert option in raised.value.next_step
