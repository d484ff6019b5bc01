"""What is written for people to type can be typed: in READMEs, in help texts, in the next step of every error."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

import click
import pytest

from demonstration.processes import installed
from holdfast_cli.main import holdfast

ROOT: Final = Path(__file__).parents[2]
FOLDERS: Final = ("agent", "server", "shared", "scripts", "deploy")
# Commands as text has them: a name, words, and whatever follows on the line up to a quotation's end.
MENTION: Final = re.compile(r"(?<![\w./-])(holdfast(?:-agent|-gateway|-server)?) ([a-z][a-z -]*)([^`;\"\n#]*)")
# What runs behind each script that has options.
MODULES: Final = {
    "scripts/demo": ("demonstration",),
    "scripts/bench": ("benchmark", "device"),
    "scripts/sweep": ("support.kill_sweep",),
}
SCRIPT: Final = re.compile(r"\./(scripts/[a-z]+)((?: --[a-z]+)*)")
OPTION: Final = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
SUBCOMMANDS: Final = {
    "holdfast": ("key", "publish", "release", "device", "rollout", "rollback", "approve", "decisions", "fleet"),
    "holdfast-agent": ("run", "status"),
    "holdfast-gateway": ("run",),
    "holdfast-server": ("run",),
}
HELP_S: Final = 60.0


def readmes() -> list[Path]:
    return [
        ROOT / "README.md",
        *(file for folder in (*FOLDERS, "tests") for file in (ROOT / folder).rglob("README.md")),
    ]


def sources() -> list[Path]:
    return [
        file
        for folder in FOLDERS
        for pattern in ("*.py", "*.html", "*.toml", "*.md", "demo")
        for file in (ROOT / folder).rglob(pattern)
    ]


def shell_lines() -> list[tuple[str, ...]]:
    """Every command of every shell block of a README, as its words."""
    blocks = (block for file in readmes() for block in re.findall(r"```sh\n(.*?)```", file.read_text(), re.DOTALL))
    return [
        tuple(words) for block in blocks for line in block.splitlines() if (words := shlex.split(line, comments=True))
    ]


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=HELP_S, cwd=ROOT, check=False)


@cache
def help_of(*words: str) -> str:
    """The `--help` of a shipped command."""
    done = run(installed(words[0]), *words[1:], "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_each_command_tells_its_version_and_its_subcommands(command: str) -> None:
    told = run(installed(command), "--version")
    assert (told.returncode, told.stderr) == (0, "")
    assert re.search(r"\b\d+\.\d+\.\d+\b", told.stdout)
    assert all(re.search(rf"^\s+{name}\s", help_of(command), re.MULTILINE) for name in SUBCOMMANDS[command])
    assert all(help_of(command, name).strip() for name in SUBCOMMANDS[command])


@pytest.mark.slow
def test_a_command_without_words_says_how_to_go_on() -> None:
    """Not a trace: a newcomer's first try ends in help, or in one line that leads to it."""
    for command in SUBCOMMANDS:
        done = run(installed(command))
        assert done.returncode in (0, 2)
        assert "usage" in (done.stdout + done.stderr).lower() or "--help" in done.stderr
        assert "Traceback" not in done.stderr


def test_shell_blocks_are_there() -> None:
    """So that the tests below look at something."""
    named = {words[0] for words in shell_lines()}
    assert {"./scripts/demo", "./scripts/check", "./scripts/test", "holdfast"} <= named


@pytest.mark.slow
@pytest.mark.parametrize("words", shell_lines(), ids=" ".join)
def test_a_shell_blocks_command_exists_with_its_options(words: tuple[str, ...]) -> None:
    if words[0].startswith("./"):
        script = ROOT / words[0]
        assert os.access(script, os.X_OK)
        assert run("bash", "-n", script).returncode == 0
    else:
        assert not _wrong(words[0], " ".join(words[1:]).split(" -")[0].split(), OPTION.findall(" ".join(words)))


@pytest.mark.slow
def test_scripts_that_are_named_exist_and_know_the_named_options() -> None:
    helps = {script: _help_of(*module) for script, module in MODULES.items()}
    named = {found.groups() for file in readmes() for found in SCRIPT.finditer(file.read_text())}
    assert {("scripts/demo", " --once"), ("scripts/sweep", " --kills")} <= named
    for script, options in sorted(named):
        assert os.access(ROOT / script, os.X_OK), script
        assert all(option in helps.get(script, "") for option in options.split()), (script, options)


def _help_of(*module: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", *module, "--help"],
        capture_output=True,
        text=True,
        timeout=HELP_S,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT / 'tests'}"},
        check=True,
    ).stdout


@pytest.mark.slow
def test_every_mention_of_a_command_can_be_typed() -> None:
    """In whatever we say to a person: the words lead to a command, and it has the options."""
    wrong, looked = [], 0
    for file in sources():
        for found in MENTION.finditer(file.read_text()):
            program, words, rest = found.groups()
            given = words.split(" -")[0].split()
            fault = _wrong(program, given, OPTION.findall(f"{words}{rest}"))
            looked += fault != "prose"
            if fault not in ("", "prose"):
                wrong.append(f"{file.relative_to(ROOT)}: {found[0]!r}: {fault}")
    assert looked > 50
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize(("sample", "pipeline"), [("sample-release", "iris"), ("sample-pipeline", "digits")])
def test_the_samples_pass_a_dry_run_as_they_are(sample: str, pipeline: str) -> None:
    done = run(installed("holdfast"), "publish", f"deploy/{sample}", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"release +{pipeline} +1\.0\.0", done.stdout)


def _wrong(program: str, words: list[str], options: list[str]) -> str:
    """What cannot be typed; empty, or `prose` when it is no command at all."""
    if program != "holdfast":
        if not words or words[0] not in SUBCOMMANDS[program]:
            return "prose"
        unknown = [option for option in options if option not in help_of(program, words[0])]
        return f"{program} {words[0]} has no {unknown}" if unknown else ""
    command: click.Command = holdfast
    rest = list(words)
    while rest and isinstance(command, click.Group) and rest[0] in command.commands:
        command = command.commands[rest.pop(0)]
    if command is holdfast:
        return "prose"
    if isinstance(command, click.Group) and rest:
        return f"holdfast {command.name} has no {rest[0]}"
    known = {one for each in command.params for one in each.opts} | {"--help"}
    unknown = [option for option in options if option not in known]
    return f"{command.name} has no {unknown}" if unknown else ""
