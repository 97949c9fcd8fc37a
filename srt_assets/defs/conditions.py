"""Automation conditions: a per-student asset is requested when its inputs (data versions) or its code have changed."""

import dagster as dg

AC = dg.AutomationCondition
# Required for every request. An asset whose execution failed is not requested, because it would fail again: Dagster
# retries killed runs, and the nightly run tries the rest once more.
_at_rest = (
    ~AC.any_deps_missing() & ~AC.any_deps_in_progress() & ~AC.in_progress() & ~AC.execution_failed()
) & AC.all_deps_blocking_checks_passed()

# Also handled once a run of it has begun: if a user stops that run, it must not be requested again a moment later.
_handled = (
    AC.newly_requested() | AC.newly_updated() | AC.in_progress().newly_true() | AC.initial_evaluation()
).with_label("handled")

# Not eager(), which re-runs every student when an input was made again with equal content, and ignores new code.
inputs_or_code_changed: dg.AutomationCondition = (
    (
        AC.newly_missing()
        | AC.code_version_changed()
        | AC.any_deps_match(AC.data_version_changed() | AC.will_be_requested())
    ).since(_handled)
    & _at_rest
).with_label("inputs_or_code_changed")

# For the asset student_checkpoint. The sensor `new_student_checkpoints` requests the first run of a new student. It
# adds the partition a moment before that run exists, so a condition on "missing" would request the run twice.
code_changed: dg.AutomationCondition = (AC.code_version_changed().since(_handled) & _at_rest).with_label("code_changed")
