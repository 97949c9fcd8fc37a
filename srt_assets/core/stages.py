"""The list of stages, in the order of the graph. All other code finds the assets and tables through this list.

To add a stage, write a file for it and add a line below.
"""

from srt_assets.core.records import raw
from srt_assets.core.scoring import stage as scores
from srt_assets.core.selection import decide
from srt_assets.core.stage import Stage
from srt_assets.core.students import stage as students
from srt_assets.core.tables import TABLES
from srt_assets.core.teacher import instructions, responses
from srt_assets.core.training import stage as training

STAGES: tuple[Stage, ...] = (
    raw.STAGE,
    instructions.STAGE,
    responses.STAGE,
    students.STAGE,
    scores.STAGE,
    decide.STAGE,
    training.STAGE,
)

TABLES.update({table.name: table for stage in STAGES for table in stage.declares})


def shared() -> list[Stage]:
    """The stages whose artefacts all students share: raw data and teacher."""
    return [stage for stage in STAGES if not stage.per_student]


def of_student() -> list[Stage]:
    """The stages that run once per student."""
    return [stage for stage in STAGES if stage.per_student]


def maker(table: str) -> Stage | None:
    """The stage that completes a table: the last one that writes it."""
    return next((stage for stage in reversed(STAGES) if table in (*stage.tables, *stage.feeds)), None)
