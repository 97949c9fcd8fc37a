"""What this program would read of the files that an older one has read: seen before anything is changed or paid.

The files are read into a folder that goes again; the lake as it would then be can be asked like any other.
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
    """Records that would come in, and that would go. `calls` and `usd`: what those that come in cost; None if the
    model's price is not known.
    """

    more: int
    fewer: int
    calls: int = 0
    usd: float | None = 0.0

    def __str__(self) -> str:
        price = "price unknown" if self.usd is None else f"{self.usd:.4f} USD"
        cost = f", {self.calls} more calls of the teacher, {price}" if self.more else ""
        return f"{self.more:,} records would come in and {self.fewer:,} go{cost}"


class Ahead(Lake):
    """A lake in which the tables of `raw_dataset` are those that lie under another root."""

    def __init__(self, lake: Lake, read: Lake) -> None:
        super().__init__(lake.home)
        self._read = read

    def directory(self, table: str, partition: str | None = None) -> Path:
        lake: Lake = self._read if table in raw.STAGE.tables else super()  # type: ignore[assignment]
        return lake.directory(table, partition)

    def _verify(self, manifest: Manifest, deep: bool = False) -> None:
        if manifest.table not in raw.STAGE.tables:  # those were written a moment ago
            super()._verify(manifest, deep)


def is_due(settings: Settings, lake: Lake) -> bool:
    """Whether an older program made raw_dataset, so that a run would read the files otherwise."""
    made = lake.manifest(raw.RECORDS)
    return made is not None and made.code_version != raw.STAGE.version


@contextmanager
def ahead(settings: Settings, lake: Lake) -> Iterator[tuple[Lake, Change]]:
    """The lake as a run would leave it, and what that changes. UserError and StageError as of the run."""
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
    """Keep what was counted for `srt status`, which reads no data."""
    looks.remember(looks.memory_of(lake.home, _MEMORY), {_key(settings, lake): asdict(change)})


def remembered(settings: Settings, lake: Lake) -> Change | None:
    """What was counted last, if nothing that decides it has changed since."""
    found: Any = looks.remembered(looks.memory_of(lake.home, _MEMORY)).get(_key(settings, lake))
    try:
        return Change(**found) if found else None
    except TypeError:  # a file of another program, or of none
        return None


def _key(settings: Settings, lake: Lake) -> str:
    made = lake.manifest(raw.RECORDS)
    return f"{raw.STAGE.wanted(settings, lake).digest}/{made.fingerprint if made else ''}"
