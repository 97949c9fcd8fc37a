"""Names that more than one definition uses: jobs' parts, groups, tags, the students partition. Nothing else."""

import dagster as dg

from srt_assets.core import stages

TEACHER_SIDE = tuple(stage.asset for stage in stages.shared())
STUDENT_SIDE = tuple(stage.asset for stage in stages.of_student())
STUDENT_CHECKPOINT = next(stage.asset for stage in stages.of_student() if not stage.needs)
# Once these are made, everything is: what the table of the status comes after.
LAST = (TEACHER_SIDE[-1], STUDENT_SIDE[-1])
PIPELINE_STATUS = "pipeline_status"

# Groups are the rooms of the UI's map; those of the stages are theirs to name.
GROUP_SQL = "sql"
GROUP_STATUS = "status"

TAG_STUDENT = "srt/student"
TAG_HOST = "srt/host"
TAG_COMMAND = "srt/command"
# Assets, with commas between them, that are to be paid for again though only the program has changed.
TAG_RENEW = "srt/renew"

# Keys live in the Dagster instance, and the students themselves in the lake; `srt students add` writes both.
students = dg.DynamicPartitionsDefinition(name="students")
