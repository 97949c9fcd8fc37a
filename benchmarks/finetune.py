"""Our packed training against the stock padded Trainer: same records, same batches, same number of steps, one run.

    python benchmarks/finetune.py --student DIRECTORY [--data alpaca.json] [--records 32] [--steps 2]

Both train the same checkpoint, each in a process of its own (peak memory is a process's), on token ids made once by our
encoder. The stock side is `transformers.Trainer` with `DataCollatorForSeq2Seq` as in a usual finetuning script: batches
in the given order, padded to the longest, gradient accumulation to the same global batch. Prints tokens (prompt and
response, no padding) a second of both, their ratio, peak memory, the largest difference between the loss curves, and
how much of the device's measured matrix-multiplication speed each used (6 operations a parameter and token).
Without --data the lengths are drawn like those of Alpaca's records with answers rewritten by a teacher.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MICRO_BATCH = 8  # samples a forward pass of the stock side, its default


def synthetic(n: int) -> list[dict[str, str]]:
    """Records whose word counts are log-normal: instructions around 15 words, responses around 60 with a long tail."""
    draw = random.Random(0)
    words = "the of model data answer to question in a list write explain code why number and city".split()  # noqa: SIM905

    def text(median: float, spread: float, most: int) -> str:
        return " ".join(draw.choices(words, k=min(most, max(2, round(draw.lognormvariate(0, spread) * median)))))

    return [{"instruction": text(15, 0.5, 120), "input": "", "output": text(60, 1.0, 400)} for _ in range(n)]


def prepare(options: argparse.Namespace, work: Path) -> Path:
    """Token ids of every record and the samples of every step, as a file that both sides read."""
    from srt_assets.core.scoring.encoding import Encoder, Pass, Texts
    from srt_assets.core.students.loading import load_tokenizer
    from srt_assets.core.training.plan import step_samples

    rows = json.loads(Path(options.data).read_text())[: options.records] if options.data else synthetic(options.records)
    encoder = Encoder(load_tokenizer(options.student), "vicuna", "aligned", options.max_length)
    texts = [Texts(r["instruction"], r.get("input", ""), r["output"]) for r in rows]
    passes = [p for p in encoder.for_training(texts, options.max_length) if isinstance(p, Pass) and not p.truncated]
    samples = [{"ids": p.ids.tolist(), "start": p.start} for p in passes]
    plan = [step.tolist() for step in step_samples(len(samples), options.batch_size, options.steps, 0)]
    path = work / "samples.json"
    path.write_text(json.dumps({**vars(options), "samples": samples, "plan": plan}))
    return path


def ours(given: dict, work: Path) -> tuple[float, list[float]]:
    """Our trainer's steps."""
    import numpy as np
    from transformers import set_seed

    from srt_assets.core.training.packed import Example
    from srt_assets.core.training.prepare import CPU_BUDGET, GPU_BUDGET
    from srt_assets.core.training.trainer import PackedTrainer, Steps

    set_seed(0)
    model, args = load(given, work, 1, 1)
    examples = [Example(str(i), np.asarray(s["ids"], np.int32), s["start"]) for i, s in enumerate(given["samples"])]
    budget = given["token_budget"] or (CPU_BUDGET if args.device.type == "cpu" else GPU_BUDGET)
    steps = Steps(examples, [np.asarray(p) for p in given["plan"]], budget)
    return train(PackedTrainer(model=model, args=args, train_dataset=steps))


