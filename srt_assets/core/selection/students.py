"""Checks that a student has rows in a table, and the error if it does not."""

from srt_assets.core.errors import UserError, nearest
from srt_assets.core.lake import Lake
from srt_assets.core.students import folders, retired


def known_student(lake: Lake, student: str, table: str = "student_scores") -> None:
    """UserError if the student has nothing in this table: unknown (names the nearest), or not made yet."""
    have = _of(lake, table)
    if student in have:
        return
    if out := retired.get(lake, student):
        raise UserError(f"student {student} has no {table}: it was retired on {out.at[:10]}", out.error.remedy)
    # A new student is in no table yet, and a student whose folder is missing is still in some tables.
    registered = {*folders.slugs(lake), *_of(lake, "students"), *have}
    if student in registered:
        what = "student_scores" if table == "student_scores" else "selected_set"
        raise UserError(f"student {student} has no {what} yet", f"make it: srt run selected_set --student {student}")
    remedy = nearest(student, registered) if registered else "none is registered; srt students add PATH|MODEL_ID"
    raise UserError(f"there is no student {student!r}", remedy)


def _of(lake: Lake, table: str) -> set[str]:
    return {partition.removeprefix("student=") for partition in lake.partitions(table)}
