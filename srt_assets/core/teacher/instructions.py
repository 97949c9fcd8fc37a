"""The stage behind `reflected_instructions`: the record as given, and the teacher's new instruction with its answer."""

from collections.abc import Iterator

from srt_assets.core.lake import Lake
from srt_assets.core.outcome import Description, Outcome
from srt_assets.core.progress import Progress, silent
from srt_assets.core.teacher import stage
from srt_assets.core.teacher.call import Source
from srt_assets.settings import Settings

VERSION = stage.VERSION
PARTITION = "asset=reflected_instructions"


def _upstream(lake: Lake) -> dict[str, str]:
    return {"raw_records": stage.upstream_hash(lake, "raw_records", None, "raw_dataset").content_hash}


def _subjects(lake: Lake) -> Iterator[list[stage.Subject]]:
    con = lake.connect()
    try:
        cursor = con.execute(
            "SELECT sample_id, dataset, instruction, input, response FROM raw_records ORDER BY dataset, sample_id"
        )
        while records := cursor.fetchmany(stage.CHUNK):
            chunk: list[stage.Subject] = []
            for sample_id, dataset, *texts in records:
                given = (texts[0], texts[1], texts[2])
                source = Source(sample_id, "reflect_instruction", *given)
                chunk.append(stage.Subject(sample_id, dataset, "original", None, "ok", given))
                chunk.append(stage.Subject(sample_id, dataset, "reflected_instruction", source))
            yield chunk
    finally:
        con.close()


PLAN = stage.Plan(PARTITION, _upstream, _subjects)


def wanted(settings: Settings, lake: Lake) -> str:
    """The fingerprint the asset should have now. StageError if `raw_dataset` has not been made."""
    return stage.wanted(settings, lake, PLAN)


def run(settings: Settings, lake: Lake, progress: Progress = silent) -> Outcome:
    """Make the rows `original` and `reflected_instruction` of every record; ask the teacher for what is missing."""
    return stage.run(settings, lake, PLAN, progress)


def describe(lake: Lake) -> Description:
    """Counts by status, tokens, money, five rows."""
    return stage.describe(lake, PLAN)
