"""What the page and the command are tested with says what the real server says: the same names at the same places.

`ShownFleet` stands in for the API's reads in the browser's and the command's tests. It may leave things out; whatever it says
must be there in the real answers too, with a value of the same kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast_server.api import Reads
from holdfast_server.context import Context
from holdfast_server.registry.blobs import FolderBlobs
from holdfast_server.registry.registry import Registry
from holdfast_shared import selector
from holdfast_shared.wire.command import RolloutStart
from support.rollout_bench import Bench
from support.shown_fleet import ShownFleet

# By a list's place: which of its values are compared, because not every item has all there is to have.
Shape = dict[str, set[str]]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reads]:
    """A server that has a finished, a halted and a running rollout, and a rollback that was carried out."""
    folder: Path = tmp_path_factory.mktemp("server")
    bench = Bench(folder)
    bench.publish("1.0.0", "1.1.0", "1.2.0", "1.3.0")
    for version in ("1.0.0", "1.1.0"):
        bench.install(version)
    for version, ends in (("1.2.0", "halted"), ("1.3.0", "finished")):
        rollout = bench.plan(version)
        bench.command(RolloutStart(rollout=rollout))
        bench.rounds_until(rollout, ends, bad=["1.2.0"])
    bench.roll_back("1.3.0", selector.parse("region=eu-west"), "ann", "bob")
    bench.round()
    registry = Registry(
        database=bench.database, authorities=bench.authorities, blobs=FolderBlobs(folder / "blobs"), now=bench.now
    )
    context = Context(
        database=bench.database,
        authorities=bench.authorities,
        director=bench.director,
        registry=registry,
        now=bench.now,
    )
    yield Reads(context, lambda: True)
    bench.database.close()


def answers(reads: Any, devices: list[str]) -> dict[str, Any]:
    """What each read says, as JSON carries it."""
    said = {
        "status": reads.status(),
        "fleet": list(reads.fleet()["pipelines"].values()),
        "devices": reads.devices("*", None, 500),
        "device": [reads.device(device) for device in devices],
        "releases": reads.releases(),
        "rollouts": reads.rollouts(),
        "rollbacks": reads.rollbacks(),
        "decisions": reads.decisions(None, 500),
    }
    told: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(said))
    return told


def shape(value: Any, path: str = "", found: Shape | None = None) -> Shape:
    """Every place that has a value, and the kinds of values there. Places whose names are data (a version, a region) are one."""
    found = {} if found is None else found
    if isinstance(value, dict):
        named = path.endswith((".serving", ".states", "fleet[]", ".labels", ".defect_seen", ".evidence"))
        for name, inner in value.items():
            shape(inner, f"{path}.{'*' if named else name}", found)
    elif isinstance(value, list):
        for inner in value:
            shape(inner, f"{path}[]", found)
    if not isinstance(value, dict) or not value:
        kind = {bool: "bool", int: "number", float: "number", str: "text", type(None): "null"}.get(type(value), "many")
        found.setdefault(path, set()).add(kind)
    return found


def test_whatever_the_stand_in_says_the_server_says_too(real: Reads) -> None:
    shown = ShownFleet(devices_a_region=12)
    names = [one["device"] for one in real.devices("*", None, 500)["devices"]]
    said, stood_in = shape(answers(real, names)), shape(answers(shown, ["eu-west-000", "eu-west-003"]))
    invented = {
        path: kinds
        for path, kinds in stood_in.items()
        if not any(path == other or other.startswith((f"{path}.", f"{path}[")) for other in said)
    }
    assert not invented, f"the server says nothing at these places: {invented}"
    differing = {path: (kinds, said[path]) for path, kinds in stood_in.items() if path in said and kinds - said[path]}
    # Each decision has evidence of its own kind: what stands in it differs from one to the next.
    differing.pop(".decisions.decisions[].evidence.*", None)
    other = {path: both for path, both in differing.items() if both[0] - both[1] - {"null", "many"}}
    assert not other, f"stand-in's kinds of value, the server's: {other}"


def test_its_words_for_states_are_the_servers(real: Reads) -> None:
    """States, verdicts and what was decided: the page's colours and the command's exit codes hang on them."""
    shown = ShownFleet()
    waves = {wave["state"] for one in shown.rollouts()["rollouts"] for wave in one["waves"]}
    assert waves <= {wave["state"] for one in real.rollouts()["rollouts"] for wave in one["waves"]}
    states = {one["state"] for one in shown.rollouts()["rollouts"]}
    assert states <= {one["state"] for one in real.rollouts()["rollouts"]}
    decided = {one["what"] for one in real.decisions(None, 500)["decisions"]}
    told = {one["what"] for one in shown.decisions(None, 500)["decisions"]}
    assert told <= decided | {"wave 1 of 5 released"}
