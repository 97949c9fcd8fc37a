"""Names used by more than one definition: asset groups, tags, the partition of students. Nothing else."""

import dagster as dg

from srt_assets.core import stages

TEACHER_SIDE = tuple(stage.asset for stage in stages.shared())
STUDENT_SIDE = tuple(stage.asset for stage in stages.of_student())
STUDENT_CHECKPOINT = next(stage.asset for stage in stages.of_student() if not stage.needs)
# The last assets of the graph, on which `pipeline_status` depends.
LAST = (TEACHER_SIDE[-1], STUDENT_SIDE[-1])
PIPELINE_STATUS = "pipeline_status"

# Groups in the UI. Stages name their own groups.
GROUP_SQL = "sql"
GROUP_STATUS = "status"

TAG_STUDENT = "srt/student"
TAG_HOST = "srt/host"
TAG_COMMAND = "srt/command"
# Comma-separated assets to pay for again although only the program has changed.
TAG_RENEW = "srt/renew"

# Partition keys are stored in the Dagster instance, the students in the home; `srt students add` writes both.
students = dg.DynamicPartitionsDefinition(name="students")
