"""Every table of the lake: names, types, meaning. Parts, views, UI column schemas and docs are made from these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from srt_assets.core.duck_paths import exactly

if TYPE_CHECKING:
    import duckdb

CANDIDATES = ("original", "reflected_instruction", "reflected_response", "reflected_both")
PASSES = ("response", "response_given_prompt", "instruction", "instruction_given_response")

_ARROW = {
    "VARCHAR": pa.string(),
    "BIGINT": pa.int64(),
    "INTEGER": pa.int32(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "TIMESTAMP": pa.timestamp("us"),
}


@dataclass(frozen=True)
class Column:
    """A column: DuckDB type (VARCHAR, BIGINT, INTEGER, DOUBLE, BOOLEAN, TIMESTAMP) and what it means, with its unit."""

    name: str
    type: str
    description: str


def sql_literal(text: str) -> str:
    """A text as a SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def rows_as_dicts(cursor: "duckdb.DuckDBPyConnection") -> list[dict[str, Any]]:
    """All rows of the last executed query, as dicts by column name."""
    names = [column[0] for column in cursor.description or []]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


@dataclass(frozen=True)
class Table:
    """A table of the lake. `volatile` columns (times, margins) are left out of the row-content hash. `row_group`: rows
    per row group, which are lost together when a part is damaged. `is_paid`: its rows cost money, so no clean-up
    removes a part that no manifest names. `places`: SQL, with {home}, for columns that hold paths in the home; it
    replaces the stored paths, which are those of the home when the part was written.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    partitioned: bool = False
    volatile: frozenset[str] = frozenset()
    row_group: int = 122_880
    is_paid: bool = False
    places: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        return pa.schema([(c.name, _ARROW[c.type]) for c in self.columns])

    def error_sql(self, message: str) -> str:
        """A typed SELECT that stands for an unreadable table and fails with this message when it is read."""
        error = f"error({sql_literal(message)})"
        # Also in each column: where a query uses a column only in a join, DuckDB may never evaluate the condition.
        columns = ", ".join(f'{error}::{c.type} AS "{c.name}"' for c in self.columns)
        return f"SELECT {columns} WHERE {error} IS NULL"

    def select_sql(self, paths: Sequence[Path | str], home: Path | None = None) -> str:
        """A typed SELECT over Parquet parts. Without parts it has no rows; a column that older parts lack is null.

        `home`: the present path of the home, for `places`; None leaves the stored paths.

        All reading of parts goes through here: hive partitioning is off, so that a folder named `model=mine` in the
        path does not become a column `model`.
        """
        values = {c.name: f'"{c.name}"' for c in self.columns}
        if home:
            values |= {c: f"({sql.replace('{home}', sql_literal(str(home)))})" for c, sql in self.places.items()}
        typed = ", ".join(f'{values[c.name]}::{c.type} AS "{c.name}"' for c in self.columns)
        empty = ", ".join(f'NULL::{c.type} AS "{c.name}"' for c in self.columns)
        if not paths:
            return f"SELECT {empty} WHERE false"
        files = ", ".join(sql_literal(exactly(p)) for p in paths)
        parts = f"SELECT * FROM read_parquet([{files}], union_by_name=true, hive_partitioning=false)"
        return f"SELECT {typed} FROM (SELECT {empty} WHERE false UNION ALL BY NAME {parts})"


def _columns(*rows: tuple[str, str, str]) -> tuple[Column, ...]:
    return tuple(Column(*row) for row in rows)


def _of_pass(name: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (f"sum_nll_{name}", "DOUBLE", "sum of the negative log-likelihoods of the scored tokens (nats)"),
        (f"n_tokens_{name}", "BIGINT", "tokens scored"),
        (f"truncated_{name}", "BOOLEAN", "the target was cut to fit max_length"),
        (f"status_{name}", "VARCHAR", "ok, or why there is no number"),
    )


_SAMPLE = ("sample_id", "VARCHAR", "content id of the record")
_STUDENT = ("student", "VARCHAR", "slug of the student")
_TEXTS = (
    ("instruction", "VARCHAR", "the instruction, exactly as read or as the teacher wrote it"),
    ("input", "VARCHAR", "the record's input, '' if none"),
    ("response", "VARCHAR", "the response"),
)

_SCORES = (
    _STUDENT,
    _SAMPLE,
    ("candidate", "VARCHAR", ", ".join(CANDIDATES)),
    *(column for name in PASSES for column in _of_pass(name)),
    ("content_key", "VARCHAR", "hash of the texts that were scored"),
    ("template", "VARCHAR", "prompt template"),
    ("protocol", "VARCHAR", "aligned or official"),
    ("first_token", "VARCHAR", "of a pass without context: scored after bos, or dropped in both passes"),
    ("max_length", "BIGINT", "longest sequence in tokens, context included"),
    ("dtype", "VARCHAR", "precision of the forward pass; the losses themselves are summed in float64"),
    ("scoring_version", "VARCHAR", "version of the scoring code"),
    ("student_fingerprint", "VARCHAR", "hash over config, tokenizer and weights"),
)

_VERDICT = (
    _STUDENT,
    _SAMPLE,
    ("dataset", "VARCHAR", "name of the dataset in the settings"),
    ("policy", "VARCHAR", "name of the policy"),
    ("branch", "VARCHAR", "what won: instruction+response, instruction, response or neither"),
    ("chosen", "VARCHAR", "the candidate that won, kept or not"),
    ("outcome", "VARCHAR", "kept, not_chosen or rejected"),
    ("kept", "BOOLEAN", "in the training set"),
    ("reason", "VARCHAR", "why it was kept, not chosen or rejected"),
    ("compared_1", "VARCHAR", "result of comparing the reflected instruction with the original"),
    ("margin_1", "DOUBLE", "by how much it was better (log ratio, nats per token or tokens); above 0 it wins"),
    ("compared_2", "VARCHAR", "result of comparing the reflected response with the one it would replace"),
    ("margin_2", "DOUBLE", "by how much it was better; above 0 it wins"),
    ("log_ifd", "DOUBLE", "log IFD of the chosen candidate"),
    ("log_r_ifd", "DOUBLE", "log r-IFD of the chosen candidate"),
    ("policy_fingerprint", "VARCHAR", "hash of the policy and its switches"),
)

_ALL = (
    Table(
        "raw_records",
        "Instruction-response pairs as read from the settings' files.",
        _columns(
            _SAMPLE,
            ("dataset", "VARCHAR", "name of the dataset in the settings"),
            *_TEXTS,
            ("source_file", "VARCHAR", "file the record was read from"),
            ("source_index", "BIGINT", "0-based place in its file"),
        ),
        key=("sample_id",),
        volatile=frozenset({"source_file"}),
    ),
    Table(
        "raw_rejects",
        "Input rows that are no usable pair, with the reason.",
        _columns(
            ("dataset", "VARCHAR", "name of the dataset in the settings"),
            ("source_file", "VARCHAR", "file the row was read from"),
            ("source_index", "BIGINT", "0-based place in its file"),
            ("reason", "VARCHAR", "why it was rejected: docs/data.md"),
            ("detail", "VARCHAR", "the field, role or two readings it is about; of a duplicate the first; null before"),
            ("raw", "VARCHAR", "the row as JSON, at most 2,000 characters of it"),
        ),
        # A row may hold several answers, each of which can be rejected.
        key=("source_file", "source_index", "dataset", "reason", "detail"),
        volatile=frozenset({"source_file", "detail"}),
    ),
    Table(
        "raw_alternatives",
        "Answers that somebody judged worse than the record's: they never compete, and nobody is trained on them.",
        _columns(
            ("sample_id", "VARCHAR", "record whose response was preferred"),
            ("source_file", "VARCHAR", "file the answer was read from"),
            ("source_index", "BIGINT", "0-based place in its file"),
            ("kind", "VARCHAR", "rejected, non_preferred, rank, completions or generations"),
            ("label", "VARCHAR", "who or what judged it: the field, with its value where there is one"),
            ("response", "VARCHAR", "the answer"),
        ),
        key=("sample_id", "source_file", "source_index", "response"),
        volatile=frozenset({"source_file"}),
    ),
    Table(
        "raw_fields",
        "Fields of rows that became records, other than those that were read: what is in them is in no table.",
        _columns(
            ("dataset", "VARCHAR", "name of the dataset in the settings"),
            ("field", "VARCHAR", "name of the field; messages[].x is the field x of messages"),
            (
                "becomes",
                "VARCHAR",
                "unread: nobody knows it; unused: known, and without a say in what the answer means",
            ),
            ("n_rows", "BIGINT", "records' rows in which it holds something"),
            ("type", "VARCHAR", "type of what the first of them holds"),
        ),
        key=("dataset", "field", "becomes"),
    ),
    Table(
        "teacher_calls",
        "Every reply of the teacher, paid once and kept; failed attempts too.",
        _columns(
            ("call_key", "VARCHAR", "content address of the request"),
            _SAMPLE,
            (
                "purpose",
                "VARCHAR",
                "reflect_instruction, reflect_response, …_of_reflected; …_correction for a second turn; ping",
            ),
            ("model", "VARCHAR", "teacher model"),
            ("prompt_version", "VARCHAR", "hash of the prompt texts"),
            ("model_id", "VARCHAR", "the model's identity in the key: its name, or the hash of the local file"),
            ("temperature", "DOUBLE", "as asked"),
            ("reply_format", "VARCHAR", "markers, json_schema or grammar"),
            ("parameters", "VARCHAR", "further parameters of the request as JSON; null if there were none"),
            ("source_key", "VARCHAR", "hash of the three texts shown to the teacher, and of its reply to be corrected"),
            ("status", "VARCHAR", "ok, or the kind of failure"),
            ("error_type", "VARCHAR", "class of the error"),
            ("error", "VARCHAR", "message of the error, or what is wrong with how the reply ended"),
            ("finish_reason", "VARCHAR", "why the reply ended: stop, length, content_filter or unknown"),
            (
                "native_finish_reason",
                "VARCHAR",
                "the provider's own word for it, '' if it gave none; null in rows of older programs",
            ),
            ("reply", "VARCHAR", "the raw reply"),
            ("thoughts", "VARCHAR", "the model's thoughts, if the provider gave them apart from the reply"),
            ("prompt_tokens", "BIGINT", "tokens sent"),
            ("cached_tokens", "BIGINT", "of these, read from the provider's cache"),
            ("completion_tokens", "BIGINT", "tokens received"),
            ("reasoning_tokens", "BIGINT", "of these, the model's thoughts"),
            (
                "cost_usd",
                "DOUBLE",
                "price of the call (USD); for a failed call its highest possible price; null if the price is unknown",
            ),
            ("latency_s", "DOUBLE", "seconds from request to reply, without queueing"),
            ("attempt", "INTEGER", "number of the attempt, from 1; 0 for a call during an outage of the teacher"),
            ("max_tokens", "BIGINT", "tokens the reply was allowed"),
            ("api_base", "VARCHAR", "endpoint that was asked; '' for the provider's own"),
            ("segment", "VARCHAR", "ledger segment the row was written to first"),
            ("created_at", "TIMESTAMP", "UTC"),
        ),
        key=("call_key", "attempt"),
        volatile=frozenset({"latency_s", "created_at", "segment"}),
        row_group=1000,
        is_paid=True,
    ),
    Table(
        "candidates",
        "Four versions of every record: as given, and the teacher's three rewrites.",
        _columns(
            _SAMPLE,
            ("dataset", "VARCHAR", "name of the dataset in the settings"),
            ("candidate", "VARCHAR", ", ".join(CANDIDATES)),
            *_TEXTS,
            ("status", "VARCHAR", "ok, or why there is no such version"),
            ("call_key", "VARCHAR", "teacher call it came from; null for the original"),
            ("content_key", "VARCHAR", "hash of its three texts"),
        ),
        key=("sample_id", "candidate"),
    ),
    Table(
        "students",
        "Registered students: where they come from and what they are.",
        _columns(
            _STUDENT,
            ("source", "VARCHAR", "what it was registered from"),
            ("revision", "VARCHAR", "revision of a hub model"),
            ("student_fingerprint", "VARCHAR", "hash over config, tokenizer and weights"),
            ("architecture", "VARCHAR", "model class"),
            ("n_parameters", "BIGINT", "parameters"),
            ("vocab_size", "BIGINT", "rows of the embedding"),
            ("parent", "VARCHAR", "student it was finetuned from, if this project made it"),
            ("generation", "INTEGER", "rounds of recycling behind it; 0 = as published"),
            ("retired_at", "TIMESTAMP", "UTC; since when runs leave it out; null if it is in use"),
        ),
        key=("student",),
        partitioned=True,
        # A student that was finetuned here lies under `checkpoints/` and moves with the home.
        places={
            "source": "CASE WHEN parent <> '' THEN {home} || '/checkpoints/' || "
            "list_last(string_split(source, '/checkpoints/')) ELSE source END"
        },
        # Retiring a student does not change its content.
        volatile=frozenset({"retired_at"}),
    ),
    Table(
        "student_scores",
        "The student's losses for every candidate: sums of the four passes. loss = sum_nll / n_tokens.",
        _columns(*_SCORES),
        key=("student", "sample_id", "candidate"),
        partitioned=True,
    ),
    Table(
        "settled_scores",
        "Scores in fp32 for records whose verdict low precision could change; they replace those in low precision.",
        _columns(*_SCORES),
        key=("student", "sample_id", "candidate"),
        partitioned=True,
    ),
    Table(
        "policies",
        "Every policy with the switches it was run with, and which one was active.",
        _columns(
            _STUDENT,
            ("policy", "VARCHAR", "name of the policy"),
            ("active", "BOOLEAN", "the policy the selected set was made with"),
            ("compare_1", "VARCHAR", "what lets the reflected instruction win: ifd, r_ifd, perplexity, longest …"),
            ("compare_2", "VARCHAR", "what lets the reflected response win"),
            ("response_reflected_only", "BOOLEAN", "a winner whose response is not reflected is not kept"),
            ("log_ifd_below", "DOUBLE", "a winner is kept if its log IFD is below this; null = any"),
            ("log_r_ifd_below", "DOUBLE", "a winner is kept if its log r-IFD is below this; null = any"),
            ("filter_before_compare", "BOOLEAN", "candidates that could not be kept do not compete"),
            ("top_k_count", "BIGINT", "keep so many with the highest IFD; null = all"),
            ("top_k_share", "DOUBLE", "keep this share of the rows kept before it; null = all"),
            ("top_k_per_dataset", "BOOLEAN", "count or share of each dataset, not overall"),
            ("seed", "BIGINT", "seed of the policy random"),
            ("policy_fingerprint", "VARCHAR", "hash of the policy and its switches"),
        ),
        key=("student", "policy"),
        partitioned=True,
    ),
    Table(
        "decisions",
        "One verdict per student and sample under the active policy.",
        _columns(*_VERDICT),
        key=("student", "sample_id"),
        partitioned=True,
    ),
    Table(
        "policy_decisions",
        "The verdict of every policy, side by side.",
        _columns(*_VERDICT),
        key=("student", "sample_id", "policy"),
        partitioned=True,
        # The training data of an arm depend only on these columns.
        volatile=frozenset(
            name for name, *_ in _VERDICT if name not in ("student", "sample_id", "policy", "chosen", "kept")
        ),
    ),
    Table(
        "selected_set",
        "What the student is trained on: the texts of the kept candidates.",
        _columns(
            _STUDENT,
            _SAMPLE,
            ("dataset", "VARCHAR", "name of the dataset in the settings"),
            ("candidate", "VARCHAR", "the version that was kept"),
            *_TEXTS,
            ("log_ifd", "DOUBLE", "its log IFD"),
            ("log_r_ifd", "DOUBLE", "its log r-IFD"),
            ("content_key", "VARCHAR", "hash of its three texts"),
            ("position", "BIGINT", "0-based place in the training order, which is that of the sample ids"),
        ),
        key=("student", "sample_id"),
        partitioned=True,
    ),
    Table(
        "training_runs",
        "Finetuning runs with their record.",
        _columns(
            _STUDENT,
            ("run", "VARCHAR", "name of the run's checkpoint directory"),
            ("arm", "VARCHAR", "policy whose rows it was trained on: the active one, or one of training.arms"),
            ("is_active_policy", "BOOLEAN", "this is the student's successor; the others are there to compare with"),
            (
                "training_fingerprint",
                "VARCHAR",
                "hash of everything the result depends on; trainings with equal hashes run once",
            ),
            ("student_fingerprint", "VARCHAR", "hash of the student it started from"),
            ("parent", "VARCHAR", "student it started from"),
            ("generation", "INTEGER", "rounds of recycling behind the result"),
            ("data_hash", "VARCHAR", "hash of the rows trained and measured on"),
            ("method", "VARCHAR", "full or lora"),
            ("n_train", "BIGINT", "training rows"),
            ("n_held_out", "BIGINT", "held-out rows, never trained on"),
            ("left_out", "BIGINT", "rows of either that are no sample, such as those longer than the window"),
            ("n_repeated", "BIGINT", "rows with the texts of a held-out row, not trained on"),
            ("steps", "BIGINT", "optimizer steps"),
            ("tokens", "BIGINT", "tokens trained on, prompts included"),
            ("eval_loss_before", "DOUBLE", "held-out loss before training (nats per response token)"),
            ("eval_loss_after", "DOUBLE", "held-out loss of the saved model, as loaded (nats per response token)"),
            ("eval_original_loss_before", "DOUBLE", "the same records as the dataset gave them, before training"),
            ("eval_original_loss_after", "DOUBLE", "the same records as the dataset gave them, after training"),
            ("saved_dtype", "VARCHAR", "precision of the saved weights, and of the model measured after training"),
            (
                "compared_on",
                "VARCHAR",
                "rows on which the saved model was compared with the trained one; null: not measured by the program "
                "that made it",
            ),
            ("trained_loss", "DOUBLE", "loss on these rows of the trained model, rounded to saved_dtype"),
            ("saved_loss", "DOUBLE", "loss on these rows of the model loaded from its directory"),
            ("saved_difference", "DOUBLE", "absolute difference of the two (nats per response token)"),
            (
                "merge_difference",
                "DOUBLE",
                "difference of the losses with adapters unmerged and merged, in fp32; null if none were merged",
            ),
            ("train_loss_first", "DOUBLE", "training loss of the first step (nats per response token)"),
            ("train_loss_final", "DOUBLE", "training loss of the last step (nats per response token)"),
            ("tokens_per_s", "DOUBLE", "tokens trained on a second"),
            ("peak_memory_bytes", "BIGINT", "peak memory of the training process"),
            ("seconds", "DOUBLE", "seconds of all steps"),
            ("device", "VARCHAR", "device it ran on"),
            ("dtype", "VARCHAR", "precision of the forward passes"),
            ("path", "VARCHAR", "checkpoint directory"),
            ("finished_at", "TIMESTAMP", "UTC"),
        ),
        key=("student", "run"),
        partitioned=True,
        # The comparison of the saved model does not change what was trained, and older programs did not compare.
        volatile=frozenset(
            {"tokens_per_s", "peak_memory_bytes", "seconds", "device", "finished_at", "path"}
            | {"saved_dtype", "compared_on", "trained_loss", "saved_loss", "saved_difference", "merge_difference"}
        ),
        places={"path": "{home} || '/checkpoints/' || student || '/' || run"},
    ),
    Table(
        "training_steps",
        "Loss curve of every finetuning run.",
        _columns(
            _STUDENT,
            ("run", "VARCHAR", "name of the run's checkpoint directory"),
            ("step", "BIGINT", "optimizer step, from 1"),
            ("loss", "DOUBLE", "mean loss over the step's response tokens (nats)"),
            ("learning_rate", "DOUBLE", "learning rate of the step"),
            ("grad_norm", "DOUBLE", "norm of the gradient before clipping"),
            ("tokens", "BIGINT", "tokens seen so far"),
            ("seconds", "DOUBLE", "seconds the step took"),
        ),
        key=("student", "run", "step"),
        partitioned=True,
        volatile=frozenset({"seconds"}),
    ),
)

TABLES: dict[str, Table] = {table.name: table for table in _ALL}
