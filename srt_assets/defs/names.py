"""Names that more than one definition uses: assets, groups, pools, tags, the students partition. Nothing else."""

import dagster as dg

RAW_DATASET = "raw_dataset"
REFLECTED_INSTRUCTIONS = "reflected_instructions"
REFLECTED_RESPONSES = "reflected_responses"
STUDENT_CHECKPOINT = "student_checkpoint"
STUDENT_SCORES = "student_scores"
SELECTED_SET = "selected_set"
FINETUNED_CHECKPOINT = "finetuned_checkpoint"
PIPELINE_STATUS = "pipeline_status"

TEACHER_SIDE = (RAW_DATASET, REFLECTED_INSTRUCTIONS, REFLECTED_RESPONSES)
STUDENT_SIDE = (STUDENT_CHECKPOINT, STUDENT_SCORES, SELECTED_SET, FINETUNED_CHECKPOINT)

# Groups are the rooms of the UI's map.
GROUP_RAW = "raw"
GROUP_REFLECTION = "reflection"
GROUP_STUDENTS = "students"
GROUP_SCORES = "scores"
GROUP_SELECTION = "selection"
GROUP_TRAINING = "training"
GROUP_SQL = "sql"
GROUP_STATUS = "status"

# Pools: at most so many steps at a time, over all runs (limits in dagster.yaml).
POOL_TEACHER = "teacher_api"
POOL_DEVICE = "device"

TAG_STUDENT = "srt/student"
TAG_HOST = "srt/host"
TAG_COMMAND = "srt/command"

# Keys live in the Dagster instance, and the students themselves in the lake; `srt students add` writes both.
students = dg.DynamicPartitionsDefinition(name="students")
