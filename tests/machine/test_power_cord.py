"""The cord is pulled while a device goes from one release to the next: its own kernel forgets what it had not written."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Final

import pytest

from support.machine_bench import MachineBench, release, running_bench

CUTS: Final = 6
# From hearing of a release to having committed it, as a rule.
WITHIN_S: Final = 20.0


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MachineBench]:
    """Installed, and serving 1.0.0."""
    with running_bench(tmp_path_factory.mktemp("machine")) as made:
        made.install(tmp_path_factory.mktemp("wheel"))
        made.configure()
        made.serve(release("1.0.0"))
        made.until_committed("1.0.0")
        yield made


def test_it_serves_again_by_itself_and_gets_where_it_was_going(bench: MachineBench) -> None:
    """After a cut answers what served before, or its refuge until that is loaded, or what was on its way; nothing else."""
    moments = random.Random(7)
    refuge = serving = "1.0.0"
    for number in range(CUTS):
        following = f"2.{number}.0"
        bench.serve(release(following))
        time.sleep(moments.random() * WITHIN_S)  # the moment is the seed's
        bench.machine.cut_power()
        bench.machine.boot()
        assert bench.eventually(bench.answer, "an answer after the cut") in (refuge, serving, following)
        bench.until_committed(following)
        refuge, serving = serving, following
