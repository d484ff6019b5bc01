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


def test_a_socket_path_that_the_kernel_would_refuse_is_refused_here(tmp_path: Path) -> None:
    deep = "/var/" + "deep/" * 20
    (tmp_path / "agent.toml").write_text(SAMPLE.read_text().replace("/var/lib/holdfast", deep))
    with pytest.raises(Malformed) as refused:
        configuration.load(tmp_path / "agent.toml")
    assert refused.value.field == "[device] run"
    assert "at most 107" in refused.value.message
