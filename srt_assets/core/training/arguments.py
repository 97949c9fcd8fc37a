"""Turns a job into the Trainer's arguments: recipe, precision, and whether weights are sharded over processes."""

import os
from typing import Any

import torch
from transformers import TrainingArguments

from srt_assets.core.errors import UserError
from srt_assets.core.training import memory
from srt_assets.core.training.job import Job


def arguments(job: Job, device: torch.device, dtype: str) -> TrainingArguments:
    job.states.mkdir(parents=True, exist_ok=True)
    args = TrainingArguments(
        output_dir=str(job.states),
        use_cpu=device.type == "cpu",
        ddp_backend="gloo" if device.type == "cpu" and "WORLD_SIZE" in os.environ else None,
        ddp_find_unused_parameters=False,
        num_train_epochs=1,  # one pass over the plan, which holds the steps of all epochs
        per_device_train_batch_size=1,
        learning_rate=job.learning_rate,
        lr_scheduler_type="cosine",
        weight_decay=job.weight_decay,
        max_grad_norm=1.0,
        bf16=dtype == "bf16",
        fp16=dtype == "fp16",
        **_sharding(job, device),
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # Keeper decides
        save_total_limit=2,
        disable_tqdm=True,
        report_to="none",
        log_level="error",
        seed=job.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    # If one process sees several GPUs, the Trainer would split our rows over them (DataParallel).
    args._n_gpu = min(args.n_gpu, 1)
    return args


def _sharding(job: Job, device: torch.device) -> dict[str, Any]:
    """FSDP arguments if weights, gradients and optimizer state do not fit one device; never for adapters."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or job.method == "lora" or job.sharding == "never":
        if job.sharding == "always":
            raise UserError(
                'training.sharding = "always" needs several processes and training.method = "full"',
                'set training.sharding = "auto", or training.processes to the number of GPUs',
            )
        return {}
    if job.sharding == "auto":
        state = memory.STATE_BYTES * job.n_parameters
        if device.type == "cpu" or state < memory.FILL * memory.available(device):
            return {}
    return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}
