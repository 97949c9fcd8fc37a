"""The stage of `reflected_responses`: better answers to the instruction as given and to the reflected one."""

from srt_assets.core.lake import Lake
from srt_assets.core.teacher import instructions, stage
from srt_assets.core.teacher.call import Source
from srt_assets.core.teacher.survey import Subject

PARTITION = "asset=reflected_responses"
NO_INSTRUCTION = "no_reflected_instruction"


class ReflectedResponses(stage.Reflection):
    """The teacher's better answers: to the instruction as given, and to the reflected one."""

    asset = "reflected_responses"
    share = PARTITION
    needs = ("raw_dataset", "reflected_instructions")
    together = 2

    def upstream(self, lake: Lake) -> dict[str, str]:
        before = stage.upstream_hash(lake, stage.TABLE, instructions.PARTITION, "reflected_instructions")
        return {"reflected_instructions": before.content_hash}

    def query(self, lake: Lake, where: str = "true") -> str:
        return query_of(lake.source(stage.TABLE, instructions.PARTITION), where)

    def subjects(self, *rows: tuple) -> tuple[Subject, ...]:
        (sample_id, dataset, _, *given), (of_reflected, _, status, *new) = rows
        assert sample_id == of_reflected, f"{sample_id} has no reflected instruction, not even a failed one"
        both = Source(sample_id, "reflect_response_of_reflected", *new) if status == "ok" else None
        return (
            Subject(sample_id, dataset, "reflected_response", Source(sample_id, "reflect_response", *given)),
            Subject(sample_id, dataset, "reflected_both", both, "ok" if both else NO_INSTRUCTION),
        )


def query_of(rows: str, where: str) -> str:
    """SQL for the records to answer, two rows each: as given, and reflected.

    `rows`: a SQL relation with the rows of `reflected_instructions`; `where`: a condition on them.
    """
    return (
        f"SELECT sample_id, dataset, status, instruction, input, response FROM {rows} "
        f"WHERE candidate IN ('original', 'reflected_instruction') AND ({where}) ORDER BY dataset, sample_id, candidate"
    )


STAGE = ReflectedResponses()
