"""The stage of `reflected_instructions`: the record as given, and the teacher's new instruction with its answer."""

from srt_assets.core.lake import Lake
from srt_assets.core.teacher import stage
from srt_assets.core.teacher.call import Source
from srt_assets.core.teacher.survey import Subject

PARTITION = "asset=reflected_instructions"


class ReflectedInstructions(stage.Reflection):
    """Every record as given, and the teacher's new instruction with its own answer."""

    asset = "reflected_instructions"
    share = PARTITION
    needs = ("raw_dataset",)

    def upstream(self, lake: Lake) -> dict[str, str]:
        return {"raw_records": stage.upstream_hash(lake, "raw_records", None, "raw_dataset").content_hash}

    def query(self, lake: Lake, where: str = "true") -> str:
        return (
            f"SELECT sample_id, dataset, instruction, input, response FROM {lake.source('raw_records')} WHERE {where} "
            "ORDER BY dataset, sample_id"
        )

    def subjects(self, *rows: tuple) -> tuple[Subject, ...]:
        ((sample_id, dataset, *texts),) = rows
        source = Source(sample_id, "reflect_instruction", *texts)
        return (
            Subject(sample_id, dataset, "original", None, "ok", source.texts),
            Subject(sample_id, dataset, "reflected_instruction", source),
        )


STAGE = ReflectedInstructions()
