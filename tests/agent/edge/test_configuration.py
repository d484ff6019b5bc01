"""The device's one file: the sample loads, and every fault in a wrong one is reported at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast_agent.edge import configuration
from holdfast_shared.errors import Malformed, Missing

SAMPLE = Path(__file__).parents[3] / "deploy" / "agent.toml"


def test_the_sample_loads_and_shows_every_default() -> None:
    found = configuration.load(SAMPLE)
    assert found.device.id == "camera-7"
    text = SAMPLE.read_text()
    for section in (configuration.Agent, configuration.Fetch, configuration.Network, configuration.Gateway):
        for field in section.__struct_fields__:
            assert f"# {field} = " in text, f"deploy/agent.toml does not explain {field}"


def test_commented_defaults_are_the_real_ones(tmp_path: Path) -> None:
    uncommented = "\n".join(
        line.removeprefix("# ") if line.startswith("# ") and " = " in line and not line.startswith("# run") else line
        for line in SAMPLE.read_text().splitlines()
    )
    (tmp_path / "agent.toml").write_text(uncommented)
    assert configuration.load(tmp_path / "agent.toml") == configuration.load(SAMPLE)


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    wrong = (
        SAMPLE.read_text()
        .replace('id = "camera-7"', 'id = "Camera 7"')
        .replace("http://", "ftp://")
        .replace("[broker]", "[brokr]")
    )
    wrong += '\nlisten = "0.0.0.0:8000"\nspeed = 3\n'
    (tmp_path / "agent.toml").write_text(wrong)
    with pytest.raises(Malformed) as refused:
        configuration.load(tmp_path / "agent.toml")
    for named in (
        "[device] id",
        "[server] url",
        "[brokr]",
        "[broker] url is missing",
        "[gateway] listen",
        "[gateway] speed",
    ):
        assert named in str(refused.value)


@pytest.mark.parametrize("text", ["[device", "x" * 70_000, "device = 3"])
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "agent.toml").write_text(text)
    with pytest.raises(Malformed):
        configuration.load(tmp_path / "agent.toml")


def test_a_missing_file_names_the_sample(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"deploy/agent\.toml"):
        configuration.load(tmp_path / "none.toml")


def test_a_fault_inside_a_list_hides_no_other(tmp_path: Path) -> None:
    """Each item and each field of it is a place of its own; a field that nobody reads would be a window that never was."""
    found = faults_of(
        tmp_path,
        SAMPLE.read_text()
        .replace(
            "# windows = []",
            'windows = [{ from = "25:00", to = "04:00" }, { from = "22:00", days = [9, 10], day = 1 }]',
        )
        .replace("# isolation_off = []", 'isolation_off = ["programs", "everything", "nothing"]')
        .replace("# delegates = {}", 'delegates = { coral = "/tmp/evil.so" }'),
    )
    for named in (
        "[fetch] windows[0].from",
        "[fetch] windows[1].to is missing",
        "[fetch] windows[1].days[0]",
        "[fetch] windows[1].days[1]",
        "[fetch] windows[1].day is no field here",
        "[gateway] isolation_off[1]",
        "[gateway] isolation_off[2]",
        "[device] delegates.coral",
    ):
        assert named in found
    assert "8 fault(s)" in found


@pytest.mark.parametrize(
    ("written", "wrong", "said"),
    [
        (
            'url = "http://127.0.0.1:8080"',
            'url = "http://127.0.0.1:99999"',
            "[server] url: 'http://127.0.0.1:99999' is no",
        ),
        ('url = "http://127.0.0.1:8080"', 'url = "http://:8080"', "[server] url: 'http://:8080' names no host"),
        ('url = "mqtt://127.0.0.1:1883"', 'url = "mqtt://broker:99999"', "[broker] url: 'mqtt://broker:99999' is no"),
        ('url = "mqtt://127.0.0.1:1883"', 'url = "mqtt://broker:0"', "[broker] url: 'mqtt://broker:0' names port 0"),
        ('url = "mqtt://127.0.0.1:1883"', 'url = "mqtt://broker..site"', "[broker] url: 'mqtt://broker..site' is no"),
        ('# listen = "127.0.0.1:8000"', 'listen = "127.0.0.1:65536"', "[gateway] listen: '127.0.0.1:65536' is no"),
        ('state = "/var/lib/holdfast"', 'state = "holdfast"', "[device] state: found 'holdfast'"),
        ('state = "/var/lib/holdfast"', 'state = ""', "[device] state: found ''"),
        ('key = "/etc/holdfast/device.key"', 'key = "device.key"', "[device] key: found 'device.key'"),
    ],
)
def test_what_would_only_fail_in_use_is_a_fault_too(tmp_path: Path, written: str, wrong: str, said: str) -> None:
    """A port that no machine has ended doctor, fetch and gateway with a traceback; a service's folder is not a person's."""
    text = SAMPLE.read_text()
    assert written in text
    assert said in faults_of(tmp_path, text.replace(written, wrong))


def test_a_socket_path_that_the_kernel_would_refuse_is_refused_here_among_the_others(tmp_path: Path) -> None:
    deep = "/var/" + "deep/" * 20
    found = faults_of(tmp_path, SAMPLE.read_text().replace("/var/lib/holdfast", deep).replace("# health_s", "healt_s"))
    assert "[device] run: " in found
    assert "at most 107" in found
    assert "[agent] healt_s is no field here" in found


def faults_of(folder: Path, text: str) -> str:
    (folder / "agent.toml").write_text(text)
    with pytest.raises(Malformed) as refused:
        configuration.load(folder / "agent.toml")
    return refused.value.message
