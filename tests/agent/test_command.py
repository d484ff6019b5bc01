"""`holdfast-agent`: it says who it is, refuses to start with one clear line, and shows what a device has without starting."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from holdfast_agent.core import record
from holdfast_agent.main import main
from holdfast_shared import __version__, signing
from holdfast_shared.durable import DoubledFile
from holdfast_shared.wire import membership as membership_wire
from holdfast_shared.wire.assignment import Requests
from support.device_bench import DeviceBench
from support.device_surroundings import DIRECTOR, OTTO
from support.mosquitto import running_mosquitto
from support.playbook import Playbook, rule

WITHIN_S = 30


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceBench]:
    """Provisioned, and nothing started."""
    with running_mosquitto() as broker:
        made = DeviceBench(tmp_path_factory.mktemp("device"), broker)
        yield made
        made.close()


def started(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "holdfast_agent", "run", "--config", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S)


def test_version_and_help_say_who_it_is_and_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    for word, expected in (("--version", __version__), ("--help", "agent.toml")):
        with pytest.raises(SystemExit) as ended:
            main([word])
        assert ended.value.code == 0
        assert expected in capsys.readouterr().out


def _unsigned_by_enrolment(bench: DeviceBench) -> None:
    file = bench.folder / "membership.json"
    payload = signing.unverified_payload(
        file.read_bytes(), membership_wire.TYPE, size_bytes_max=membership_wire.ENVELOPE_BYTES_MAX
    )
    file.write_bytes(signing.sign(payload, membership_wire.TYPE, [DIRECTOR]))


def _another_key(bench: DeviceBench) -> None:
    (bench.folder / "device.pem").write_bytes(OTTO.to_pem())


def _damaged_record(bench: DeviceBench) -> None:
    bench.state.root.mkdir(parents=True)
    for half in ("a", "b"):
        (bench.state.root / f"record.{half}").write_bytes(b"not a record")


REFUSALS = [
    pytest.param(lambda bench: (bench.folder / "authorities.json").unlink(), "authorities.json", id="no authorities"),
    pytest.param(lambda bench: (bench.folder / "membership.json").unlink(), "membership.json", id="no membership"),
    pytest.param(lambda bench: (bench.folder / "device.pem").unlink(), "device.pem", id="no key"),
    pytest.param(lambda bench: (bench.folder / "device.pem").chmod(0o644), "0644", id="a key that everybody can read"),
    pytest.param(_unsigned_by_enrolment, "membership.json", id="a membership that no enrolment key signed"),
    pytest.param(_another_key, "public_key", id="a key that is not the membership's"),
    pytest.param(_damaged_record, "no half of", id="a record of which no half can be read"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "named"), REFUSALS)
def test_it_refuses_to_start_with_a_line_that_says_what_to_do(
    tmp_path: Path, bench: DeviceBench, spoil: Callable[[DeviceBench], None], named: str
) -> None:
    spoiled = DeviceBench(tmp_path, bench.broker)
    try:
        spoil(spoiled)
        ended = started(spoiled.path)
    finally:
        spoiled.close()
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    line = ended.stderr.splitlines()[-1]
    assert line.startswith("holdfast-agent: ")
    assert named in line
    assert "Next: " in line
    assert not spoiled.state.spool.exists()


@pytest.mark.slow
def test_status_shows_the_saved_record_without_an_agent(bench: DeviceBench, capsys: pytest.CaptureFixture[str]) -> None:
    device = Playbook()
    device.connect()
    device.serve("1")
    bench.state.root.mkdir(parents=True, exist_ok=True)
    DoubledFile(bench.state.record).write(record.encode(device.record))
    main(["status", "--config", str(bench.path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["pipelines"]["p"]["serving"] == "1.1.0"
    assert found["accepted"] == [{"scope": "region/eu", "pipeline": "p", "epoch": 1, "seq": 1}]
    main(["status", "--config", str(bench.path)])
    assert "p: idle, serves 1.1.0" in capsys.readouterr().out


@pytest.mark.slow
def test_status_says_which_requests_a_release_on_trial_is_given(
    bench: DeviceBench, capsys: pytest.CaptureFixture[str]
) -> None:
    device = Playbook()
    device.connect()
    device.serve("1")
    device.assigned(msgspec.structs.replace(rule("2"), requests=Requests(share=500)), rule("1"))
    device.to_trial("2")
    bench.state.root.mkdir(parents=True, exist_ok=True)
    DoubledFile(bench.state.record).write(record.encode(device.record))
    main(["status", "--config", str(bench.path), "--json"])
    assert json.loads(capsys.readouterr().out)["pipelines"]["p"]["requests"] == "5 % of requests"
    main(["status", "--config", str(bench.path)])
    assert "p: trial of 5 % of requests, serves 1.2.0" in capsys.readouterr().out
