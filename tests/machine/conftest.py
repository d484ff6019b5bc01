"""These tests boot a whole machine and take minutes: they are collected only where somebody asks for them."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("HOLDFAST_MACHINE") == "1" else ["test_*.py"]
