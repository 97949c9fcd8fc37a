"""The settings: one frozen object, read from `srt.toml` and `SRT_SECTION__KEY` variables. It contains no secrets.

The environment overrides the file, and the file the defaults. The file is the one named by `SRT_SETTINGS`, else the
first `srt.toml` upwards from the current folder; relative paths in it are relative to its folder. `SRT_HOME` sets
`project.home`.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from srt_assets.core import files
from srt_assets.core.errors import UserError
from srt_assets.core.masking import without_secrets
from srt_assets.core.teacher import address
from srt_assets.core.teacher.ends import CONTENT_FILTER, LENGTH, end_of
from srt_assets.paths import brief, expanded, shown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Policy = Literal[
    "selective",
    "reflected_all",
    "ifd_only",
    "r_ifd_only",
    "perplexity",
    "random",
    "longest",
    "original",
]
POLICIES: tuple[str, ...] = get_args(Policy)
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
When = Literal["auto", "always", "never"]
# Parameters of a request that the program sets itself.
_OWN_PARAMETERS = dict.fromkeys(("api_key", "extra_headers", "headers"), "keys come from the environment only")
_OWN_PARAMETERS |= {name: f"use teacher.{name}" for name in ("model", "api_base", "temperature", "max_tokens")}
_OWN_PARAMETERS |= dict.fromkeys(("max_completion_tokens", "max_output_tokens"), "use teacher.max_tokens")
_OWN_PARAMETERS |= {"timeout": "use teacher.timeout_s", "reasoning_effort": "use teacher.reasoning_effort"}
_OWN_PARAMETERS |= {"base_url": "use teacher.api_base", "response_format": "use teacher.reply_format"}
_OWN_PARAMETERS |= dict.fromkeys(("messages", "n", "stream", "stop", "tools", "extra_body"), "the program needs it")
_OWN_PARAMETERS |= dict.fromkeys(("drop_params", "additional_drop_params"), "a setting is never dropped silently")
# Replacements for messages of pydantic that use Python's terms.
_PLAIN = {"tuple_type": "Input should be a list", "path_type": "Input should be a text"}
# Names of parameters that hold a key or a password; `max_tokens` and the like do not match.
_SECRET_PARAMETER = re.compile(
    r"(api|access|private)_?key|secret|passw|passphrase|credential|authori[sz]ation|bearer"
    r"|(access|auth|session|security|refresh|id|ad)_?token$|^token$",
    re.IGNORECASE,
)
# Settings that are comma-separated names in an environment variable.
_LISTS = {("teacher", "good_finish_reasons"), ("training", "arms"), ("training", "lora_targets")}


class _Section(BaseModel):
    # Errors do not quote the input, because it may be a key in the wrong place.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("it is neither true nor false")
        if isinstance(value, int | float) and not abs(value) < 2**63:
            raise ValueError(f"{value} is out of range")
        if isinstance(value, str) and "\0" in value:  # no file system or database accepts it
            raise ValueError("it has a character of code 0")
        return value


Column = Literal[
    "instruction", "prompt", "input", "response", "completion", "chosen", "rejected", "messages", "system", "history",
    "label", "id",
]  # fmt: skip
Format = Literal[
    "auto", "alpaca", "sharegpt", "messages", "mapped",
    "oasst_tree", "oasst_flat", "openai_preference", "completions_labels", "generations_correctness_math_verify",
    "generations_correctness_llama", "preference", "conversations", "conversation", "texts_in_turn", "prompt_messages",
    "self_instruct", "instruction_response", "upper_case", "prompt_completion", "prompt_response", "prompt_generation",
    "question_answer", "question_response", "flan", "message_pair",
]  # fmt: skip


class Project(_Section):
    home: Path = Path(".srt")
    # Limits of the random generators.
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("home", mode="before")
    @classmethod
    def _a_folder(cls, value: Any) -> Any:
        if value == "":
            raise ValueError("it is empty; write '.' for the folder of the settings file")
        if isinstance(value, str) and shown(value) != value:  # databases cannot store it
            raise ValueError(f"the name {shown(value)} is not UTF-8; rename the folder, or name another")
        return value


class Dataset(_Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    path: str = ""
    hf: str = ""
    split: str = "train"
    # A word for a group of forms, "mapped", or the name of one form of `core/records/forms/table.py`.
    format: Format = "auto"
    limit: Count = 0
    multi_turn: Literal["reject", "first_turn"] = "reject"
    # Of a hub set.
    config: str = ""
    revision: str = ""
    data_files: str | tuple[str, ...] = ""
    # Between the cells of CSV files; '' is a comma, and a tab in .tsv files.
    delimiter: Annotated[str, Field(pattern=r'^[^\r\n"]?$')] = ""
    # A file with a greater share of rows that cannot be read ends the run.
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    # Which column holds what, where no form of its own name is known; "" = leave that out.
    columns: dict[Column, str] = {}
    # Further names of roles.
    roles: dict[Literal["user", "assistant", "system", "tool"], tuple[str, ...]] = {}
    role_key: str = ""
    text_key: str = ""
    # A column whose fields are the row.
    unwrap: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> "Dataset":
        if bool(self.path) == bool(self.hf):
            raise ValueError("give either path or hf")
        for name in ("config", "revision", "data_files") if self.path else ("delimiter",):
            if getattr(self, name):
                raise ValueError(f"{name} is of datasets with {'hf' if self.path else 'path'}")
        return self

    @model_validator(mode="after")
    def _a_whole_mapping(self) -> "Dataset":
        given = {name for name, column in self.columns.items() if column}
        if given and self.format not in ("auto", "mapped"):
            raise ValueError(f'columns are for format = "mapped", not "{self.format}"')
        if self.format == "mapped" and not given:
            raise ValueError(
                'format = "mapped" needs columns, such as { instruction = "problem", response = "solution" }'
            )
        for one, *others in (("instruction", "prompt"), ("response", "completion", "chosen")):
            if len(given & {one, *others}) > 1:
                raise ValueError(f"columns: {' and '.join(sorted(given & {one, *others}))} are the same thing")
        if given and "messages" not in given:
            if not given & {"instruction", "prompt"}:
                raise ValueError("columns name no instruction (or prompt, or messages)")
            if not given & {"response", "completion", "chosen"}:
                raise ValueError("columns name no response (or completion, chosen, or messages)")
        if "messages" in given and given & {"instruction", "prompt", "input"}:
            raise ValueError("columns name both messages and an instruction or input")
        return self


class Teacher(_Section):
    model: Annotated[str, Field(min_length=1)] = "local"
    api_base: str = ""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    # How long a reasoning model thinks; '' sends no such parameter.
    reasoning_effort: Annotated[str, Field(pattern=r"^[a-z_]{0,20}$")] = ""
    # Further parameters of a request: top_p, seed, chat_template_kwargs ...
    parameters: dict[str, Any] = {}
    max_tokens: Positive = 2048
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    context_tokens: Count = 0
    timeout_s: Annotated[float, Field(gt=0)] = 120
    concurrency: Positive = 32
    rpm: Count = 0
    tpm: Count = 0
    # Seconds in all that a run waits for a teacher that answers no call.
    patience_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 3600
    good_finish_reasons: tuple[str, ...] = ()
    max_attempts: Positive = 6
    budget_usd: Amount = 0.0
    usd_per_million_input: Amount = 0.0
    usd_per_million_output: Amount = 0.0
    reply_format: Literal["auto", "markers", "json_schema", "grammar"] = "auto"
    batch: bool = False

    @property
    def sampling(self) -> dict[str, Any]:
        """Parameters sent with every call in addition to temperature and max_tokens."""
        effort = {"reasoning_effort": self.reasoning_effort} if self.reasoning_effort else {}
        return effort | self.parameters

    @field_validator("parameters")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name in _OWN_PARAMETERS:
                raise ValueError(f"{name} is not set here: {_OWN_PARAMETERS[name]}")
        try:
            text = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            raise ValueError("only texts, numbers, true, false, lists and tables of them can be sent") from None
        # Parameters are stored in the ledger and in manifests.
        if name := next((name for name in _names_in(value) if _SECRET_PARAMETER.search(name)), ""):
            raise ValueError(f"{name} is a secret: keys come from the environment only")
        if without_secrets(text) != text:
            raise ValueError("there is a key in it: keys come from the environment only")
        return value

    @field_validator("good_finish_reasons")
    @classmethod
    def _not_known_as_bad(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            if (end := end_of(word)) in (LENGTH, CONTENT_FILTER):
                meaning = "was cut" if end == LENGTH else "was held back by a content filter"
                raise ValueError(f"{word!r} means that the reply {meaning}")
        return value

    @field_validator("api_base")
    @classmethod
    def _a_url(cls, value: str) -> str:
        if value and (why := address.fault(value)):
            raise ValueError(why)
        return value


class Student(_Section):
    template: Literal["vicuna", "alpaca", "wizardlm", "chat", "none"] = "vicuna"
    protocol: Literal["aligned", "official"] = "aligned"
    max_length: Annotated[int, Field(ge=8)] = 2048
    token_budget: Count = 0
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    devices: Annotated[str, Field(pattern=r"^(auto|(cpu|mps|cuda(:\d+)?)(,(cpu|mps|cuda(:\d+)?))*)$")] = "auto"

    @model_validator(mode="after")
    def _official_templates(self) -> "Student":
        if self.protocol == "official" and self.template in ("chat", "none"):
            raise ValueError(f"template {self.template!r} does not exist in protocol 'official'; use 'aligned'")
        return self


class Selection(_Section):
    policy: Policy = "selective"
    keep_unreflected: bool = False
    filter_before_compare: bool = False
    top_k: Annotated[int | float, Field(ge=0)] = 0
    top_k_per_dataset: bool = False

    @model_validator(mode="after")
    def _count_or_share(self) -> "Selection":
        if self.top_k > 1 and self.top_k != int(self.top_k):
            raise ValueError("top_k is a whole number (a count) or a fraction in (0, 1]")
        return self


class Training(_Section):
    method: Literal["full", "lora"] = "full"
    epochs: Annotated[float, Field(gt=0)] = 3
    max_steps: Count = 0
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    batch_size: Positive = 128
    max_length: Annotated[int, Field(ge=8)] = 2048
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: Amount = 0.0
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.05
    lora_rank: Positive = 16
    lora_alpha: Positive = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lora_targets: tuple[str, ...] = ()
    lora_merge: bool = True
    gradient_checkpointing: When = "auto"
    sharding: When = "auto"
    processes: Positive = 1
    arms: tuple[Policy, ...] = ()
    keep_last: Positive = 3


class Automation(_Section):
    enabled: bool = False
    watch: str = ""
    nightly: Annotated[str, Field(pattern=r"^\S+( \S+){4}$")] = "0 2 * * *"

    @field_validator("nightly")
    @classmethod
    def _fires(cls, value: str) -> str:
        if value != cls.model_fields["nightly"].default:
            import dagster as dg  # slow to import; Dagster will evaluate the line

            try:
                dg.ScheduleDefinition(job_name="nightly", cron_schedule=value)
            except dg.DagsterInvalidDefinitionError:
                raise ValueError("it is no cron line (minute hour day month weekday)") from None
        return value


class Settings(_Section):
    """All settings. `srt.toml` at the root of the repository shows each of them with comments."""

    project: Project = Project()
    datasets: tuple[Dataset, ...] = ()
    teacher: Teacher = Teacher()
    student: Student = Student()
    selection: Selection = Selection()
    training: Training = Training()
    automation: Automation = Automation()

    @property
    def home(self) -> Path:
        return self.project.home

    @field_validator("datasets")
    @classmethod
    def _distinct_names(cls, value: tuple[Dataset, ...]) -> tuple[Dataset, ...]:
        names = [d.name for d in value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two datasets are named {twice[0]!r}; give each a name of its own")
        return value


def find_settings_file() -> Path | None:
    """The file `SRT_SETTINGS` names, else the first `srt.toml` upwards from here, else None (defaults only)."""
    if named := os.environ.get("SRT_SETTINGS"):
        path = expanded(named, "SRT_SETTINGS").absolute()
        if why := files.what_else(path) or ("" if path.exists() else "is not there"):
            raise UserError(f"SRT_SETTINGS names {brief(path)}, which {why}", "correct the variable or unset it")
        return path
    here = Path.cwd()
    # A `srt.toml` that is no ordinary file is found too and refused when read: the next one belongs to another project.
    return next((d / "srt.toml" for d in (here, *here.parents) if os.path.lexists(d / "srt.toml")), None)


def load_settings(path: Path | str | None = None) -> Settings:
    """Read the settings. UserError names the file and the key of anything unknown, mistyped or impossible."""
    file = Path(path).absolute() if path else find_settings_file()
    base = file.parent if file else Path.cwd()
    facts = _read_toml(file) if file else {}
    if file:
        _make_paths_absolute(facts, file)
    origins = _apply_environment(facts)
    if "project" in facts and isinstance(facts["project"], dict):
        facts["project"].setdefault("home", str(base / ".srt"))
    else:
        facts.setdefault("project", {"home": str(base / ".srt")})
    try:
        return Settings.model_validate(facts)
    except ValidationError as error:
        raise _explain(error, file, origins) from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(files.read_text(file, files.WRITTEN, "utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {brief(file)}: {error.strerror}", "name a readable settings file") from None
    # RecursionError: nested brackets. Numbers of thousands of digits and bytes that are not UTF-8 raise ValueError.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no valid TOML: {error}", "correct the line it names") from None


def _make_paths_absolute(facts: dict[str, Any], file: Path) -> None:
    def anchor(section: Any, key: str, name: str) -> None:
        if isinstance(section, dict) and isinstance(section.get(key), str) and section[key]:
            section[key] = str(file.parent / expanded(section[key], f"{file}: {name}.{key}"))

    anchor(facts.get("project"), "home", "project")
    anchor(facts.get("automation"), "watch", "automation")
    datasets = facts.get("datasets")
    for number, dataset in enumerate(datasets if isinstance(datasets, list) else []):
        anchor(dataset, "path", f"datasets.{number}")


def _names_in(value: Any) -> Iterator[str]:
    """The names in a table, and in the tables and lists within it."""
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _names_in(inner)


def _apply_environment(facts: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Apply the `SRT_SECTION__KEY` variables to the file's facts; returns the variable that set each key."""
    origins: dict[tuple[str, str], str] = {}
    for variable, text in sorted(os.environ.items()):
        if not variable.startswith("SRT_") or "__" not in variable:
            continue
        section, _, key = variable.removeprefix("SRT_").lower().partition("__")
        if section == "datasets":
            raise UserError(f"the environment variable {variable} cannot set a list", "set it in srt.toml")
        target = facts.setdefault(section, {})
        if not isinstance(target, dict):
            continue  # the file's own value is no section, which is reported under its name
        if (section, key) in (("project", "home"), ("automation", "watch")) and text:
            target[key] = str(expanded(text, variable).absolute())
        else:
            target[key] = _names(text) if (section, key) in _LISTS and text[:1] != "[" else _as_value(text)
        origins[(section, key)] = variable
    project = facts.get("project", {})
    if (home := os.environ.get("SRT_HOME")) and isinstance(project, dict):
        facts["project"] = project | {"home": str(expanded(home, "SRT_HOME").absolute())}
        origins[("project", "home")] = "SRT_HOME"
    return origins


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _as_value(text: str) -> Any:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError):
        return text


