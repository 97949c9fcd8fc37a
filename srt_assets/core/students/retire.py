"""Retires a student: runs no longer include it. Its results stay until they are purged (`purge.py`).

`srt students remove` retires; so does deleting the student's partition in the UI (`defs/retirement.py`).
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import duckdb

from srt_assets.core.errors import Damaged, UserError, nearest
from srt_assets.core.lake import Lake
from srt_assets.core.locks import replace_text
from srt_assets.core.students import folders, retired, watch
from srt_assets.core.students.folders import RECORD, RETIRED
from srt_assets.core.students.retired import TABLE, Retired
from srt_assets.core.tables import rows_as_dicts
from srt_assets.settings import Settings


def retire(settings: Settings, lake: Lake, slug: str, still: Callable[[], bool] = lambda: True) -> Retired | None:
    """Retire a student, unless it is retired already.

    `still` is called while no other process can register the student; if it returns False, nothing is done and None is
    returned. UserError if there is no such student.
    """
    path = lake.home / "students" / slug
    with folders.registering(lake, slug):
        folders.settle(path.parent, slug)
        if not still():
            return None
        record = known(settings, lake, slug)
        if RETIRED not in record:
            offered = watch.offered(settings, slug).get(slug)
            signatures = {record.get("signature"), offered.signature if offered else None} - {None}
            record[RETIRED] = {"at": datetime.now(UTC).isoformat(), "signatures": sorted(map(str, signatures))}
            path.mkdir(parents=True, exist_ok=True)
            replace_text(path / RECORD, json.dumps(record, indent=1))
    retired.show(lake, slug)
    return retired.of(slug, record)


def known(settings: Settings, lake: Lake, slug: str) -> dict[str, Any]:
    """The student's record. Without one (not run yet, or its folder is missing) it is made from other sources.

    UserError if there is no such student, Damaged if its record cannot be read.
    """
    path = lake.home / "students" / slug
    record = folders.record(path)
    if record == {}:
        raise Damaged(path / RECORD, "it does not say which student this is")
    if record:
        return record
    with duckdb.connect() as con:
        rows = rows_as_dicts(con.execute(f"SELECT * FROM {lake.source(TABLE, f'student={slug}')}"))
    offered = watch.offered(settings, slug).get(slug)
    if not rows and not offered:
        names = {*folders.slugs(lake), *retired.every(lake)}
        raise UserError(f"there is no student {slug!r}", nearest(slug, names) if names else "none is registered")
    row = rows[0] if rows else {}
    return {
        "source": row.get("source") or (offered.source if offered else ""),
        "revision": row.get("revision") or "",
        "parent": row.get("parent") or "",
        "generation": row.get("generation") or 0,
        **({"fingerprint": row["student_fingerprint"]} if row.get("student_fingerprint") else {}),
    }
