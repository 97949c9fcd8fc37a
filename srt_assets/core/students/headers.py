"""Reads the headers of safetensors files: tensors, types and shapes. The weights themselves are not read."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from srt_assets.core.errors import UserError
from srt_assets.core.files import opened
from srt_assets.core.students import unfit

# The limit of the safetensors library itself.
_LONGEST_HEADER = 100_000_000
# Bits per number, by the format's type names. For other types only the bytes are known.
_BITS = (
    {f"{kind}{bits}": bits for kind in "IU" for bits in (8, 16, 32, 64)}
    | {f"F{bits}": bits for bits in (4, 16, 32, 64)}
    | {"BOOL": 8, "BF16": 16, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
)


@dataclass(frozen=True)
class Held:
    """The contents of weight files: numbers, tensors, bytes, and the longest side of any tensor. `strange`: why they
    cannot be a student's weights, '' if they can; `remedy`: what to do about it.
    """

    numbers: int = 0
    tensors: int = 0
    n_bytes: int = 0
    longest: int = 0
    strange: str = ""
    remedy: str = ""


def held(paths: Iterable[Path]) -> Held:
    """The contents of these files. UserError names a file that is cut short or is no safetensors file."""
    each = []
    for path in paths:
        facts = path.stat()
        each.append(_held(path, facts.st_size, facts.st_mtime_ns, facts.st_ino))
    return Held(
        sum(one.numbers for one in each),
        sum(one.tensors for one in each),
        sum(one.n_bytes for one in each),
        max((one.longest for one in each), default=0),
        *next(((one.strange, one.remedy) for one in each if one.strange), ("", "")),
    )


# Cached, because many students are checked every few seconds and few have changed.
@lru_cache(maxsize=100_000)
def _held(path: Path, size: int, *_changes_with_the_file: int) -> Held:
    try:
        with opened(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if 8 + length > size or length > _LONGEST_HEADER:
                raise ValueError(length)
            header = json.loads(file.read(length))
        described = {name: t for name, t in header.items() if name != "__metadata__"}
        tensors = [_tensor(t) for t in described.values()]
        whole = size == 8 + length + max((end for _, _, end, _ in tensors), default=0)
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError):  # no header, or an invalid one
        whole = False
    if not whole:
        raise UserError(f"{path} is cut short or damaged", "copy the file again")
    strange, remedy = unfit.strange({name: (t["dtype"], tuple(t["shape"])) for name, t in described.items()})
    return Held(
        numbers=sum(numbers for numbers, _, _, _ in tensors),
        tensors=len(tensors),
        n_bytes=sum(end - start for _, start, end, _ in tensors),
        longest=max((longest for _, _, _, longest in tensors), default=0),
        strange=strange,
        remedy=remedy,
    )


def _tensor(facts: dict) -> tuple[int, int, int, int]:
    """Numbers, start, end, longest side. ValueError if the shape does not match the bytes from start to end."""
    shape, (start, end) = facts["shape"], facts["data_offsets"]
    if not all(type(n) is int and n >= 0 for n in (*shape, start, end)) or end < start:
        raise ValueError(facts)
    numbers, bits = math.prod(shape), _BITS.get(facts["dtype"])
    if bits is None:
        numbers = min(numbers, 8 * (end - start))
    elif (numbers * bits + 7) // 8 != end - start:
        raise ValueError(facts)
    return numbers, start, end, max(shape, default=1)
