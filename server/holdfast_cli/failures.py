"""How the command fails, by who must act: 2 who typed it, 1 the server said no, 3 a watched rollout went wrong."""

from __future__ import annotations

from typing import Any, Final

from holdfast_shared.errors import HoldfastError

EXIT_REFUSED: Final = 1
EXIT_MISTAKE: Final = 2
EXIT_HALTED: Final = 3


class Refused(HoldfastError):
    """The server read the request and said no; nothing changed there."""

    code = "refused"


class Unreachable(HoldfastError):
    """No answer from the server or the broker, or one that is not theirs."""

    code = "unreachable"


def refused(body: Any, *, status: int, where: str) -> HoldfastError:
    """The error in a server's answer, or what can be said of an answer that holds none."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return Unreachable(
            f"{where} answered {status} without saying why",
            field="--server",
            next_step="check that this is a holdfast-server, and read its log",
        )
    return Refused(
        error["message"],
        field=str(error.get("field") or ""),
        next_step=str(error.get("next") or ""),
        code=str(error.get("code") or ""),
    )


def exit_code(error: HoldfastError) -> int:
    return EXIT_REFUSED if isinstance(error, Refused | Unreachable) else EXIT_MISTAKE
