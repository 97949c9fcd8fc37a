"""The model card of a finetuned student: its origin, training data, losses, and the licences it depends on."""

from typing import Any

from srt_assets.text import as_code, in_markdown

TEMPLATE = """---
library_name: transformers
license: other
tags: [srt-assets, instruction-tuning]
---
# {student}, finetuned on its own selection

Made by srt-assets with Selective Reflection-Tuning: a teacher rewrote the records, the student's own losses chose
which versions to keep (policy `{arm}`), and the student was trained on those.

| | |
|---|---|
| base | {base} (student `{student}`, fingerprint `{student_fingerprint:.16}`) |
| generation | {generation} (rounds of recycling behind this model); parent `{student}` |
| data | {n_train} training samples, data hash `{data_hash:.16}`; {left_out_n} left out{left_out_why} |
| datasets | {datasets} |
| versions of the records | {candidates} |
| policy | `{arm}`{switches} |
| prompt template | `{template}`; an answer ends with {answers_end_with}{prompted} |
| method | {method} |
| optimizer steps | {steps} of up to {batch_size} samples, {tokens} tokens |
| learning rate | {learning_rate}, cosine, warm-up share {warmup_ratio}, weight decay {weight_decay} |
| seed | {seed} |
| software | {software} |

## Evaluation

Mean loss per response token (nats) on {n_held_out} records that never entered training, with the weights as they are
stored ({saved_dtype}); after training, those of this directory:

| | before | after |
|---|---|---|
{evaluation}

## Licence

This model inherits the licence of its base model, of the instruction data, and the terms of the teacher whose replies
it was trained on. Read all three before you share it; this card grants nothing.

`training_record.json` holds every setting, version and count; `training_steps.jsonl` the loss curve.
"""

_TOLD_OTHERWISE = ("base", "answers_end_with", "left_out", "versions", "rows_by", "method")


def write(record: dict[str, Any]) -> str:
    """The card as Markdown, from the training record."""
    lines = [
        f"| {name} | {record[f'{key}_before']:.4f} | {record[f'{key}_after']:.4f} |"
        for key, name in (("eval_loss", "selected versions"), ("eval_original_loss", "original versions"))
        if f"{key}_after" in record
    ]
    left_out = record["left_out"]
    return TEMPLATE.format(
        **{k: v for k, v in record.items() if k not in _TOLD_OTHERWISE},
        base=as_code(record["base"]),
        answers_end_with=as_code(record["answers_end_with"]),
        method="all weights"
        if record["method"] == "full"
        else "LoRA of rank {rank}, alpha {alpha}".format(**record["lora"]),
        datasets=_counted(record["rows_by"]["dataset"]),
        candidates=_counted(record["rows_by"]["candidate"]),
        switches="".join(f", {k} = {v}" for k, v in record["policy"].items() if k != "policy" and v),
        left_out_n=sum(left_out.values()),
        left_out_why=f" ({', '.join(f'{n} {why}' for why, n in sorted(left_out.items()))})" if left_out else "",
        software=", ".join(f"{name} {number}" for name, number in record["versions"].items()),
        prompted=f"; {in_markdown(record['prompt_note'])}" if record.get("prompt_note") else "",
        evaluation="\n".join(lines) or "| no record was held out | | |",
    )


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{in_markdown(name)}: {n}" for name, n in counts.items())
