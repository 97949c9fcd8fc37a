"""A registered tiny student with a selected set, ready to train: what the training tests share."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from srt_assets.core.hashing import Fingerprint, content_key
from srt_assets.core.lake import Lake
from srt_assets.core.students import checkpoints
from srt_assets.settings import Settings
from tests.tiny_student import make_tiny_student

WORDS = "sun moon tree stone river cloud apple plum bread salt wind rain leaf root bird fish sand".split()  # noqa: SIM905
ARMS = {"selective": "reflected_response", "original": "original", "reflected_all": "reflected_both"}


def words(seed: str, n: int) -> str:
    digest = hashlib.sha256(seed.encode()).digest()
    return " ".join(WORDS[digest[i % 32] % len(WORDS)] for i in range(n))


def candidates(n: int) -> list[dict]:
    """`n` records with all four versions, of varied length."""
    rows = []
    for i in range(n):
        for candidate in ("original", "reflected_instruction", "reflected_response", "reflected_both"):
            texts = {
                "instruction": f"Say {words(f'{i}{candidate}', 3)}.",
                "input": words(f"{i}input", 2)
                if i % 3 == 0 and candidate in ("original", "reflected_response")
                else "",
                "response": words(f"{i}{candidate}y", 3 + (7 * i) % 23),
            }
            rows.append(
                {
                    "sample_id": hashlib.sha256(str(i).encode()).hexdigest()[:16],
                    "dataset": "d",
                    "candidate": candidate,
                    "status": "ok",
                    "content_key": content_key(**texts),
                    **texts,
                }
            )
    return rows


@dataclass
class Bench:
    """A home with a student `tiny`, candidates, verdicts and a selected set."""

    lake: Lake
    settings: Settings
    n: int

    def with_training(self, **changes) -> "Bench":
        self.settings = self.settings.model_copy(update={"training": self.settings.training.model_copy(update=changes)})
        return self

    def select(self, n: int | None = None) -> "Bench":
        rows = candidates(self.n)
        verdicts = [
            {"student": "tiny", "sample_id": r["sample_id"], "policy": p, "chosen": c, "kept": True, "reason": "kept"}
            for r in rows[::4]
            for p, c in ARMS.items()
        ]
        kept = [r for r in rows if r["candidate"] == ARMS["selective"]][: self.n if n is None else n]
        chosen = [{**r, "student": "tiny", "position": i} for i, r in enumerate(kept)]
        self._put("candidates", rows, "asset=reflected_responses")
        self._put("policy_decisions", verdicts, "student=tiny")
        self._put("selected_set", chosen, "student=tiny")
        return self

    def _put(self, table: str, rows: list[dict], partition: str) -> None:
        part = self.lake.write_part(table, rows, partition)
        self.lake.commit(table, [part], fingerprint=Fingerprint.of(of=part), code_version="1", partition=partition)


def in_process(command, env) -> int:
    """A launcher without a process: the same code, without the seconds that importing torch again takes."""
    from srt_assets.core.training.job import Job
    from srt_assets.core.training.main import run_job

    return run_job(Job.read(command[-2]), quiet=True)


def make_bench(home: Path, n: int = 16, source: Path | None = None, **training) -> Bench:
    settings = Settings.model_validate(
        {
            "project": {"home": home},
            "student": {"max_length": 256, "token_budget": 256, "devices": "cpu"},
            "training": {
                "batch_size": 4,
                "epochs": 2,
                "learning_rate": 0.02,
                "max_length": 256,
                "held_out": 0.2,
                **training,
            },
        }
    )
    lake = Lake(home)
    checkpoints.add(settings, lake, str(make_tiny_student(source or home.parent / "source")), name="tiny")
    return Bench(lake, settings, n).select()
