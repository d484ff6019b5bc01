"""How long a failed fetch waits: full jitter, so that a fleet that failed together does not come back together.

Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

from typing import Final

SECOND_US: Final = 1_000_000
BASE_US: Final = 4 * SECOND_US
CAP_US: Final = 24 * 3600 * SECOND_US
# 4 s doubled so often is four and a half hours.
DOUBLINGS_MAX: Final = 12
# While a condemned release serves: its devices are few, or the server was told to expect them.
URGENT_CAP_US: Final = 300 * SECOND_US
# A metered network's budget is used up: until it is looked at again, as the device may be on another network by then.
HELD_US: Final = 900 * SECOND_US
# At once would be a busy loop when the draw is next to nothing.
LEAST_US: Final = SECOND_US // 2


def repeated_us(failures: int) -> int:
    """The wait after so many failures of this device alone, such as a disk that rots: nobody else waits, so no jitter."""
    return BASE_US << min(failures, DOUBLINGS_MAX)


def delay_us(failures: int, draw: float) -> int:
    """The wait after so many failures in a row; `draw` lies in [0, 1)."""
    ceiling = min(CAP_US, BASE_US * 2 ** min(failures, 40))
    return max(LEAST_US, int(ceiling * draw))
