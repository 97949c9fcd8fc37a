"""The records of retired students. Retiring a student is in `retire.py`.

The record of a retired student stays. It holds the time of retirement, the fingerprint of its weights and the
signatures of its files. The watched folder does not bring back a student with the same files; other files under the
same name are another checkpoint and are accepted. `srt students add` brings back any student. The column
`students.retired_at` has the time from the record.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb

from srt_assets.core.errors import UserError
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.lake import Lake
from srt_assets.core.locks import replace_text
from srt_assets.core.students import folders
from srt_assets.core.students.folders import BACK_AT, RECORD, RETIRED
from srt_assets.core.tables import rows_as_dicts

TABLE = "students"


@dataclass(frozen=True)
class Retired:
    """A retired student. `at`: time of retirement (ISO, UTC); `source`: as registered; `purged`: results deleted."""

    slug: str
    at: str
    source: str
    fingerprint: str
    signatures: tuple[str, ...]
    purged: bool

    @property
    def error(self) -> UserError:
        """The error for a command that uses this student."""
        return UserError(
            f"student {self.slug} was retired on {self.at[:10]}",
            f"srt students add {self.source} --name {self.slug} brings it back",
        )


def every(lake: Lake) -> dict[str, Retired]:
    """All retired students by slug."""
    found = {slug: of(slug, record) for slug, record in sorted(folders.records(lake))}
    return {slug: retired for slug, retired in found.items() if retired}


def get(lake: Lake, slug: str) -> Retired | None:
    """The retired student with this key; None if there is none."""
    return of(slug, folders.known(lake, slug))


def of(slug: str, record: Mapping[str, Any] | None) -> Retired | None:
    """The retirement in a student's record; None if it is not retired."""
    facts = (record or {}).get(RETIRED)
    if record is None or facts is None:
        return None
    return Retired(
        slug,
        at=facts["at"],
        source=record["source"],
        fingerprint=record.get("fingerprint", ""),
        signatures=tuple(facts["signatures"]),
        purged="purged_at" in facts,
    )


def note(lake: Lake, slug: str, **facts: Any) -> None:
    """Add facts about the retirement to the record. Only while `registering`."""
    record = folders.record(lake.home / "students" / slug)
    if record and RETIRED in record:
        record[RETIRED] |= facts
        _write(lake, slug, record)


def note_return(lake: Lake, slug: str) -> None:
    """Store that the student was brought back. It needs a run, because its results may have been purged."""
    with folders.registering(lake, slug):
        if record := folders.record(lake.home / "students" / slug):
            _write(lake, slug, record | {BACK_AT: datetime.now(UTC).isoformat()})


def returned(lake: Lake) -> dict[str, str]:
    """The time (ISO, UTC) at which each student was brought back, for students that are not retired now."""
    return {slug: r[BACK_AT] for slug, r in folders.records(lake) if BACK_AT in r and RETIRED not in r}


def _write(lake: Lake, slug: str, record: Mapping[str, Any]) -> None:
    replace_text(lake.home / "students" / slug / RECORD, json.dumps(record, indent=1))


def show(lake: Lake, slug: str) -> None:
    """Update `retired_at` in the student's row of `students` from its record, if it differs."""
    partition = f"student={slug}"
    record = folders.known(lake, slug) or {}
    now = of(slug, record)
    with lake.lock(TABLE, partition):
        before = lake.manifest(TABLE, partition)
        stats = before.stats if before else {}
        if stats.get(RETIRED) == (now and now.at):
            return
        with duckdb.connect() as con:
            rows = rows_as_dicts(con.execute(f"SELECT * FROM {lake.source(TABLE, partition)}"))
        facts = {name: record.get(name) for name in ("source", "revision", "parent", "generation")}
        row = rows[0] if rows else {"student": slug, **facts, "student_fingerprint": record.get("fingerprint")}
        at = datetime.fromisoformat(now.at).astimezone(UTC).replace(tzinfo=None) if now else None
        lake.commit(
            TABLE,
            [lake.write_part(TABLE, [row | {"retired_at": at}], partition)],
            fingerprint=Fingerprint(before.inputs, before.fingerprint) if before else Fingerprint.of(retired=slug),
            code_version=before.code_version if before else "",
            partition=partition,
            # A student that has never run has no finished row.
            complete=bool(before and before.complete),
            stats={k: v for k, v in stats.items() if k != RETIRED} | ({RETIRED: now.at} if now else {}),
        )
