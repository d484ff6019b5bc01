"""Errors that both sides raise, by who must act. A message says what was expected, what was found, and what to do."""

from __future__ import annotations


class HoldfastError(Exception):
    """A refusal with a stable code, the field it is about, and the next step.

    `code` is kebab-case and never changes its meaning; `field` is a path such as `rules[0].match`, or empty.
    """

    code = "refused"

    def __init__(self, message: str, *, field: str = "", next_step: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.next_step = next_step
        if code:
            self.code = code

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        then = f" Next: {self.next_step}" if self.next_step else ""
        return f"{where}{self.message}{then}"


class Malformed(HoldfastError):
    """Bytes or a value that do not have the stated form. Whoever wrote them must act."""

    code = "malformed"


class Untrusted(HoldfastError):
    """No valid signature by a key that may sign this. Fail closed; nobody but the key's holder can act."""

    code = "untrusted"


class NotSupported(HoldfastError):
    """Well-formed and reserved for later: refused where it is written, so that no format breaks."""

    code = "not-supported-yet"


class Conflict(HoldfastError):
    """It contradicts something immutable that is already stored."""

    code = "conflict"


class Missing(HoldfastError):
    """It names something that is not there."""

    code = "not-found"


class Damaged(HoldfastError):
    """Stored bytes do not verify. The device repairs it, or reports `degraded`."""

    code = "damaged"
