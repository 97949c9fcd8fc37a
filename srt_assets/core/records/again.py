"""What this program would read from files that an older program has read, counted before anything is changed or paid.

The files are read into a temporary folder. `Ahead` is the lake as it would be after a run; it is queried like any lake.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from srt_assets.core import looks, scratch
from srt_assets.core.lake import Lake
from srt_assets.core.manifest import Manifest
from srt_assets.core.progress import silent
from srt_assets.core.records import raw
from srt_assets.core.stage import Work
from srt_assets.settings import Settings

_MEMORY = "reading_again"


@dataclass(frozen=True)
class Change:
    """Records that a run would add and remove. `calls` and `usd`: what the added records cost; `usd` is None if the
    model's price is not known.
    """

    more: int
    fewer: int
    calls: int = 0
    usd: float | None = 0.0

    def __str__(self) -> str:
        price = "price unknown" if self.usd is None else f"{self.usd:.4f} USD"
        cost = f", {self.calls} more teacher calls, {price}" if self.more else ""
        return f"{self.more:,} records would be added and {self.fewer:,} removed{cost}"


class Ahead(Lake):
    """A lake whose `raw_dataset` tables are those of another lake."""

    def __init__(self, lake: Lake, read: Lake) -> None:
        super().__init__(lake.home)
        self._read = read

    def directory(self, table: str, partition: str | None = None) -> Path:
        lake: Lake = self._read if table in raw.STAGE.tables else super()  # type: ignore[assignment]
        return lake.directory(table, partition)

    def _verify(self, manifest: Manifest, deep: bool = False) -> None:
        if manifest.table not in raw.STAGE.tables:  # the others were written a moment ago
            super()._verify(manifest, deep)


def is_due(settings: Settings, lake: Lake) -> bool:
    """Whether an older program made raw_dataset, so that a run would read the files again."""
    made = lake.manifest(raw.RECORDS)
    return made is not None and made.code_version != raw.STAGE.version


@contextmanager
def ahead(settings: Settings, lake: Lake) -> Iterator[tuple[Lake, Change]]:
    """The lake as a run would leave it, and what would change. Raises UserError and StageError as the run would."""
    want = raw.STAGE.wanted(settings, lake)
    with scratch.folder(lake.home) as folder:
        read = Lake(Path(folder))
        made = raw.STAGE.make(Work(settings, read, "", None, want, silent, False, None))
        for table, parts in made.parts.items():
            read.commit(table, parts, fingerprint=want, code_version=raw.STAGE.version, stats=made.stats)
        after = Ahead(lake, read)
        with after.connect() as con:
            before = f"(SELECT sample_id FROM {lake.source(raw.RECORDS)})"
            [(more, fewer)] = con.execute(
                f"SELECT (SELECT count(*) FROM raw_records ANTI JOIN {before} USING (sample_id)), "
                f"(SELECT count(*) FROM {before} ANTI JOIN raw_records USING (sample_id))"
            ).fetchall()
        yield after, Change(more, fewer)


def remember(settings: Settings, lake: Lake, change: Change) -> None:
    """Store the counts for `srt status`, which reads no data."""
    looks.remember(looks.memory_of(lake.home, _MEMORY), {_key(settings, lake): asdict(change)})


def remembered(settings: Settings, lake: Lake) -> Change | None:
    """The stored counts, if neither the settings, the files nor the home's records have changed since."""
    found: Any = looks.remembered(looks.memory_of(lake.home, _MEMORY)).get(_key(settings, lake))
    try:
        return Change(**found) if found else None
    except TypeError:  # written by another version of the program
        return None


def _key(settings: Settings, lake: Lake) -> str:
    made = lake.manifest(raw.RECORDS)
    return f"{raw.STAGE.wanted(settings, lake).digest}/{made.fingerprint if made else ''}"
