"""Looks up many calls in the ledger: the best reply of each, and its failed attempts.

All calls are looked up together: the ledger is read once for their replies and once for their failed attempts, and the
results are streamed. Which calls are looked up is decided by the callers.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import duckdb
import pyarrow as pa

# The calls to look up: `place` is a unique number chosen by the caller; the other columns come from `Call`.
WANTED = pa.schema(
    [("place", pa.int64()), ("call_key", pa.string()), ("source_key", pa.string()), ("purpose", pa.string())]
)
# Status of a call that was sent before the run was stopped. It counts as no attempt, but may have been billed.
INTERRUPTED = "interrupted"
HOPELESS = ("bad_request", "context_length", "content_filter", "unreadable_reply")
_FETCHED = 1000


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply in the ledger: text, finish reason, tokens it was allowed, key of the call it answers.

    `native_finish_reason` is the provider's own word, None if an older program asked. `note` is what is wrong with the
    finish reason.
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
        """Whether the reply can be used. A cut reply can, only if it was allowed at least as many tokens as now."""
        return not self.is_cut or self.max_tokens >= max_tokens


@dataclass(frozen=True, slots=True)
class Attempts:
    """Failed attempts of one call at one endpoint with one `max_tokens`; kind and message of the last."""

    count: int
    kind: str
    message: str
    hopeless: bool

    def plus(self, older: "Attempts") -> "Attempts":
        """The sum of both; kind and message stay those of `self`."""
        return replace(self, count=self.count + older.count, hopeless=self.hopeless or older.hopeless)


class Known(NamedTuple):
    """What the ledger knows of one call: its best reply, and failed attempts by the tokens that were allowed."""

    reply: Reply | None
    tried: dict[int, Attempts]


T = TypeVar("T")


class ByPlace(Generic[T]):
    """A stream of (place, value) pairs in ascending order of place, read by ascending places."""

    def __init__(self, pairs: Iterator[tuple[int, T]]) -> None:
        self._pairs = pairs
        self._next = next(pairs, None)

    def at(self, place: int) -> T | None:
        """The value of this place; None if there is none. Skips earlier places."""
        while self._next and self._next[0] < place:
            self._next = next(self._pairs, None)
        return self._next[1] if self._next and self._next[0] == place else None


class Found:
    """The result of one look-up. Call `at` with ascending places, and close it."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        name: str,
        wanted: pa.Table | pa.RecordBatchReader,
        facts: dict[str, Any] | None,
        api_base: str | None,
    ) -> None:
        """`con` has the ledger as the view `calls`; `name` is a unique prefix for temporary tables.

        `facts`: the facts shared by all wanted calls; replies to calls of an older program with equal facts count too.
        None leaves them out. Without `api_base`, failed attempts are left out.
        """
        self._con, self._name = con.cursor(), name
        self._tables: list[str] = []
        self._find(wanted, facts)
        self._replies = ByPlace(self._read_replies())
        self._con.execute(f"DROP TABLE {name}_found")
        self._tables.remove(f"{name}_found")
        self._tried = ByPlace(self._read_tried(api_base) if api_base is not None else iter(()))

    def __enter__(self) -> "Found":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(duckdb.ConnectionException):  # the connection was closed before, and with it the tables
            for table in self._tables:
                self._con.execute(f"DROP TABLE {table}")
        self._con.close()

    def at(self, place: int) -> Known:
        return Known(self._replies.at(place), self._tried.at(place) or {})

    def _find(self, wanted: pa.Table | pa.RecordBatchReader, facts: dict[str, Any] | None) -> None:
        """Make the tables `keys` (all keys of each call) and `found` (the replies to these keys, unordered).

        Rank 0 is a call's own key. The next ranks are the keys that older programs used for the same call, the newest
        reply first. One version of the program gives calls with equal facts the same key, so another key with equal
        facts is another version's. They are only looked up for calls without a reply under their own key.
        """
        self._con.register("wanted", wanted)
        asked = self._table("asked", "SELECT * FROM wanted")
        self._con.unregister("wanted")
        # Hashed to numbers, keys take a third of the memory; the join holds all of them.
        keys = self._table("keys", f"SELECT place, md5_number(call_key) AS key, 0 AS rank FROM {asked}")
        replies = (
            "SELECT place, rank, reply, finish_reason, max_tokens, call_key, native_finish_reason, error, created_at, "
            f"segment FROM calls JOIN {keys} ON md5_number(calls.call_key) = {keys}.key WHERE status = 'ok'"
        )
        found = self._table("found", replies)
        if facts is None:
            return
        self._con.execute(
            f"INSERT INTO {keys} SELECT place, md5_number(call_key), row_number() OVER (PARTITION BY place "
            "ORDER BY newest DESC NULLS LAST, call_key) FROM ("
            "SELECT asked.place, calls.call_key, max(calls.created_at) FILTER (calls.status = 'ok') AS newest "
            f"FROM calls JOIN (FROM {asked} ANTI JOIN {found} USING (place)) asked "
            "ON calls.source_key = asked.source_key AND calls.purpose = asked.purpose "
            "AND calls.call_key <> asked.call_key "
            "WHERE calls.temperature = ? AND calls.reply_format = ? AND calls.parameters IS NOT DISTINCT FROM ? "
            "AND coalesce(calls.model_id, calls.model) = ? GROUP BY ALL)",
            [facts[name] for name in ("temperature", "reply_format", "parameters", "model_id")],
        )
        self._con.execute(f"INSERT INTO {found} {replies} AND rank > 0")

    def _read_replies(self) -> Iterator[tuple[int, Reply]]:
        """The best reply of each call: a complete one, else the one that was allowed the most tokens."""
        cut = "(finish_reason IS NOT DISTINCT FROM 'length')"
        rows = self._rows(
            "replies",
            "SELECT place, reply, finish_reason, coalesce(max_tokens, 0) AS allowed, call_key, native_finish_reason, "
            f"error FROM {self._name}_found "
            f"ORDER BY place, {cut}, CASE WHEN {cut} THEN coalesce(max_tokens, 0) END DESC, rank, max_tokens DESC, "
            "created_at, segment",
        )
        last = -1
        for place, *columns in rows:
            if place != last:
                yield place, Reply(*columns)
            last = place

    def _read_tried(self, api_base: str) -> Iterator[tuple[int, dict[int, Attempts]]]:
        """Failed attempts at this endpoint, by max_tokens, of calls without a complete reply.

        Attempts at another endpoint or with another max_tokens do not count. A 400 is hopeless only if its run got a
        reply to another call; otherwise the server may have been configured wrongly.
        """
        finished = f"(SELECT place FROM {self._name}_replies WHERE finish_reason IS DISTINCT FROM 'length')"
        rows = self._rows(
            "tried",
            "SELECT place, max_tokens, count(*) AS n, arg_max(status, created_at) AS kind, "
            "arg_max(error, created_at) AS message, bool_or(list_contains(?, status) AND (status <> 'bad_request' "
            "OR segment IN (SELECT segment FROM calls WHERE status = 'ok'))) AS dead "
            f"FROM calls JOIN (FROM {self._name}_keys ANTI JOIN {finished} USING (place)) keys "
            "ON md5_number(calls.call_key) = keys.key "
            "WHERE status NOT IN ('ok', ?) AND coalesce(attempt, 1) > 0 AND api_base = ? "
            "GROUP BY place, rank, max_tokens ORDER BY place, rank",
            [list(HOPELESS), INTERRUPTED, api_base],
        )
        tried: dict[int, Attempts] = {}
        last = -1
        for place, allowed, n, kind, message, dead in rows:
            if place != last and tried:
                yield last, tried
                tried = {}
            more, last = Attempts(n, kind, message or "", dead), place
            tried[allowed] = tried[allowed].plus(more) if allowed in tried else more
        if tried:
            yield last, tried

    def _rows(self, kind: str, sql: str, parameters: list[Any] | None = None) -> Iterator[tuple]:
        """The rows of a query, stored in a table first: a query that is read slowly holds memory that others need."""
        table = self._table(kind, sql, parameters)
        with self._con.cursor() as cursor:
            cursor.execute(f"FROM {table}")
            while rows := cursor.fetchmany(_FETCHED):
                yield from rows

    def _table(self, kind: str, sql: str, parameters: list[Any] | None = None) -> str:
        table = f"{self._name}_{kind}"
        self._con.execute(f"CREATE TABLE {table} AS {sql}", parameters)
        self._tables.append(table)
        return table
