"""Every table of the server. Times are integer microseconds since 1970 UTC; documents are JSON text or signed envelopes.

SQLite and PostgreSQL get the same tables. What a row means to the core is parsed where it is read: a column named `record`,
`rule`, `entry`, `report` or `evidence` holds JSON of a value type, and nobody queries inside it.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

# Names for constraints, so that a later migration can name them on every database.
metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
# SQLite counts rows only in a column that is exactly INTEGER.
_Serial: Final = BigInteger().with_variant(Integer(), "sqlite")

# ---------------------------------------------------------------- registry: write-once
models: Final = Table(
    "models",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("precedence", Text, nullable=False),  # the version without build metadata: what is unique
    Column("publisher", Text, nullable=False),
    Column("published_at", BigInteger, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    UniqueConstraint("name", "precedence"),
)
environments: Final = Table(
    "environments",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("precedence", Text, nullable=False),
    Column("publisher", Text, nullable=False),
    Column("published_at", BigInteger, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    UniqueConstraint("name", "precedence"),
)
releases: Final = Table(
    "releases",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("pipeline", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("precedence", Text, nullable=False),
    Column("publisher", Text, nullable=False),
    Column("published_at", BigInteger, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    UniqueConstraint("pipeline", "precedence"),
)
release_blobs: Final = Table(
    "release_blobs",
    metadata,
    Column("release_digest", Text, primary_key=True),
    Column("blob_digest", Text, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Index(None, "blob_digest"),
)
expected_uploads: Final = Table(
    "expected_uploads",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("weights", Text, nullable=False),  # JSON: what the file is declared to be, if it is weights; else null
    Column("expires_at", BigInteger, nullable=False),
)
transfers: Final = Table(
    "transfers",
    metadata,
    Column("blob_digest", Text, primary_key=True),
    Column("codec", Text, primary_key=True),
    Column("digest", Text),  # of the bytes to fetch instead; null: it was tried, and is not shorter
    Column("size_bytes", BigInteger, nullable=False),
)

# ---------------------------------------------------------------- devices: what they are, what they said
memberships: Final = Table(
    "memberships",
    metadata,
    Column("device", Text, primary_key=True),
    Column("region", Text, nullable=False, index=True),
    Column("stage", Text, nullable=False),
    Column("counter", BigInteger, nullable=False),
    Column(
        "labels", Text, nullable=False
    ),  # JSON: every label that a selector may ask for, region, stage and device too
    Column("public_key", Text, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
)
device_state: Final = Table(
    "device_state",
    metadata,
    Column("device", Text, primary_key=True),
    Column("incarnation", Text),  # NULL: it has only been seen by its presence
    Column("number", BigInteger),
    Column("sent_at", BigInteger),
    Column("report", Text),  # JSON: the newest holdfast.report/1, without its windows and events
    Column("last_seen_at", BigInteger, nullable=False),  # when its newest report of any kind came, on our clock
    Column("presence", Text, nullable=False),  # online, offline or empty: a hint, never evidence
)
reports_seen: Final = Table(
    "reports_seen",
    metadata,
    Column("device", Text, primary_key=True),
    Column("incarnation", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("received_at", BigInteger, nullable=False),
)
windows: Final = Table(
    "windows",
    metadata,
    Column("device", Text, primary_key=True),
    Column("incarnation", Text, primary_key=True),
    Column("pipeline", Text, primary_key=True),
    Column("window", BigInteger, primary_key=True),
    Column("release_digest", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("opened_at", BigInteger, nullable=False),  # the device's clock
    Column("closed_at", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("nulls", BigInteger, nullable=False),
    Column("hangs", BigInteger, nullable=False),
    Column("input_faults", BigInteger, nullable=False),
    Column("failed_over", BigInteger, nullable=False),
    Column("memory_bytes_max", BigInteger, nullable=False),
    Column("latency", Text, nullable=False),  # JSON: the histogram's bins
    Column("measures", Text, nullable=False, server_default=""),  # JSON: `ingest.rows.Measures`, or empty for none
    Column("received_at", BigInteger, nullable=False),  # our clock
    Index(None, "pipeline", "release_digest", "received_at"),
    Index(None, "pipeline", "received_at"),
)
device_events: Final = Table(
    "device_events",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("device", Text, nullable=False),
    Column("incarnation", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("position", Integer, nullable=False),  # within its report
    Column("kind", Text, nullable=False),
    Column("pipeline", Text, nullable=False),
    Column("release_version", Text, nullable=False),
    Column("release_digest", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("at_monotonic_us", BigInteger, nullable=False),
    Column("began_monotonic_us", BigInteger),
    Column("boot", Text, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    UniqueConstraint("device", "incarnation", "number", "position"),
    Index(None, "pipeline", "release_digest", "kind"),
)

# ---------------------------------------------------------------- what should be, and why
base_rules: Final = Table(
    "base_rules",
    metadata,
    Column("pipeline", Text, primary_key=True),
    Column("position", Integer, primary_key=True),  # 0 is read first
    Column("rule", Text, nullable=False),
)
condemnations: Final = Table(
    "condemnations",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("pipeline", Text, nullable=False, index=True),
    Column("entry", Text, nullable=False),
    Column("cause", Text, nullable=False),  # the rollout or rollback that condemned
    Column("created_at", BigInteger, nullable=False),
)
rollouts: Final = Table(
    "rollouts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("pipeline", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("record", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index(None, "pipeline", "state"),
)
rollbacks: Final = Table(
    "rollbacks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("pipeline", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("record", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index(None, "pipeline", "state"),
)
decisions: Final = Table(
    "decisions",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    Column("at", BigInteger, nullable=False),
    Column("monotonic_us", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),  # what it is about: a rollout, a rollback, a release, a device
    Column("cause", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Index(None, "subject"),
    sqlite_autoincrement=True,  # a number is never given twice
)
commands_seen: Final = Table(
    "commands_seen",
    metadata,
    Column("id", Text, primary_key=True),
    Column("not_after", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
)

# ---------------------------------------------------------------- the outbox
assignments: Final = Table(
    "assignments",
    metadata,
    Column("scope", Text, primary_key=True),  # region/<name> or device/<id>
    Column("pipeline", Text, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("issued_at", BigInteger, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("payload_digest", Text, nullable=False),
    Column("content_digest", Text, nullable=False),  # of what it says, without its order, times and cause
    Column("envelope", LargeBinary, nullable=False),
    Column("published", Boolean, nullable=False, server_default=text("false")),  # read back from the broker
)
seq_floor: Final = Table(
    "seq_floor",
    metadata,
    Column("scope", Text, primary_key=True),
    Column("pipeline", Text, primary_key=True),
    Column("epoch", BigInteger, nullable=False),  # the highest order that any device reported to hold
    Column("seq", BigInteger, nullable=False),
)
changes: Final = Table(
    "changes",
    metadata,
    Column("topic", Text, primary_key=True),  # fleet, rollouts, rollbacks, decisions, releases
    Column("counter", BigInteger, nullable=False),
)
