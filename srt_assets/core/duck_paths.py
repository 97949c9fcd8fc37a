"""Paths with characters that DuckDB treats specially. Nothing else about DuckDB belongs here.

When DuckDB reads files, `*`, `?` and `[` in a path begin a pattern. When it writes a database, a `?` begins options,
and DuckDB looks for the write-ahead log beside the text before the `?`, in a folder that does not exist. (DuckDB 1.5;
attaching a database read-only is not affected.)
"""

import glob
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from srt_assets.core.errors import UserError


def exactly(path: Path | str) -> str:
    """The pattern that matches this path and no other."""
    text = str(path)
    escaped = glob.escape(text)
    # In a pattern DuckDB takes a backslash for a separator of folders, even within brackets. The range Z-^ contains the
    # backslash without naming it.
    return escaped if escaped == text else escaped.replace("\\", "[Z-^]")


@contextmanager
def database_for(target: Path) -> Iterator[Path]:
    """The path at which DuckDB can write the database; the block's end copies it to `target` if that is another path.

    Detach the database before the block ends.
    """
    if "?" not in str(target):
        yield target
        return
    with tempfile.TemporaryDirectory(prefix="srt-") as folder:
        if "?" in folder:
            what = f"DuckDB writes no database under {target.parent}, nor under {folder}: there is a ? in the path"
            raise UserError(what, "rename one of the folders, or set TMPDIR to one without ?")
        place = Path(folder) / "built.duckdb"
        yield place
        shutil.copyfile(place, target)
