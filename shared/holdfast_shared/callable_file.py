"""The file of a stage in Python: JSON `{"entry": "package.module:function"}`, and nothing else.

The function takes a dict of numpy arrays by the names of the model's inputs and gives one by the names of its outputs. Its code
comes from the wheels of the release's environment: a file of a model never holds code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec

from holdfast_shared import strict_json
from holdfast_shared.errors import Malformed

SIZE_BYTES_MAX: Final = 64 * 1024


class Callable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`entry` names a function at the top of a module."""

    entry: Annotated[
        str,
        msgspec.Meta(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", max_length=256),
    ]

    @property
    def module(self) -> str:
        return self.entry.partition(":")[0]

    @property
    def function(self) -> str:
        return self.entry.partition(":")[2]


def of(raw: bytes) -> Callable:
    """Raises Malformed."""
    try:
        return strict_json.decode(raw, Callable, what="the file", size_bytes_max=SIZE_BYTES_MAX, depth_max=2)
    except Malformed as error:
        raise Malformed(f'is not {{"entry": "package.module:function"}}: {error.message}') from error


def check(path: Path) -> None:
    """Of a file that says nothing of tensors. Raises Malformed."""
    with path.open("rb") as stream:
        of(stream.read(SIZE_BYTES_MAX + 1))