def stock(given: dict, work: Path) -> tuple[float, list[float]]:
    """The stock trainer's steps."""
    from torch.utils.data import SequentialSampler
    from transformers import DataCollatorForSeq2Seq, Trainer, set_seed

    from srt_assets.core.students.loading import load_tokenizer

    class InOrder(Trainer):
        def _get_train_sampler(self, train_dataset=None):
            return SequentialSampler(self.train_dataset)

    set_seed(0)
    tokenizer = load_tokenizer(given["student"])
    micro = min(MICRO_BATCH, given["batch_size"])
    model, args = load(given, work, micro, given["batch_size"] // micro)
    ordered = [given["samples"][i] for step in given["plan"] for i in step]
    rows = [
        {
            "input_ids": s["ids"],
            "labels": [-100] * s["start"] + s["ids"][s["start"] :],
            "attention_mask": [1] * len(s["ids"]),
        }
        for s in ordered
    ]
    collator = DataCollatorForSeq2Seq(tokenizer, padding="longest")
    return train(InOrder(model=model, args=args, train_dataset=rows, data_collator=collator))


def load(given: dict, work: Path, micro: int, accumulate: int):
    """The model in fp32 weights, and arguments that differ in nothing but the shape of a batch."""
    import torch
    from transformers import AutoModelForCausalLM, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(given["student"], dtype=torch.float32)
    model.config.use_cache = False
    args = TrainingArguments(
        output_dir=str(work / "state"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulate,
        num_train_epochs=1,
        learning_rate=2e-5,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    return model, args


def train(trainer) -> tuple[float, list[float]]:
    """Seconds of the steps alone, and their losses."""
    began = time.perf_counter()
    trainer.train()
    return time.perf_counter() - began, [line["loss"] for line in trainer.state.log_history if "loss" in line]


def matmul_speed() -> float:
    """Operations a second of a large matrix product, in the precision the trainers compute in."""
    import torch

    cuda = torch.cuda.is_available()
    kind = torch.bfloat16 if cuda and torch.cuda.is_bf16_supported() else torch.float32
    n = 8192 if cuda else 1536
    a = torch.randn(n, n, dtype=kind, device="cuda" if cuda else "cpu")
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def one_side(side: str, file: Path) -> None:
    """In a process of its own: train, and print seconds, losses and peak memory as the last line."""
    import torch

    given = json.loads(file.read_text())
    from srt_assets.core.students.checkpoint_files import inspect
    from srt_assets.core.training.memory import peak_bytes

    seconds, losses = {"ours": ours, "stock": stock}[side](given, file.parent)
    peak = peak_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    operations = 6 * inspect(Path(given["student"])).n_parameters
    facts = {"seconds": seconds, "losses": losses, "peak": peak, "operations": operations, "matmul": matmul_speed()}
    print("\n" + json.dumps(facts))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", required=True, help="checkpoint directory")
    parser.add_argument("--data", default="", help="Alpaca JSON; default: synthetic records")
    parser.add_argument("--records", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--token-budget", type=int, default=0, help="of ours; 0 = as in a real training")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = prepare(options, Path(folder))
        given = json.loads(file.read_text())
        sizes = [len(given["samples"][i]["ids"]) for step in given["plan"] for i in step]
        tokens = sum(sizes)
        print(f"{len(sizes)} samples in {options.steps} steps, {tokens} tokens, {min(sizes)} to {max(sizes)} a sample")
        found = {}
        for side in ("stock", "ours"):
            command = [sys.executable, __file__, "--side", side, str(file)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=HERE.parent)
            found[side] = json.loads(done.stdout.strip().splitlines()[-1])
            speed = tokens / found[side]["seconds"]
            peak = found[side]["peak"] / 1e9
            used = speed * found[side]["operations"] / found[side]["matmul"]
            print(
                f"{side:5}  {speed:8.1f} tokens/s  {found[side]['seconds']:7.1f} s  peak {peak:.2f} GB  "
                f"{used:.0%} of {found[side]['matmul'] / 1e12:.2f} Tflop/s"
            )
        apart = max(abs(a - b) for a, b in zip(found["ours"]["losses"], found["stock"]["losses"], strict=True))
        ratio = found["stock"]["seconds"] / found["ours"]["seconds"]
        print(f"ratio {ratio:.2f}; losses differ by at most {apart:.2e}")
        print("losses " + " ".join(f"{loss:.4f}" for loss in found["ours"]["losses"]))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    if sys.argv[1:2] == ["--side"]:
        one_side(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(main())
