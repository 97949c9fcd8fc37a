"""The stage behind `reflected_responses`: better answers to the instruction as given and to the reflected one."""

from collections.abc import Iterator

from srt_assets.core.lake import Lake
from srt_assets.core.teacher import instructions, stage
from srt_assets.core.teacher.call import Source

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

    def subjects(self, lake: Lake) -> Iterator[list[stage.Subject]]:
        with lake.connect() as con:
            slice_ = lake.source(stage.TABLE, instructions.PARTITION)
            cursor = con.execute(
                "SELECT o.sample_id, o.dataset, o.instruction, o.input, o.response, "
                "q.status, q.instruction, q.input, q.response "
                f"FROM {slice_} o JOIN {slice_} q USING (sample_id) "
                "WHERE o.candidate = 'original' AND q.candidate = 'reflected_instruction' "
                "ORDER BY o.dataset, o.sample_id"
            )
            while records := cursor.fetchmany(stage.CHUNK):
                chunk: list[stage.Subject] = []
                for sample_id, dataset, instruction, input, response, status, *new in records:
                    given = Source(sample_id, "reflect_response", instruction, input, response)
                    chunk.append(stage.Subject(sample_id, dataset, "reflected_response", given))
                    if status == "ok":
                        both = Source(sample_id, "reflect_response_of_reflected", *new)
                        chunk.append(stage.Subject(sample_id, dataset, "reflected_both", both))
                    else:
                        chunk.append(stage.Subject(sample_id, dataset, "reflected_both", None, NO_INSTRUCTION))
                yield chunk


STAGE = ReflectedResponses()
