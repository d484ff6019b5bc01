"""`python -m holdfast_worker.isolation`: how a worker would be confined here, by this user. For `holdfast-agent doctor`."""

from __future__ import annotations

import sys

import msgspec

from holdfast_shared.wire.release import Limits
from holdfast_worker.isolation.confine import begin
from holdfast_worker.isolation.plan import Asked
from holdfast_worker.protocol import TASKS_MAX

if __name__ == "__main__":
    told = begin(Asked(isolated={}), tasks_max=TASKS_MAX, reads=()).finish(memory_bytes_max=Limits().memory_bytes_max)
    sys.stdout.buffer.write(msgspec.json.encode(told))
