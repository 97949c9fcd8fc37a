"""A small lake with raw records, and settings that point at a fake teacher: shared by the teacher's tests."""

import json
from pathlib import Path
from typing import Any

from srt_assets.core.lake import Lake
from srt_assets.core.outcome import Outcome
from srt_assets.core.records import raw
from srt_assets.core.teacher import instructions, responses
from srt_assets.settings import Dataset, Project, Settings, Teacher


def records(n: int) -> list[dict[str, str]]:
    return [
        {
            "instruction": f"Explain item {i}.",
            "input": "with an input" if i % 3 == 0 else "",
            "output": f"Item {i} is a thing.",
        }
        for i in range(n)
    ]


def home(folder: Path, n: int = 6, rows: list[dict[str, str]] | None = None, **teacher: Any) -> tuple[Settings, Lake]:
    """Settings and a lake whose raw_dataset is made. Teacher options as in the settings."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data.json"
    data.write_text(json.dumps(records(n) if rows is None else rows))
    options = {"model": "openai/fake", "concurrency": 8, "timeout_s": 5.0, "max_tokens": 300} | teacher
    settings = Settings(
        project=Project(home=folder / "home"),
        datasets=(Dataset(name="d", path=str(data), format="alpaca"),),
        teacher=Teacher(**options),
    )
    lake = Lake(settings.home)
    raw.STAGE.run(settings, lake)
    return settings, lake


def both(settings: Settings, lake: Lake) -> tuple[Outcome, Outcome]:
    """The two stages, one after the other."""
    return instructions.STAGE.run(settings, lake), responses.STAGE.run(settings, lake)


def with_teacher(settings: Settings, **teacher: Any) -> Settings:
    return settings.model_copy(update={"teacher": settings.teacher.model_copy(update=teacher)})


def table(lake: Lake, sql: str) -> list[tuple]:
    con = lake.connect()
    try:
        return con.execute(sql).fetchall()
    finally:
        con.close()


def candidates(lake: Lake) -> list[tuple]:
    """All candidate rows without what may differ between equal runs."""
    return table(lake, "SELECT * FROM candidates ORDER BY sample_id, candidate")
