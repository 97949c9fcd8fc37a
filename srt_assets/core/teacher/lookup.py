"""Queries of the ledger as it is now: replies to calls, money spent, recent calls. Writing it is in `ledger.py`."""

import itertools
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from srt_assets.core.lake import Lake
from srt_assets.core.tables import TABLES, rows_as_dicts
from srt_assets.core.teacher import sealing
from srt_assets.core.teacher.call import PURPOSES
from srt_assets.core.teacher.fill import ROWS, bounded, fill
from srt_assets.core.teacher.known import WANTED, Found, Known
from srt_assets.core.teacher.ledger import TABLE, open_segment, read_lines, segments


class Lookup:
    """A view of the ledger as it is now, segments included. Close it."""

    def __init__(self, lake: Lake) -> None:
        sealing.adopt(lake)
        self._names = (f"keys_{n}" for n in itertools.count())
        with ExitStack() as stack:
            # Segments are opened before the manifest is read: rows that are sealed meanwhile are in a part or still
            # here.
            live = [stack.enter_context(file) for path in segments(lake) if (file := open_segment(path))]
            self._con = bounded(lake)
            # Fail now if the ledger is damaged, not after some calls have been paid again.
            self._con.execute(f"SELECT call_key FROM {TABLE} LIMIT 1")
            # Copied into a table, because cursors of this connection do not see registered tables.
            self._con.execute(f"CREATE TABLE unsealed AS FROM {TABLE} LIMIT 0")
            rows = itertools.chain.from_iterable(map(read_lines, live))
            while piece := list(itertools.islice(rows, ROWS)):
                fill(self._con, "unsealed", pa.Table.from_pylist(piece, schema=TABLES[TABLE].arrow_schema))
        if live:
            self._con.execute(f"DELETE FROM unsealed WHERE segment IN (SELECT segment FROM {TABLE})")
        self._con.execute(f"CREATE VIEW calls AS SELECT * FROM {TABLE} UNION ALL BY NAME SELECT * FROM unsealed")

    def __enter__(self) -> "Lookup":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._con.close()

    def look_up(
        self, wanted: pa.Table | pa.RecordBatchReader, facts: dict[str, Any] | None, api_base: str | None
    ) -> Found:
        """What the ledger knows of many calls (rows of `known.WANTED`): see `known.Found`."""
        return Found(self._con, next(self._names), wanted, facts, api_base)

    def known(self, keys: Iterable[str], api_base: str | None = None) -> dict[str, Known]:
        """What the ledger knows of a few keys; unknown keys are left out."""
        names = sorted(set(keys))
        rows = [{"place": place, "call_key": key} for place, key in enumerate(names)]
        with self.look_up(pa.Table.from_pylist(rows, schema=WANTED), None, api_base) as found:
            known = {key: found.at(place) for place, key in enumerate(names)}
        return {key: one for key, one in known.items() if one.reply or one.tried}

    def asked_before(self) -> pa.Table:
        """The pairs of all calls ever made: `source_key` (null in rows of the oldest programs) and `purpose`."""
        sql = "SELECT DISTINCT source_key, purpose FROM calls WHERE purpose IN (SELECT unnest(?))"
        return self._con.execute(sql, [list(PURPOSES)]).to_arrow_table()

    def older_replies(self, rows: str, prompt_version: str) -> int:
        """How many replies to other prompts the rows of `candidates` (`rows`: a SQL relation) were made from."""
        sql = (
            f"SELECT count(DISTINCT call_key) FROM calls SEMI JOIN {rows} made USING (call_key) "
            "WHERE status = 'ok' AND prompt_version IS DISTINCT FROM ?"
        )
        row = self._con.execute(sql, [prompt_version]).fetchone()
        return int(row[0]) if row else 0

    def spent_usd(self) -> float:
        """Total price of all calls in the ledger (USD), as far as prices are known."""
        row = self._con.execute("SELECT coalesce(sum(cost_usd), 0) FROM calls").fetchone()
        return float(row[0]) if row else 0.0

    def recent(self, model: str, seconds: float, besides: Iterable[str] = ()) -> list[tuple[float, int]]:
        """(seconds since its reply, tokens) of each call of the last `seconds`, the oldest first.

        The age is negative if the clock was set back since. `besides`: segments to leave out.
        """
        now = datetime.now(UTC).replace(tzinfo=None)
        rows = self._con.execute(
            "SELECT created_at, coalesce(prompt_tokens, 0) + coalesce(completion_tokens, 0) FROM calls "
            "WHERE model = ? AND created_at > ? AND NOT list_contains(?::VARCHAR[], coalesce(segment, '')) "
            "ORDER BY created_at",
            [model, now - timedelta(seconds=seconds), list(besides)],
        ).fetchall()
        return [((now - at).total_seconds(), tokens) for at, tokens in rows]

    def mean_tokens(self, model: str) -> list[tuple[str, float, float, int]]:
        """(purpose, mean prompt tokens, mean completion tokens, replies) of a model's replies."""
        return self._con.execute(
            "SELECT purpose, avg(prompt_tokens), avg(completion_tokens), count(*) FROM calls WHERE status = 'ok' "
            "AND model = ? AND prompt_tokens > 0 AND completion_tokens > 0 GROUP BY purpose",
            [model],
        ).fetchall()

    def last(self, **where: str) -> dict[str, Any] | None:
        """The row of the newest reply whose columns have these values; None if there is none."""
        conditions = " AND ".join(f"{column} = ?" for column in where)
        sql = f"SELECT * FROM calls WHERE {conditions} AND status = 'ok' ORDER BY created_at DESC LIMIT 1"
        cursor = self._con.execute(sql, list(where.values()))
        return next(iter(rows_as_dicts(cursor)), None)
