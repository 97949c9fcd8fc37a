"""Finding calls again: which replies the ledger holds for a set of keys, and how often the rest was tried.

A reply that was cut by its length is a hit only if it was allowed at least the tokens now wanted.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa

from srt_assets.core.lake import Lake
from srt_assets.core.tables import TABLES, rows_as_dicts
from srt_assets.core.teacher import sealing
from srt_assets.core.teacher.call import Call
from srt_assets.core.teacher.ledger import TABLE, read_segment, segments


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply as the ledger holds it: text, why it ended, tokens it was allowed, key of the call it answered.

    `native_finish_reason` is the provider's word for why it ended, None if an older program asked; `note` is what is
    wrong with that.
    """

    text: str | None
    finish_reason: str | None
    max_tokens: int
    key: str
    native_finish_reason: str | None = None
    note: str | None = None

    @property
    def is_cut(self) -> bool:
        return self.finish_reason == "length"

    def serves(self, max_tokens: int) -> bool:
        return not self.is_cut or self.max_tokens >= max_tokens


@dataclass(frozen=True, slots=True)
class Attempts:
    """Failed tries of one call at one endpoint with one `max_tokens`; the last one's kind and message."""

    count: int
    kind: str
    message: str
    hopeless: bool

    def plus(self, older: "Attempts") -> "Attempts":
        """Both together; the last one is still the last one."""
        return replace(self, count=self.count + older.count, hopeless=self.hopeless or older.hopeless)


# Sent, and the run was stopped before anything came back. No attempt of the call, but perhaps billed.
INTERRUPTED = "interrupted"
HOPELESS = ("bad_request", "context_length", "content_filter", "unreadable_reply")


class Lookup:
    """A view of the ledger as it is now, segments included. Close it."""

    def __init__(self, lake: Lake) -> None:
        sealing.adopt(lake)
        # Segments before the manifest: what is sealed meanwhile is then in the parts.
        rows = [row for path in segments(lake) for row in read_segment(path)]
        self._con = lake.connect()
        # Copied in: a registered table is not seen by the cursors made from this connection.
        self._con.register("arrived", pa.Table.from_pylist(rows, schema=TABLES[TABLE].arrow_schema))
        self._con.execute(f"CREATE TABLE unsealed AS SELECT * FROM arrived ANTI JOIN {TABLE} USING (segment)")
        self._con.unregister("arrived")
        self._con.execute(f"CREATE VIEW calls AS SELECT * FROM {TABLE} UNION ALL BY NAME SELECT * FROM unsealed")

    def __enter__(self) -> "Lookup":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._con.close()

    def replies(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The best reply of each key: a finished one, else the one that was allowed the most tokens."""
        with self._with_keys(keys) as cursor:
            rows = cursor.execute(
                "SELECT reply, finish_reason, coalesce(max_tokens, 0), call_key, native_finish_reason, error "
                "FROM calls JOIN keys USING (call_key) "
                "WHERE status = 'ok' QUALIFY row_number() OVER (PARTITION BY call_key "
                "ORDER BY finish_reason IS NOT DISTINCT FROM 'length', max_tokens DESC, created_at, segment) = 1"
            ).fetchall()
        return {reply.key: reply for reply in (Reply(*row) for row in rows)}

    def older(self, calls: Iterable[Call]) -> dict[str, list[str]]:
        """The keys under which other versions of this program asked the same questions; newest replies come first.

        Under one version these facts determine the key, so that with equal facts another key is another version's.
        """
        asked = [{"call_key": call.key, "purpose": call.purpose, **call.facts} for call in calls]
        with self._con.cursor() as cursor:
            cursor.register("asked", pa.Table.from_pylist(asked, schema=TABLES[TABLE].arrow_schema))
            rows = cursor.execute(
                "SELECT asked.call_key, calls.call_key FROM calls JOIN asked ON calls.source_key = asked.source_key "
                "AND calls.purpose = asked.purpose AND calls.temperature = asked.temperature "
                "AND calls.reply_format = asked.reply_format "
                "AND calls.parameters IS NOT DISTINCT FROM asked.parameters "
                "AND coalesce(calls.model_id, calls.model) = asked.model_id "
                "WHERE calls.call_key <> asked.call_key GROUP BY ALL "
                "ORDER BY max(calls.created_at) FILTER (calls.status = 'ok') DESC NULLS LAST, calls.call_key"
            ).fetchall()
        found: dict[str, list[str]] = {}
        for key, older in rows:
            found.setdefault(key, []).append(older)
        return found

    def attempts(self, keys: Iterable[str], api_base: str) -> dict[str, dict[int, Attempts]]:
        """Failed tries per key and max_tokens at this endpoint. Another endpoint or allowance is another chance.

        A 400 is hopeless only if its run had a reply to another call: else the server may have been set up wrong.
        """
        with self._with_keys(keys) as cursor:
            rows = cursor.execute(
                "SELECT call_key, max_tokens, count(*), arg_max(status, created_at), arg_max(error, created_at), "
                "bool_or(list_contains(?, status) AND (status <> 'bad_request' OR segment IN "
                "(SELECT segment FROM calls WHERE status = 'ok'))) FROM calls JOIN keys USING (call_key) "
                "WHERE status NOT IN ('ok', ?) AND coalesce(attempt, 1) > 0 AND api_base = ? GROUP BY ALL",
                [list(HOPELESS), INTERRUPTED, api_base],
            ).fetchall()
        found: dict[str, dict[int, Attempts]] = {}
        for key, allowed, n, kind, message, dead in rows:
            found.setdefault(key, {})[allowed] = Attempts(n, kind, message or "", dead)
        return found

    def spent_usd(self) -> float:
        """What all calls in the ledger cost together (USD), as far as prices were known."""
        row = self._con.execute("SELECT coalesce(sum(cost_usd), 0) FROM calls").fetchone()
        return float(row[0]) if row else 0.0

    def recent(self, model: str, seconds: float, besides: Iterable[str] = ()) -> list[tuple[float, int]]:
        """(seconds since its reply, tokens) of each call of the last `seconds`, the eldest first.

        Negative where the clock was set back since. `besides`: segments whose calls are not wanted.
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
        """The row of the newest reply whose columns have these values."""
        conditions = " AND ".join(f"{column} = ?" for column in where)
        sql = f"SELECT * FROM calls WHERE {conditions} AND status = 'ok' ORDER BY created_at DESC LIMIT 1"
        cursor = self._con.execute(sql, list(where.values()))
        return next(iter(rows_as_dicts(cursor)), None)

    def _with_keys(self, keys: Iterable[str]) -> duckdb.DuckDBPyConnection:
        cursor = self._con.cursor()
        cursor.register("keys", pa.table({"call_key": pa.array(sorted(set(keys)), pa.string())}))
        return cursor
