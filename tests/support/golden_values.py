"""What golden documents are made of."""

from __future__ import annotations

from typing import Final

from holdfast_shared.selector import Term
from holdfast_shared.wire import assignment

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
KEY: Final = "A" * 43 + "="
REF = assignment.ReleaseRef(version="1.2.0", digest=A)
OLD = assignment.ReleaseRef(version="1.1.0-rc.1+build.5", digest=B)
SEGMENT = (Term(label="region", op="in", values=("eu-west",)), Term(label="site", op="not_in", values=("a", "b")))
