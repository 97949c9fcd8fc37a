"""Writes `how-it-works.md` from `how-it-works.json`, and the JSON from a finished home.

    python docs/how_it_works.py HOME SAMPLE_ID [STUDENT]     # read one record from a home; write both files
    python docs/how_it_works.py                              # write the page again from the JSON

The ratios on the page are computed here from the losses in the JSON, in the same way as in the program.
"""

import json
import sys
from math import exp
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FACTS, PAGE = HERE / "how-it-works.json", HERE / "how-it-works.md"
CANDIDATES = ("original", "reflected_instruction", "reflected_response", "reflected_both")
PASSES = ("response", "response_given_prompt", "instruction", "instruction_given_response")


def read(home: Path, sample_id: str, student: str) -> dict[str, Any]:
    """The facts of one record in a home."""
    from srt_assets.core.lake import Lake
    from srt_assets.core.students import checkpoints
    from srt_assets.core.students.loading import load_tokenizer
    from srt_assets.core.tables import rows_as_dicts
    from srt_assets.core.training.sight import sight
    from srt_assets.settings import load_settings

    settings = load_settings(home / "srt.toml")
    lake = Lake(settings.home)
    with lake.connect() as con:

        def rows(sql: str) -> list[dict[str, Any]]:
            return rows_as_dicts(
                con.execute(sql, {"id": sample_id, "student": student} if "$student" in sql else {"id": sample_id})
            )

        [raw] = rows("SELECT sample_id, dataset, instruction, input, response FROM raw_records WHERE sample_id = $id")
        calls = rows(
            "SELECT purpose, prompt_tokens, completion_tokens, finish_reason, reply FROM teacher_calls "
            "WHERE sample_id = $id AND status = 'ok' ORDER BY created_at"
        )
        candidates = rows(
            "SELECT candidate, status, instruction, input, response FROM candidates WHERE sample_id = $id"
        )
        sums = ", ".join(f"sum_nll_{p}, n_tokens_{p}" for p in PASSES)
        scores = rows(
            f"SELECT candidate, {sums}, template, protocol, dtype, max_length FROM student_scores "
            "WHERE sample_id = $id AND student = $student"
        )
        [decision] = rows(
            "SELECT policy, chosen, outcome, reason, compared_1, margin_1, compared_2, margin_2 FROM decisions "
            "WHERE sample_id = $id AND student = $student"
        )
        [training] = rows(
            "SELECT n_train, n_held_out, steps, eval_loss_before, eval_loss_after FROM training_runs "
            "WHERE is_active_policy AND student = $student AND $id <> ''"
        )
    seen = sight(settings, lake, student, sample_id)
    ids, start = seen["training"]["ids"], seen["training"]["start"]
    tokenizer = load_tokenizer(checkpoints.get(lake, student).path)
    sample = {"tokens": len(ids), "start": start}
    sample |= {"given": tokenizer.decode(ids[:start]), "learnt": tokenizer.decode(ids[start:])}
    return {
        "student": student,
        "teacher": settings.teacher.model,
        "raw": raw,
        "calls": calls,
        "candidates": {row.pop("candidate"): row for row in candidates},
        "scores": {row.pop("candidate"): row for row in scores},
        "decision": decision,
        "training": training | {"sample": sample},
    }


def loss(facts: dict[str, Any], candidate: str, name: str) -> float:
    """Nats per token."""
    score = facts["scores"][candidate]
    return score[f"sum_nll_{name}"] / score[f"n_tokens_{name}"]


def log_ifd(facts: dict[str, Any], candidate: str) -> float:
    """Equation 3 of the paper, as a logarithm."""
    return loss(facts, candidate, "response_given_prompt") - loss(facts, candidate, "response")


def log_r_ifd(facts: dict[str, Any], candidate: str) -> float:
    """Equation 8 of the paper, as a logarithm."""
    return loss(facts, candidate, "instruction_given_response") - loss(facts, candidate, "instruction")


