"""The jobs that users and sensors launch by name."""

import dagster as dg

from srt_assets.defs import names


def jobs() -> list:
    """`teacher_side` (no partition), `student_side` and `everything` (one student per run, then the status)."""
    teacher = dg.AssetSelection.assets(*names.TEACHER_SIDE)
    student = dg.AssetSelection.assets(*names.STUDENT_SIDE, names.PIPELINE_STATUS)
    return [
        dg.define_asset_job("teacher_side", teacher, description="Read the data and ask the teacher; no student."),
        dg.define_asset_job("student_side", student, description="Score, select, finetune; no teacher call."),
        dg.define_asset_job("everything", teacher | student, description="From raw files to one checkpoint."),
    ]
