"""What counts as the same request, for how long it is remembered, and that little is."""

from __future__ import annotations

from holdfast_gateway.inference import Inference
from holdfast_gateway.quarantine import CONTENTS_MAX, QUARANTINE_S, Quarantine
from holdfast_worker.protocol import NO_HEADER


class Nobody:
    """Who asks, in a test without connections."""

    gone = ended = True

    def answer(self, status: int, header_length: int, body: bytes | memoryview) -> None: ...


def asked(body: bytes, header_length: int = NO_HEADER) -> Inference:
    return Inference(Nobody(), body, version="", wants_binary=False, header_length=header_length, since=0.0)


def fatal(quarantine: Quarantine, inference: Inference, now: float = 0.0) -> None:
    quarantine.lost_at(inference, "a", now)
    quarantine.lost_at(inference, "b", now)


def test_the_same_inputs_are_the_same_request_whatever_its_id_is() -> None:
    found = Quarantine()
    fatal(found, asked(b'{"id": "1", "inputs": [{"data": [1]}]}'))
    assert found.left_s(asked(b'{"inputs": [{"data": [1]}], "id": "2", "outputs": []}'), 1.0) == QUARANTINE_S - 1
    assert found.left_s(asked(b'{"id": "1", "inputs": [{"data": [2]}]}'), 1.0) == 0


def test_binary_tensors_and_bodies_that_are_no_json_are_told_apart_by_their_bytes() -> None:
    found = Quarantine()
    head = b'{"inputs": []}'
    fatal(found, asked(head + b"\x00\x01", len(head)))
    fatal(found, asked(b"\xff\xfe"))
    assert found.left_s(asked(head + b"\x00\x01", len(head)), 0.0)
    assert not found.left_s(asked(head + b"\x00\x02", len(head)), 0.0)
    assert found.left_s(asked(b"\xff\xfe"), 0.0)


def test_one_slot_alone_makes_no_poison_however_often_it_is_lost() -> None:
    found = Quarantine()
    for _ in range(5):
        found.lost_at(asked(b"x"), "a", 0.0)
    assert not found.left_s(asked(b"x"), 0.0)
    found.lost_at(asked(b"x"), "b", 0.0)
    assert found.left_s(asked(b"x"), 0.0)


def test_it_ends_by_itself_and_with_the_releases_that_it_was_about() -> None:
    found = Quarantine()
    fatal(found, asked(b"x"))
    assert not found.left_s(asked(b"x"), QUARANTINE_S)
    fatal(found, asked(b"x"))
    found.clear()
    assert not found.left_s(asked(b"x"), 0.0)


def test_only_so_many_are_remembered_the_newest() -> None:
    found = Quarantine()
    for number in range(CONTENTS_MAX * 3):
        fatal(found, asked(b"%d" % number))
    held = [number for number in range(CONTENTS_MAX * 3) if found.left_s(asked(b"%d" % number), 0.0)]
    assert held == list(range(CONTENTS_MAX * 2, CONTENTS_MAX * 3))
