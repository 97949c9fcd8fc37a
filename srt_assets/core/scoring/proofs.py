"""Stores proofs in the home: `proofs/<student fingerprint>/<key>.json`, one file per proof.

The key hashes everything else that a proof depends on: version of the test, libraries, device, precision. So files are
never changed, and after an upgrade an old proof is no longer found. The test itself is in `proof.py`.
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
# Libraries that compute. Missing ones count too, because they may be installed later.
_LIBRARIES = ("torch", "transformers", "kernels", "flash-attn", "mamba-ssm", "causal-conv1d", "flash-linear-attention")


@dataclass(frozen=True)
class Place:
    """Where a proof is stored, and what it depends on. `device` and `dtype` as torch names them."""

    home: Path
    fingerprint: str
    device: str
    dtype: str

    @property
    def facts(self) -> dict[str, Any]:
        """The facts that the key hashes. Loads torch."""
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
        """The stored proof; None if there is none."""
        from srt_assets.core.scoring.model import Ways
        from srt_assets.core.scoring.proof import Proof

        found = _read(self.file)
        return Proof(**found["proof"] | {"ways": Ways(**found["proof"]["ways"])}) if found else None

    def keep(self, measure: "Callable[[], Proof]") -> "Proof":
        """The stored proof, else a new one, which is stored. If several processes ask at once, only one measures."""
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
    """A line for each proof of this student: precision, device, and how it is scored there; the newest last."""
    files = sorted(folder(home, fingerprint).glob("*.json"), key=lambda path: path.stat().st_mtime)
    found = (entry for path in files if (entry := _read(path)))
    return list(dict.fromkeys(f"{e['of']['dtype']} on {e['of']['device']}: {e['path']}" for e in found))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # a damaged proof is measured again
        return None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
