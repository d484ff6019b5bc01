"""The operator's own command, `holdfast`, run as a person would: every act of the demo goes through it."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from typing import Any, Final

from demonstration.fleet import Provisioned
from demonstration.processes import Missed, installed

DEADLINE_S: Final = 60.0


class Operator:
    """Runs commands as one of the demo's people, shows them, and returns what they print with --json."""

    def __init__(self, provisioned: Provisioned, server: str, show: Callable[[str], None]) -> None:
        self._provisioned = provisioned
        self._server = server
        self._show = show

    def run(self, person: str, *words: str) -> Any:
        """The command's JSON. Raises Missed with its words when it fails."""
        key = self._provisioned.key(person)
        self._show(f"{person} $ holdfast {shlex.join(self._short(word) for word in words)}")
        done = subprocess.run(
            [installed("holdfast"), "--json", "--server", self._server, "--key", key, *words],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        if done.returncode != 0:
            raise Missed(f"holdfast {words[0]} ended with {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout.splitlines()[-1])

    def _short(self, word: str) -> str:
        """Paths as the demo's folder has them: the line stays one line."""
        return word.replace(f"{self._provisioned.folder}/", "")
