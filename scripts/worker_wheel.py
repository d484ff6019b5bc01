"""The worker as a wheel, for environments: `python scripts/worker_wheel.py FOLDER`. The same tree gives the same bytes.

It holds `holdfast_worker` and `holdfast_shared`, and says in `holdfast_protocol.json` which versions of the protocol it speaks,
so that whoever publishes an environment need not know.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import zipfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
for _side in ("agent", "shared"):
    sys.path.append(str(ROOT / _side))

from holdfast_shared import __version__  # noqa: E402 - from this tree
from holdfast_worker import protocol  # noqa: E402 - from this tree

PACKAGES: Final = (ROOT / "agent" / "holdfast_worker", ROOT / "shared" / "holdfast_shared")
NEEDS: Final = ("msgspec>=0.19", "numpy>=1.26", "semver>=3.0.2")
NAME: Final = f"holdfast_worker-{__version__}"
INFO: Final = f"{NAME}.dist-info"
_MOMENT: Final = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say


def build(folder: Path, *, oldest: int = protocol.OLDEST, newest: int = protocol.VERSION) -> Path:
    """Write the wheel; where it lies."""
    files = {
        f"{package.name}/{path.relative_to(package)}": path.read_bytes()
        for package in PACKAGES
        for path in sorted(package.rglob("*"))
        if path.is_file() and (path.suffix == ".py" or path.name == "py.typed")
    }
    needs = "".join(f"Requires-Dist: {one}\n" for one in NEEDS)
    files |= {
        f"{INFO}/METADATA": (
            f"Metadata-Version: 2.1\nName: holdfast-worker\nVersion: {__version__}\nRequires-Python: >=3.11\n{needs}"
        ).encode(),
        f"{INFO}/WHEEL": b"Wheel-Version: 1.0\nGenerator: holdfast\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{INFO}/holdfast_protocol.json": json.dumps({"oldest": oldest, "newest": newest}).encode(),
    }
    return write(folder, f"{NAME}-py3-none-any.whl", INFO, files)


def write(folder: Path, filename: str, info: str, files: dict[str, bytes], *, compress: bool = True) -> Path:
    """A wheel of these files, with the RECORD that they make."""
    lines = [f"{name},sha256={_hash(data)},{len(data)}" for name, data in files.items()]
    files = {**files, f"{info}/RECORD": "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()}
    path, method = folder / filename, zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _MOMENT)
            entry.compress_type, entry.external_attr = method, 0o644 << 16
            archive.writestr(entry, data)
    return path


def _hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/worker_wheel.py FOLDER")
    print(build(Path(sys.argv[1])))
