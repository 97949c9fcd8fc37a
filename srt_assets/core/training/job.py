"""The job of one training: a small JSON file that the training process reads, and its fingerprint. No torch here."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from srt_assets.core.files import read_own
from srt_assets.core.hashing import Fingerprint
from srt_assets.core.scoring import chat
from srt_assets.core.students.checkpoints import StudentInfo
from srt_assets.settings import Settings

# Raise it when the same inputs give another model.
VERSION = "4"
RECORD = "training_record.json"
CURVE = "training_steps.jsonl"


@dataclass(frozen=True)
class Lora:
    """`targets`: names of the layers that get an adapter, () = all linear ones. `merge`: save a plain checkpoint."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    merge: bool = True


@dataclass(frozen=True)
class Job:
    """One training. `work`: directory of unfinished state; `facts`: more facts for the record (policy, counts).

    `steps`: optimizer steps, 0 = from `epochs`. `token_budget`: most tokens of a forward pass, 0 = by device.
    `save_every_s`: seconds between saved states. `gradient_checkpointing` (recompute activations) and `sharding` (FSDP,
    with several processes): auto (only if the training does not fit otherwise), always or never.
    """

    run: str
    arm: str
    student: str
    student_path: str
    student_fingerprint: str
    n_parameters: int
    data_hash: str
    work: str
    template: str
    protocol: str
    method: str
    epochs: float
    steps: int
    learning_rate: float
    batch_size: int
    max_length: int
    warmup_ratio: float
    weight_decay: float
    seed: int
    dtype: str
    device: str
    token_budget: int
    processes: int
    lora: Lora = field(default_factory=Lora)
    gradient_checkpointing: str = "auto"
    sharding: str = "auto"
    save_every_s: float = 300.0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return Path(self.work)

    @property
    def rows_file(self) -> Path:
        return self.directory / "rows.parquet"

    @property
    def final(self) -> Path:
        """The finished checkpoint, before it is moved to `checkpoints/`. It exists only when complete."""
        return self.directory / "final"

    @property
    def states(self) -> Path:
        return self.directory / "states"

    @property
    def curve(self) -> Path:
        return self.directory / CURVE

    @property
    def failure(self) -> Path:
        return self.directory / "failure.json"

    def write(self) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "job.json"
        path.write_text(json.dumps(asdict(self), indent=1))
        return path

    @classmethod
    def read(cls, path: Path) -> "Job":
        facts = json.loads(read_own(Path(path)))
        lora = facts.pop("lora")
        return cls(**facts, lora=Lora(**{**lora, "targets": tuple(lora["targets"])}))


def _recipe(settings: Settings) -> dict[str, Any]:
    """The settings that change the trained model and that the training process needs. Devices, processes and packing
    are left out, because they change only the rounding.
    """
    training = {"method", "epochs", "learning_rate", "batch_size", "max_length", "warmup_ratio", "weight_decay"}
    return {
        **settings.training.model_dump(include=training),
        **settings.student.model_dump(include={"template", "protocol", "dtype"}),
        "seed": settings.project.seed,
    }


def _lora(settings: Settings) -> Lora:
    t = settings.training
    return Lora(t.lora_rank, t.lora_alpha, t.lora_dropout, t.lora_targets, t.lora_merge)


def training_fingerprint(settings: Settings, student: StudentInfo, **data: Any) -> Fingerprint:
    """The fingerprint that a finished training must have to be the wanted one.

    UserError if the settings ask for a chat template and the student has none that can be used.
    """
    facts = {
        **_turns(settings, student),
        **_recipe(settings),
        **settings.training.model_dump(include={"max_steps", "held_out"}),
        **data,
    }
    if settings.training.method == "lora":
        facts["lora"] = asdict(_lora(settings))
    return Fingerprint.of(code=VERSION, student=student.fingerprint, **facts)


def _turns(settings: Settings, student: StudentInfo) -> dict[str, Any]:
    """How turns begin and end, if not with the generation prompt and EOS, which older programs assumed; else {}."""
    if settings.student.template != "chat":
        return {}
    template = chat.of_student(student.slug, student.path, student.fingerprint)
    return {} if template.usual and template.ends_usual else {"turns": [template.usual, template.end]}


def make(
    settings: Settings,
    student: StudentInfo,
    work: Path,
    *,
    run: str,
    arm: str,
    data_hash: str,
    steps: int,
    **facts: Any,
) -> Job:
    """The job of one arm. The stage counts the `steps`, so that all arms take the same number."""
    return Job(
        run=run,
        arm=arm,
        student=student.slug,
        student_path=str(student.path),
        student_fingerprint=student.fingerprint,
        n_parameters=student.n_parameters,
        data_hash=data_hash,
        work=str(work),
        steps=steps,
        device=settings.student.devices.split(",")[0],
        token_budget=settings.student.token_budget,
        lora=_lora(settings),
        facts=facts,
        **_recipe(settings),
        **settings.training.model_dump(include={"processes", "gradient_checkpointing", "sharding"}),
    )
