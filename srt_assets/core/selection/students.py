"""Which students something can be asked about, and the error when it is not one of them."""

from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.sql.models import nearest


def known_student(lake: Lake, student: str, table: str = "student_scores") -> None:
    """UserError if the student has nothing in this table: unknown (names the nearest), or not made yet."""
    have = {p.removeprefix("student=") for p in lake.partitions(table)}
    if student in have:
        return
    registered = {p.removeprefix("student=") for p in lake.partitions("students")} | have
    if student in registered:
        asset = "selected_set" if table in ("decisions", "selected_set") else table
        raise UserError(f"student {student} has no {table} yet", f"make it: srt run {asset} --student {student}")
    remedy = nearest(student, registered) if registered else "none is registered; srt students add PATH|MODEL_ID"
    raise UserError(f"there is no student {student!r}", remedy)
