"""What the workers measured of their environments, as one: a device whose pipelines use several runtimes reports them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from holdfast_worker.protocol import FINGERPRINT_BETWEEN


def together(measured: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Each thing that was measured, with every word said of it, once each and in the order of the workers."""
    said: dict[str, dict[str, None]] = {}
    for one in measured:
        for name, words in one.items():
            said.setdefault(name, {}).update(dict.fromkeys(words.split(FINGERPRINT_BETWEEN)))
    return {name: FINGERPRINT_BETWEEN.join(words) for name, words in said.items()}
