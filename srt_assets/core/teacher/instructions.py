"""The stage behind `reflected_instructions`: the record as given, and the teacher's new instruction with its answer."""

from collections.abc import Iterator

from srt_assets.core.lake import Lake
from srt_assets.core.teacher import stage
from srt_assets.core.teacher.call import Source

PARTITION = "asset=reflected_instructions"


class ReflectedInstructions(stage.Reflection):
    """Every record as given, and the teacher's new instruction with its own answer."""

    asset = "reflected_instructions"
    share = PARTITION
    needs = ("raw_dataset",)

    def upstream(self, lake: Lake) -> dict[str, str]:
        return {"raw_records": stage.upstream_hash(lake, "raw_records", None, "raw_dataset").content_hash}

    def subjects(self, lake: Lake) -> Iterator[list[stage.Subject]]:
        with lake.connect() as con:
            cursor = con.execute(
                "SELECT sample_id, dataset, instruction, input, response FROM raw_records ORDER BY dataset, sample_id"
            )
            while records := cursor.fetchmany(stage.CHUNK):
                chunk: list[stage.Subject] = []
                for sample_id, dataset, *texts in records:
                    source = Source(sample_id, "reflect_instruction", *texts)
                    chunk.append(stage.Subject(sample_id, dataset, "original", None, "ok", source.texts))
                    chunk.append(stage.Subject(sample_id, dataset, "reflected_instruction", source))
                yield chunk


STAGE = ReflectedInstructions()
