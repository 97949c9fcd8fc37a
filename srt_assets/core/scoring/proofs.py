"""What students have proved, kept in the home: `proofs/<student fingerprint>/<key>.json`, one file an answer.

A key is everything an answer can depend on beside the student: this program's measurement, the libraries, the device,
the precision. So nothing is ever changed here, and an answer that no longer fits is simply not found.
"""

import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srt_assets.core.hashing import digest
from srt_assets.core.locks import file_lock, replace_text

if TYPE_CHECKING:
    from srt_assets.core.scoring.proof import Proof

FOLDER = "proofs"
# Those that compute: what is not installed counts too, for it may be tomorrow.
_LIBRARIES = ("torch", "transformers", "kernels", "flash-attn", "mamba-ssm", "causal-conv1d", "flash-linear-attention")


@dataclass(frozen=True)
class Place:
    """Where a student's proof is kept, and what it is of. `device` as torch names it, `dtype` likewise."""

    home: Path
    fingerprint: str
    device: str
    dtype: str

    @property
    def facts(self) -> dict[str, Any]:
        """The key in words. Loads torch."""
        from srt_assets.core.scoring import devices, proof

        return {
            "measurement": proof.VERSION,
            "device": devices.describe(self.device),
            "dtype": self.dtype,
            **{name: _version(name) for name in _LIBRARIES},
        }

    @property
    def file(self) -> Path:
        return folder(self.home, self.fingerprint) / f"{digest(**self.facts)[:16]}.json"

    def known(self) -> "Proof | None":
        """The proof as kept, None if there is none."""
        from srt_assets.core.scoring.model import Ways
        from srt_assets.core.scoring.proof import Proof

        found = _read(self.file)
        return Proof(**found["proof"] | {"ways": Ways(**found["proof"]["ways"])}) if found else None

    def keep(self, measure: "Callable[[], Proof]") -> "Proof":
        """The proof as kept, else measured now and kept; processes that ask at the same time measure once."""
        with file_lock(self.home / "locks" / f"{FOLDER}.{self.fingerprint[:16]}.lock"):
            proof = self.known()
            if proof is None:
                proof = measure()
                entry = {"of": self.facts, "proof": asdict(proof), "path": proof.path}
                self.file.parent.mkdir(parents=True, exist_ok=True)
                replace_text(self.file, json.dumps(entry, indent=1))
        return proof


def folder(home: Path, fingerprint: str) -> Path:
    return home / FOLDER / fingerprint[:16]


def told(home: Path, fingerprint: str) -> list[str]:
    """A line for each answer this student has: device, precision, and how it is scored there; the newest last."""
    files = sorted(folder(home, fingerprint).glob("*.json"), key=lambda path: path.stat().st_mtime)
    found = (entry for path in files if (entry := _read(path)))
    return list(dict.fromkeys(f"{e['of']['dtype']} on {e['of']['device']}: {e['path']}" for e in found))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # a damaged one is measured again
        return None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
