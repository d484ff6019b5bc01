"""`python -m holdfast_worker`."""

from __future__ import annotations

import sys

from holdfast_worker.main import main

sys.exit(main())
