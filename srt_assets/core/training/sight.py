"""`srt sight`: the token ids of one record, for every pass and for the training sample, as plain data.

Uses the same code as scoring and training, but scores nothing. Loads the tokenizer, not the weights.
"""

import json
from typing import Any

from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.scoring import max_length
from srt_assets.core.scoring.encoding import Encoder, Pass, Texts
from srt_assets.core.students import checkpoints
from srt_assets.core.students.loading import load_tokenizer
from srt_assets.core.tables import CANDIDATES, PASSES, rows_as_dicts
from srt_assets.settings import Settings

# Shown if there is no record yet, so that the template can be checked before anything is paid.
EXAMPLE = Texts("Name three fruits that are red.", "", "Cherries, strawberries and raspberries.")


def sight(settings: Settings, lake: Lake, slug: str, sample_id: str | None = None) -> dict[str, Any]:
    """The chosen version of the record, or the original if none is chosen; without an id the first record.

    `passes` (by name) and `training` have `ids`, `tokens` and `start` (the first token that counts for the loss), or a
    `status` that says why there are none. `stops`: the ids on which generation stops, with their texts. UserError if
    there is no such student or record, or the chat template cannot be used.
    """
    info = checkpoints.get(lake, slug)
    record, texts = _texts(lake, slug, sample_id)
    tokenizer = load_tokenizer(info.path)
    chosen = settings.student
    longest = max_length(settings, info)
    encoder = Encoder(tokenizer, chosen.template, chosen.protocol, longest)
    window = min(settings.training.max_length, info.max_positions or settings.training.max_length)
    passes = encoder.encode([texts])[0]
    (sample,) = encoder.for_training([texts], window)
    stops = dict.fromkeys(i for i in (encoder.end[-1], tokenizer.eos_token_id) if i is not None)
    return {
        "student": slug,
        **record,
        "template": chosen.template,
        "protocol": chosen.protocol,
        "max_length": longest,
        "training_max_length": window,
        "passes": {name: _shown(tokenizer, passes[name]) for name in PASSES},
        "training": _shown(tokenizer, sample if isinstance(sample, str) or not sample.truncated else "too_long"),
        "n_end": len(encoder.end),
        "stops": {str(i): _text_of(tokenizer, i) for i in stops},
        "note": encoder.chat.turns.note if encoder.chat else "",
    }


def _shown(tokenizer, one: Pass | str) -> dict[str, Any]:
    if isinstance(one, str):
        return {"status": one}
    ids = one.ids.tolist()
    texts = [_text_of(tokenizer, i) for i in ids]
    return {"ids": ids, "tokens": texts, "start": one.start, "truncated": one.truncated}


def _text_of(tokenizer, id: int) -> str:
    """The token's text, or its name if it is only a part of a character."""
    text = tokenizer.decode([id])
    return str(tokenizer.convert_ids_to_tokens(id)) if not text or "\ufffd" in text else text


def _texts(lake: Lake, slug: str, sample_id: str | None) -> tuple[dict[str, Any], Texts]:
    with lake.connect() as con:
        rows = rows_as_dicts(
            con.execute(
                "SELECT c.sample_id, c.dataset, c.candidate, d.reason, d.kept, c.status, c.instruction, c.input, "
                "c.response FROM candidates c LEFT JOIN (FROM decisions WHERE student = $student) d USING (sample_id) "
                "WHERE starts_with(c.sample_id, $asked) AND c.candidate = coalesce(d.chosen, 'original') "
                "ORDER BY c.sample_id LIMIT 2",
                {"student": slug, "asked": (sample_id or "").encode(errors="replace").decode()},
            )
        )
    if sample_id is None and not rows:
        return {"sample_id": None, "dataset": None, "candidate": CANDIDATES[0], "kept": None, "reason": None}, EXAMPLE
    if not rows:
        raise UserError(
            f"no record has the sample_id {sample_id!r}", "look one up: srt sql 'SELECT sample_id FROM candidates'"
        )
    if sample_id is not None and len(rows) > 1:
        raise UserError(f"several records begin with {sample_id!r}", "give more of its digits")
    row = rows[0]
    if row["status"] != "ok":
        raise UserError(
            f"version {row['candidate']} of record {row['sample_id']} has no texts: {row['status']}",
            "look at another record",
        )
    facts = {name: row[name] for name in ("sample_id", "dataset", "candidate", "kept", "reason")}
    return facts, Texts(row["instruction"], row["input"], row["response"])


def as_json(found: dict[str, Any]) -> str:
    """All of it, as one JSON object."""
    return json.dumps(found, ensure_ascii=False, indent=1)
