"""How a fetch ended: one JSON line on standard output, a stable code, an exit status for each."""

from __future__ import annotations

import errno
from typing import Final

import msgspec

from holdfast_agent.edge import request
from holdfast_shared import strict_json
from holdfast_shared.errors import HoldfastError, NotSupported, Untrusted
from holdfast_shared.failure_codes import FailureCode

LINE_BYTES_MAX: Final = 8 * 1024
DETAIL_LENGTH_MAX: Final = 500
EXIT_STATUS: Final[dict[str, int]] = {
    "": 0,
    FailureCode.FETCH_UNREACHABLE: 10,  # no answer, or one that broke off
    FailureCode.FETCH_REFUSED: 11,  # an answer, and not the file: 404, 503, a redirect, a broken range
    FailureCode.FETCH_UNTRUSTED: 12,  # no publisher that may publish it has signed it
    FailureCode.FETCH_DAMAGED: 13,  # other bytes than the manifest names, or this device's disk failed
    FailureCode.FETCH_TOO_SLOW: 14,
    FailureCode.NO_SPACE: 15,
    FailureCode.UNFIT: 16,  # not for this hardware
    FailureCode.OVER_BUDGET: 18,  # a metered network's bytes for today are used up
    FailureCode.OUTSIDE_WINDOW: 19,  # not all of it is here, and nothing may be asked for
    FailureCode.NOT_SUPPORTED: 17,  # it needs what this agent does not know
}
# EFBIG: a limit on the size of files is a kind of full disk.
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """`code` is empty when it is `ok`; `retry_after_s` is what the server asked for."""

    ok: bool
    code: str = ""
    detail: str = ""
    retry_after_s: float | None = None


class Failed(HoldfastError):
    """A fetch that ends here, with a code of EXIT_STATUS."""

    def __init__(self, code: FailureCode, message: str, *, field: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, field=field, code=code)
        self.retry_after_s = retry_after_s


def of_error(error: HoldfastError | OSError) -> Outcome:
    """What an error means to whoever asked for the target."""
    match error:
        case Failed():
            return _failed(error.code, str(error), error.retry_after_s)
        case request.Unreachable() | request.TooSlow() | request.TooLong():
            return _failed(error.code, str(error))
        case NotSupported():
            return _failed(FailureCode.NOT_SUPPORTED, str(error))
        case Untrusted():
            return _failed(FailureCode.FETCH_UNTRUSTED, str(error))
        case OSError() if error.errno in _NO_SPACE:
            return _failed(FailureCode.NO_SPACE, f"the disk is full: {error}")
        case _:
            return _failed(FailureCode.FETCH_DAMAGED, str(error))


def encode(outcome: Outcome) -> bytes:
    return strict_json.encode(outcome)


def decode(line: bytes) -> Outcome:
    """Raises Malformed when it is not one."""
    return strict_json.decode(line, Outcome, what="the answer of fetch", size_bytes_max=LINE_BYTES_MAX)


def _failed(code: str, detail: str, retry_after_s: float | None = None) -> Outcome:
    return Outcome(ok=False, code=code, detail=detail[:DETAIL_LENGTH_MAX], retry_after_s=retry_after_s)
