"""What the terminal says: acts, steps, and one line that moves while something is waited for. With --json it goes to standard
error, so that standard output holds the summary alone.
"""

from __future__ import annotations

import sys
import time
from typing import Final, TextIO

import click

_WIDTH: Final = 110


class Narration:
    """Times are since the demo began. On a terminal the moving line is redrawn, elsewhere a new one is printed when it says
    something new, at most every few seconds."""

    EVERY_S: Final = 3.0

    def __init__(self, *, to_stderr: bool) -> None:
        self._stream: TextIO = sys.stderr if to_stderr else sys.stdout
        self._began = time.monotonic()
        self._moving = ""
        self._moved_at = 0.0

    def act(self, title: str) -> None:
        self._line("")
        self._line(click.style(title, bold=True))

    def say(self, text: str) -> None:
        self._line(f"{self._clock()}  {text}")

    def command(self, text: str) -> None:
        self._line(f"{self._clock()}  {click.style(text, fg='cyan')}")

    def good(self, text: str) -> None:
        self._line(f"{self._clock()}  {click.style('✓', fg='green')} {text}")

    def bad(self, text: str) -> None:
        self._line(f"{self._clock()}  {click.style('✗', fg='red', bold=True)} {text}")

    def moving(self, text: str) -> None:
        """Progress of what is being waited for."""
        if text == self._moving:
            return
        if self._stream.isatty():
            self._moving = text
            print(f"\r\x1b[K{self._clock()}  … {text[:_WIDTH]}", end="", file=self._stream, flush=True)
        elif time.monotonic() - self._moved_at >= self.EVERY_S:
            self._moving, self._moved_at = text, time.monotonic()
            print(click.unstyle(f"{self._clock()}  … {text}"), file=self._stream, flush=True)

    def _line(self, text: str) -> None:
        if self._moving and self._stream.isatty():
            print("\r\x1b[K", end="", file=self._stream)
        self._moving = ""
        print(text if self._stream.isatty() else click.unstyle(text), file=self._stream, flush=True)

    def _clock(self) -> str:
        return click.style(f"{time.monotonic() - self._began:6.1f} s", dim=True)