def render(facts: dict[str, Any]) -> str:
    """The page."""
    raw, decision, training = facts["raw"], facts["decision"], facts["training"]
    sample = training["sample"]
    one = facts["scores"]["original"]
    calls = [
        f"| `{c['purpose']}` | {c['prompt_tokens']} | {c['completion_tokens']} | `{c['finish_reason']}` |"
        for c in facts["calls"]
    ]
    first, second = _comparison(facts, 1), _comparison(facts, 2)
    return f"""# How it works

The method on one page: what happens to one record, step by step, which file does it, and the numbers. The record is
from the demo's data, the teacher is the demo's local one and the student `{facts["student"]}`, SmolLM2 with 135 million
parameters. Both models are small: the numbers show how the method works, not how good it is.
`docs/how_it_works.py` made this page from a finished home; a test keeps it in step with the code.

## 1. A row becomes a record: `raw_dataset`

{at("records/forms/meaning.py")} reads a row into an instruction, an input
(here {"not empty" if raw["input"] else "empty"}) and a response. Its id is a hash of these texts
({at("hashing.py")}): `{raw["sample_id"]}`.

{_texts(raw)}

## 2. The teacher reflects on the instruction: `reflected_instructions`

{at("teacher/prompts.py")} asks the teacher what is wrong with the instruction,
and for a better one with an answer of its own.
{at("teacher/parse.py")} reads the reply. Every reply is on disk, in `teacher_calls`, before it is read.
If all is well, the candidate `reflected_instruction` has status `ok`:

{_texts(facts["candidates"]["reflected_instruction"])}

## 3. The teacher reflects on the responses: `reflected_responses`

The teacher improves the response, once for the record as it was (`reflected_response`) and once for the reflected
instruction (`reflected_both`). So a record has up to four versions, the rows of `candidates`. The other two:

{_texts(facts["candidates"]["reflected_response"])}

{_texts(facts["candidates"]["reflected_both"])}

The calls that were answered:

| purpose | prompt tokens | tokens of the reply | ended with |
|---|---|---|---|
{chr(10).join(calls)}

## 4. The student scores every version: `student_scores`

{at("scoring/encoding.py")} makes four token sequences of each version, {at("scoring/scorer.py")} sums the negative
log-likelihoods (nats) that the student gives to the tokens in question. A loss is the sum by the number of tokens.
Template `{one["template"]}`, protocol `{one["protocol"]}`, {one["dtype"]}; `x` is the
instruction with its input, `y` the response.

| version | L(y) | L(y given x) | L(x) | L(x given y) |
|---|---|---|---|---|
{chr(10).join(_losses(facts, c) for c in CANDIDATES)}

Two ratios follow, in SQL ([`candidate_scores.sql`](../dbt_like_sql/models/staging/candidate_scores.sql)):

- **IFD** = exp(L(y given x) − L(y)), equation 3 of the paper. Below 1, the instruction makes the response easier to
  predict. The closer to 1, the less it helps: the response is *harder* to follow from it.
- **r-IFD** = exp(L(x given y) − L(x)), equation 8. The lower, the better the response lets the instruction be guessed.

| version | IFD | r-IFD |
|---|---|---|
{chr(10).join(f"| `{c}` | {exp(log_ifd(facts, c)):.4f} | {exp(log_r_ifd(facts, c)):.4f} |" for c in CANDIDATES)}

## 5. The student picks: `selected_set`

Two comparisons ([`decisions.sql`](../dbt_like_sql/models/marts/decisions.sql)), both strict: a version
that is only as good loses.

1. **Which instruction?** The reflected one wins if its IFD is higher: the student has more to learn from it.
   {first}
2. **Which response to it?** The reflected one wins if its r-IFD is lower: it fits the instruction better.
   {second}

The record's version is `{decision["chosen"]}`; its outcome is **{decision["outcome"]}**{_reason(decision)}.
A version is kept only if its IFD is below 1 and the response was rewritten. `srt explain {raw["sample_id"][:6]}`
tells all this for any record.

## 6. The student is finetuned on its picks: `finetuned_checkpoint`

{at("training/rows.py")} takes the kept versions: {training["n_train"]} to train on,
{training["n_held_out"]} held out. The same encoder makes the training sample, here of
{sample["tokens"]} tokens. The loss counts from token {sample["start"]} on, the response and what ends it:

```text
{sample["given"]}
```

is given, and

```text
{sample["learnt"]}
```

is learnt. After {training["steps"]} steps ({at("training/train.py")}) the loss on the held-out records
went from {training["eval_loss_before"]:.4f} to {training["eval_loss_after"]:.4f} nats per token.
The checkpoint can be registered as the next student, and the teacher's replies serve it too.
"""


def _reason(decision: dict[str, Any]) -> str:
    return "" if decision["reason"] == decision["outcome"] else f" (`{decision['reason']}`)"


def at(path: str) -> str:
    """A link to a file of the method."""
    return f"[`{path}`](../srt_assets/core/{path})"


def _texts(texts: dict[str, Any]) -> str:
    lines = [
        f"**{name}** {' '.join(texts[name].split())}" for name in ("instruction", "input", "response") if texts[name]
    ]
    return "\n>\n".join(f"> {line}" for line in lines)


def _losses(facts: dict[str, Any], candidate: str) -> str:
    score = facts["scores"][candidate]
    cells = [
        f"{score[f'sum_nll_{p}']:.3f} / {score[f'n_tokens_{p}']} = {loss(facts, candidate, p):.4f}" for p in PASSES
    ]
    return f"| `{candidate}` | {' | '.join(cells)} |"


def _comparison(facts: dict[str, Any], number: int) -> str:
    decision = facts["decision"]
    margin = decision[f"margin_{number}"]
    if margin is None:
        return f"Here: {decision[f'compared_{number}']}."
    return f"Here it {'wins' if margin > 0 else 'loses'}: the difference of the logarithms is {margin:+.4f}."


def margins(facts: dict[str, Any]) -> tuple[float, float]:
    """Both margins, from the losses: what `decisions.sql` must have found."""
    first = log_ifd(facts, "reflected_instruction") - log_ifd(facts, "original")
    old, new = ("reflected_instruction", "reflected_both") if first > 0 else ("original", "reflected_response")
    return first, log_r_ifd(facts, old) - log_r_ifd(facts, new)


def main() -> None:
    """Write the page."""
    if len(sys.argv) > 2:
        facts = read(Path(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "smollm2")
        FACTS.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(render(json.loads(FACTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
