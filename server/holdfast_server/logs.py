"""The log: one line an entry, on standard error, whatever the message or a traceback holds."""

from __future__ import annotations

import logging
import sys
import time
from typing import Final

# What devices and people send is cut where it is logged; this is for what nobody thought of.
LINE_LENGTH_MAX: Final = 8_000
# Libraries that say more than an operator wants to know.
_QUIET: Final = {"alembic": logging.WARNING, "waitress.queue": logging.ERROR}


def to_standard_error(level: int = logging.INFO) -> None:
    """Have everything logged there from now on."""
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(_Line("%(asctime)s %(levelname)-7s %(threadName)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[output], force=True)
    for name, quieter in _QUIET.items():
        logging.getLogger(name).setLevel(quieter)


class _Line(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        line = "".join(sign if sign.isprintable() else _written(sign) for sign in text)
        return line if len(line) <= LINE_LENGTH_MAX else f"{line[:LINE_LENGTH_MAX]}…"


def _written(sign: str) -> str:
    """A control character as people write it: it can neither begin a line nor move a terminal's cursor."""
    return sign.encode("unicode_escape").decode()
