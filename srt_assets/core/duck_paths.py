"""What DuckDB makes of a path's characters, and how to give it the file that is meant.

To a reader `*`, `?` and `[` begin a pattern. To the writer of a database a `?` begins options: the log of changes is
looked for beside what stands before it, in a folder that is not there. (DuckDB 1.5; attaching to read is not troubled.)
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
    # In a pattern a backslash would part two folders, even between brackets; a range of characters holds it unseen.
    return escaped if escaped == text else escaped.replace("\\", "[Z-^]")


@contextmanager
def database_for(target: Path) -> Iterator[Path]:
    """Where DuckDB can write the database that is to lie at `target`; it lies there in the end. Detach it inside."""
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
