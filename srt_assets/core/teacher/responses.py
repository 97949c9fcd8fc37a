"""The stage behind `reflected_responses`: better answers to the instruction as given and to the reflected one."""

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

    def upstream(self, lake: Lake) -> dict[str, str]:
        before = stage.upstream_hash(lake, stage.TABLE, instructions.PARTITION, "reflected_instructions")
        return {"reflected_instructions": before.content_hash}

    def query(self, lake: Lake) -> str:
        return query_of(lake.source(stage.TABLE, instructions.PARTITION))

    def subjects(self, record: tuple) -> tuple[Subject, ...]:
        sample_id, dataset, instruction, input, response, status, *new, _ = record
        given = Source(sample_id, "reflect_response", instruction, input, response)
        both = Source(sample_id, "reflect_response_of_reflected", *new) if status == "ok" else None
        return (
            Subject(sample_id, dataset, "reflected_response", given),
            Subject(sample_id, dataset, "reflected_both", both, "ok" if both else NO_INSTRUCTION),
        )


def query_of(rows: str) -> str:
    """The records to answer as SQL, with the content key of the reflected pair. `rows`: of `reflected_instructions`."""
    return (
        "SELECT o.sample_id, o.dataset, o.instruction, o.input, o.response, "
        "q.status, q.instruction, q.input, q.response, q.content_key "
        f"FROM {rows} o JOIN {rows} q USING (sample_id) "
        "WHERE o.candidate = 'original' AND q.candidate = 'reflected_instruction' "
        "ORDER BY o.dataset, o.sample_id"
    )


STAGE = ReflectedResponses()
