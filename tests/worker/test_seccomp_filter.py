"""The filter's program: every number is the kernel's, and what it answers, on both machines, by running it."""

from __future__ import annotations

import ctypes
import struct
from typing import Final

import pytest

from holdfast_shared.wire.report import Protection
from holdfast_worker.isolation.seccomp_filter import program
from holdfast_worker.isolation.system_calls import JUDGED, MACHINES, NONE, REFUSED, SECCOMP

ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALL: Final[tuple[Protection, ...]] = ("network", "programs", "memory", "system")
ALLOW, REFUSE, NOT_THERE, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
PID: Final = 4242
THREAD: Final = 0x003D0F00  # the flags that glibc makes a thread with
FORK: Final = 0x01200011


def verdict(code: bytes, machine: str, number: int, *arguments: int) -> int:
    """What the kernel's machine for such programs would answer: the instructions that ours has."""
    data = struct.pack("=IIQ6Q", number, ARCHITECTURES[machine], 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    lines = list(struct.iter_unpack("=HBBI", code))
    accumulator = at = 0
    while True:
        what, if_true, if_false, value = lines[at]
        at += 1
        match what:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x35:
                at += if_true if accumulator >= value else if_false
            case 0x45:
                at += if_true if accumulator & value else if_false
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(f"no such instruction: {what:#x}")


def test_every_number_is_the_one_that_libseccomp_knows() -> None:
    library = ctypes.CDLL("libseccomp.so.2")
    named = {name: numbers for calls in REFUSED.values() for name, numbers in calls.items()}
    for name, numbers in {**named, **JUDGED, "seccomp": SECCOMP}.items():
        for machine, column in MACHINES.items():
            known = library.seccomp_syscall_resolve_name_arch(ARCHITECTURES[machine], name.encode())
            assert numbers[column] == (known if known >= 0 else NONE), (name, machine)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("protection", ALL)
def test_what_a_protection_names_is_refused_by_it_and_by_no_other(machine: str, protection: Protection) -> None:
    others = {call for one in ALL if one != protection for call in REFUSED[one]}
    column = MACHINES[machine]
    for name, numbers in REFUSED[protection].items():
        if numbers[column] == NONE:
            continue
        assert verdict(program(machine, [protection], PID), machine, numbers[column]) == REFUSE, name
        if name not in others:
            rest = [one for one in ALL if one != protection]
            assert verdict(program(machine, rest, PID), machine, numbers[column]) == ALLOW, name


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_are_made_and_processes_are_not(machine: str) -> None:
    code, column = program(machine, ALL, PID), MACHINES[machine]
    assert verdict(code, machine, JUDGED["clone"][column], THREAD) == ALLOW
    assert verdict(code, machine, JUDGED["clone"][column], FORK) == REFUSE
    assert verdict(code, machine, JUDGED["clone3"][column]) == NOT_THERE, "glibc then uses clone"


@pytest.mark.parametrize("machine", MACHINES)
def test_signals_and_limits_are_for_oneself(machine: str) -> None:
    code, column = program(machine, ALL, PID), MACHINES[machine]
    for name in ("kill", "tgkill", "prlimit64"):
        assert verdict(code, machine, JUDGED[name][column], PID) == ALLOW, name
        assert verdict(code, machine, JUDGED[name][column], PID + 1) == REFUSE, name
    assert verdict(code, machine, JUDGED["prlimit64"][column], 0) == ALLOW
    assert verdict(code, machine, JUDGED["kill"][column], 0) == REFUSE
    assert verdict(code, machine, JUDGED["kill"][column], 0xFFFFFFFF) == REFUSE, "kill(-1): everybody"


@pytest.mark.parametrize("machine", MACHINES)
def test_only_memory_that_is_shared_with_nobody_known_is_refused(machine: str) -> None:
    code, column = program(machine, ALL, PID), MACHINES[machine]
    private_anonymous, shared_file, shared_anonymous = 0x22, 0x01, 0x21
    assert verdict(code, machine, JUDGED["mmap"][column], 0, 4096, 3, private_anonymous) == ALLOW
    assert verdict(code, machine, JUDGED["mmap"][column], 0, 4096, 3, shared_file) == ALLOW
    assert verdict(code, machine, JUDGED["mmap"][column], 0, 4096, 3, shared_anonymous | 0x4000) == REFUSE


def test_another_architectures_numbers_kill_and_x32_is_refused() -> None:
    code = program("x86_64", ALL, PID)
    assert verdict(code, "aarch64", 41) == KILL
    assert verdict(code, "x86_64", 0x40000000 | 41) == REFUSE


@pytest.mark.parametrize("machine", MACHINES)
def test_what_a_request_takes_is_let_through(machine: str) -> None:
    """recvfrom, sendmsg, futex, read, write, exit_group, madvise, munmap."""
    numbers = {"x86_64": (45, 46, 202, 0, 1, 231, 28, 11), "aarch64": (207, 211, 98, 63, 64, 94, 233, 215)}
    code = program(machine, ALL, PID)
    assert {verdict(code, machine, number) for number in numbers[machine]} == {ALLOW}
