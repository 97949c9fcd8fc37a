"""Devices, precision and tokens per forward pass for scoring. Loads torch."""

import os

import torch

from srt_assets.core.errors import UserError
from srt_assets.core.scoring import DTYPES

# Share of a GPU's memory that weights may take; the rest is for activations and the logits of a chunk.
_USABLE = 0.8


def resolve_devices(setting: str, weights_bytes: int) -> list[str]:
    """The setting as device names, one worker each. `auto`: every GPU, else the CPU.

    A model too large for one of the GPUs gets one worker over all of them: ["auto"], a `device_map`.
    Raises UserError for a device this machine does not have.
    """
    if setting != "auto":
        names = setting.split(",")
        for name in names:
            _check(name)
        return names
    if torch.cuda.is_available():
        names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        smallest = min(torch.cuda.get_device_properties(name).total_memory for name in names)
        return names if weights_bytes < _USABLE * smallest else ["auto"]
    if torch.backends.mps.is_available():
        return ["mps"]
    return ["cpu"]


def _check(name: str) -> None:
    kind, _, index = name.partition(":")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[kind]
    if not there or (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()):
        raise UserError(f"student.devices names {name}, which this machine does not have", 'set it to "auto" or "cpu"')


def resolve_dtype(setting: str, devices: str) -> torch.dtype:
    """The setting as a dtype, for devices as in the settings. `auto`: bf16 on GPUs that compute in it, else fp32."""
    if setting != "auto":
        return getattr(torch, DTYPES[setting])
    on_gpu = torch.cuda.is_available() and (devices == "auto" or devices.startswith("cuda"))
    return torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32


def default_token_budget(device: str) -> int:
    """Tokens per forward pass: few on a CPU, so that activations stay in its cache; many on a GPU, to keep it busy."""
    return 384 if device == "cpu" else 32768


def cores_per_worker(devices: list[str]) -> int:
    """Cores for each worker on the CPU, so that CPU workers do not compete for the same cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, devices.count("cpu")))


def describe(device: str) -> str:
    """The hardware of a device: a GPU's model, a CPU's instruction set. The results of arithmetic may depend on it."""
    if device.startswith(("cuda", "auto")):
        first = torch.cuda.get_device_name(0 if device == "auto" else device)
        return f"{torch.cuda.device_count()} x {first}" if device == "auto" else first
    return f"{device} ({torch.backends.cpu.get_cpu_capability()})" if device == "cpu" else device


def is_memory_shortage(error: BaseException) -> bool:
    """Whether torch ran out of memory: on a GPU by the error's type, on the CPU only by its text."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