def _explain(error: ValidationError, file: Path | None, origins: dict[tuple[str, str], str]) -> UserError:
    lines: list[str] = []
    for problem in error.errors():
        # The `loc` of a rule about all settings is empty; that of a rule about a section is the section's name.
        where = [str(p) for p in problem["loc"] if not (isinstance(p, str) and p in ("int", "float"))]
        variables = [v for (section, key), v in origins.items() if where[:2] in ([section], [section, key])]
        places = [f"environment variable {v}" for v in variables]
        if not variables or (len(where) == 1 and problem["type"] != "extra_forbidden"):
            places.insert(0, shown(file or "defaults"))
        line = f"{', '.join(places)}: {'.'.join(where) or 'settings'}: {_what(problem)}"
        if line not in lines:
            lines.append(line)
    return UserError("\n".join(lines), "correct it; srt.toml at the project's root shows every setting")


def _what(problem: "ErrorDetails") -> str:
    kind, place = problem["type"], problem["loc"]
    if kind == "extra_forbidden":
        return f"unknown setting{_nearest(place)}"
    if kind in ("model_type", "dict_type", "tuple_type") and place[:1] == ("datasets",):
        return "write each dataset as a table [[datasets]]"
    if kind in ("model_type", "dict_type"):
        return f"write it as a table [{'.'.join(map(str, place))}]"
    what = _PLAIN.get(kind) or problem["msg"].removeprefix("Value error, ")
    # Texts, tables and lists are not shown, because they may contain a misplaced key.
    given = problem["input"]
    if kind == "literal_error" and isinstance(given, str):
        return what + _did_you_mean(given, re.findall("'([^']*)'", problem["ctx"]["expected"]))
    return f"{what}, not {given!r}" if isinstance(given, int | float) and kind != "value_error" else what


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(given, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _nearest(location: tuple[int | str, ...]) -> str:
    fields: Any = Settings.model_fields
    if len(location) > 1:
        section = location[0]
        fields = Dataset.model_fields if section == "datasets" else fields[str(section)].annotation.model_fields
    return _did_you_mean(str(location[-1]), fields)
