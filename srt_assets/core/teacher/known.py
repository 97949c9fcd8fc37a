"""What the ledger knows of many calls: the best reply of each, and its failed tries.

All calls are looked up together: however many there are, the ledger is read once for their replies and once for their
failed tries, and nothing of it is held but what is being looked at.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import duckdb
import pyarrow as pa

# What is looked up: `place` is a number of the caller's, each once; the rest is what `Call` says of the call.
WANTED = pa.schema(
    [("place", pa.int64()), ("call_key", pa.string()), ("source_key", pa.string()), ("purpose", pa.string())]
)
# Sent, and the run was stopped before anything came back. No attempt of the call, but perhaps billed.
INTERRUPTED = "interrupted"
HOPELESS = ("bad_request", "context_length", "content_filter", "unreadable_reply")
_FETCHED = 1000


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
        """A reply that was cut by its length serves only if it was allowed at least the tokens now wanted."""
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


class Known(NamedTuple):
    """What the ledger knows of one call: its best reply; failed tries, by the tokens that were allowed."""

    reply: Reply | None
    tried: dict[int, Attempts]


T = TypeVar("T")


class ByPlace(Generic[T]):
    """Pairs of a place and a value, by ascending place, of which one place after another is asked for."""

    def __init__(self, pairs: Iterator[tuple[int, T]]) -> None:
        self._pairs = pairs
        self._next = next(pairs, None)

    def at(self, place: int) -> T | None:
        """The value of this place, None if there is none. Places before it are passed over."""
        while self._next and self._next[0] < place:
            self._next = next(self._pairs, None)
        return self._next[1] if self._next and self._next[0] == place else None


class Found:
    """The answer to one look-up. Ask for its places in ascending order, and close it."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        name: str,
        wanted: pa.Table | pa.RecordBatchReader,
        facts: dict[str, Any] | None,
        api_base: str | None,
    ) -> None:
        """`con` has the ledger as the view `calls`; `name` is one for tables that are not there yet.

        `facts` are what the settings say of every wanted call: those that an older program asked with equal facts count
        too. Without `api_base`, failed tries are left out.
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
        with suppress(duckdb.ConnectionException):  # the whole look-up was closed before, and its tables are gone
            for table in self._tables:
                self._con.execute(f"DROP TABLE {table}")
        self._con.close()

    def at(self, place: int) -> Known:
        return Known(self._replies.at(place), self._tried.at(place) or {})

    def _find(self, wanted: pa.Table | pa.RecordBatchReader, facts: dict[str, Any] | None) -> None:
        """Make the tables `keys`, which stand for each call, and `found`, the replies to them in no order.

        Rank 0 is a call's own key; then come those under which older programs asked the same, the newest reply first.
        Under one version the facts of a call determine its key, so that with equal facts another key is another
        version's. A call with a reply of its own needs none of them.
        """
        self._con.register("wanted", wanted)
        asked = self._table("asked", "SELECT * FROM wanted")
        self._con.unregister("wanted")
        # As numbers keys take a third of the memory, and all of them must be there to be compared.
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
        """The best reply of each call: a finished one, else the one that was allowed the most tokens."""
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
        """Failed tries at this endpoint, by max_tokens, of calls without a finished reply. Another endpoint or
        allowance is another chance.

        A 400 is hopeless only if its run had a reply to another call: else the server may have been set up wrong.
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
        """The rows of a query, made at once as a table: one that is still being read keeps memory that others need."""
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
