"""The rows of Parquet and Arrow files and of Arrow tables, each as an object of JSON values.

Bytes become text if they are UTF-8, else NotText. Maps become objects. A struct of lists becomes a list of structs,
because the `datasets` library once stored lists of objects in this way. Decimals, times and dates become text. A text
that holds JSON stays text, unless its Arrow type is JSON. `forms/meaning.py` decides what a row means.
"""

import json
import os
from collections.abc import Callable, Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from srt_assets.core.errors import UserError
from srt_assets.core.records.files.strict_json import Decoder
from srt_assets.core.records.files.unreadable import NotText, Unreadable

# At most so many bytes of Arrow memory and so many rows are decoded at a time.
_TOGETHER, _MOST_ROWS = 1 << 25, 1024
# Rows that are decoded to estimate the size of a row; also the batch size for columns with a dictionary.
_FEW = 64
# The first bytes of every Parquet file.
START = b"PAR1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
_ANEW = "write the file again"

Convert = Callable[[Any], Any]


def parquet_rows(file: Path, source: BinaryIO) -> Iterator[Any]:
    """The rows of a Parquet file. UserError if the file is not Parquet, damaged or encrypted."""
    try:
        parquet = pq.ParquetFile(source, buffer_size=1 << 20)
        _check_names(file, parquet.schema_arrow)
        for group in range(parquet.num_row_groups):
            size = _batch_size(parquet, group)
            for batch in parquet.iter_batches(batch_size=size, row_groups=[group]):
                yield from rows_of(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # UnicodeDecodeError: a column name
        raise _damaged(file, "Parquet", error) from None


def _batch_size(parquet: pq.ParquetFile, group: int) -> int:
    """Rows to read at a time.

    The metadata counts a text only once that several rows share, so the first rows are decoded to see their real size.
    """
    facts = parquet.metadata.row_group(group)
    a_row = facts.total_byte_size // max(1, facts.num_rows)
    if facts.num_rows > _FEW:
        first = next(parquet.iter_batches(batch_size=_FEW, row_groups=[group]))
        a_row = max(a_row, first.nbytes // _FEW)
    return max(1, min(_MOST_ROWS, _TOGETHER // (a_row + 1)))


def arrow_rows(file: Path, source: BinaryIO) -> Iterator[Any]:
    """The rows of an Arrow file or stream. UserError if the file is not Arrow, or damaged."""
    try:
        starts_as_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if starts_as_file:
            whole = pa.ipc.open_file(source)
            batches: Any = (whole.get_batch(number) for number in range(whole.num_record_batches))
            _check_names(file, whole.schema)
        else:
            # pyarrow reads a stream that was cut between two batches without an error.
            source.seek(max(0, source.seek(0, os.SEEK_END) - len(_END_OF_STREAM)))
            if source.read() != _END_OF_STREAM:
                raise UserError(f"{file} is not in Arrow format, or is cut short: its end is missing", _ANEW)
            source.seek(0)
            batches = pa.ipc.open_stream(source)
            _check_names(file, batches.schema)
        for batch in batches:
            batch.validate(full=True)  # without this, pyarrow follows wrong offsets
            yield from rows_of(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(file, "Arrow", error) from None


def _damaged(file: Path, kind: str, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:  # an error of the disk
        return error
    return UserError(f"{file} is damaged, or not in {kind} format: {_first_line(error)}", _ANEW)


def rows_of(batch: pa.RecordBatch | pa.Table) -> Iterator[Any]:
    """The rows of a batch or table. A row with a value that Python cannot represent becomes Unreadable."""
    converts = {field.name: convert for field in batch.schema if (convert := _convert(field.type))}
    size = max(1, _TOGETHER * batch.num_rows // max(1, batch.nbytes))
    if any(_has_dictionary(field.type) for field in batch.schema):  # nbytes counts a shared text once
        size = min(size, _FEW)
    for start in range(0, batch.num_rows, size):
        for row in _pylist(batch.slice(start, size)):
            if isinstance(row, dict):
                for name, convert in converts.items():
                    if row[name] is not None:
                        row[name] = convert(row[name])
            yield row


def _pylist(batch: pa.RecordBatch | pa.Table) -> list[Any]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        if batch.num_rows > 1:
            return [row for at in range(batch.num_rows) for row in _pylist(batch.slice(at, 1))]
        return [_unreadable(batch, error)]


def _unreadable(row: pa.RecordBatch | pa.Table, error: Exception) -> Unreadable:
    """The marker for one row: the columns that can be read, and the names of those that cannot."""
    good, bad = {}, []
    for name in row.schema.names:
        try:
            good[name] = row.column(name).to_pylist()[0]
        except (ValueError, OverflowError, pa.ArrowException):
            bad.append(name)
    text = json.dumps(good, default=str)
    return Unreadable("bad_value", text, f"column {', '.join(map(repr, bad))}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check_names(file: Path, schema: pa.Schema) -> None:
    """UserError if two columns, or two fields of a struct, have the same name: Python would keep only the last."""
    types = [("", pa.struct(list(schema)))]
    while types:
        place, type_ = types.pop()
        if pa.types.is_struct(type_):
            names = [field.name for field in type_]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                within = f" within {place!r}" if place else ""
                raise UserError(f"{file}: two columns{within} are named {twice[0]!r}", "give each a name of its own")
        types += [(place or child.name, child.type) for child in _children(type_)]


def _children(type_: pa.DataType) -> list[pa.Field]:
    return [type_.field(n) for n in range(type_.num_fields)] if pa.types.is_nested(type_) else []


def _has_dictionary(type_: pa.DataType) -> bool:
    return pa.types.is_dictionary(type_) or any(_has_dictionary(child.type) for child in _children(type_))


def _convert(type_: pa.DataType) -> Convert | None:
    """The function that turns a value of this type into a JSON value; None if it is one already."""
    is_a = pa.types
    if isinstance(type_, pa.JsonType):
        return _parsed
    if isinstance(type_, pa.BaseExtensionType):
        return _convert(type_.storage_type)
    if is_a.is_dictionary(type_):
        return _convert(type_.value_type)
    if is_a.is_run_end_encoded(type_):
        return _convert(type_.value_type)
    if is_a.is_map(type_):
        key, item = _convert(type_.key_type), _convert(type_.item_type)
        return lambda pairs: _object([(_each(key, k), _each(item, v)) for k, v in pairs])
    if is_a.is_struct(type_):
        return _struct(type_)
    if is_a.is_nested(type_) and type_.num_fields == 1:  # lists of all kinds
        inner = _convert(type_.field(0).type)
        return (lambda items: [_each(inner, item) for item in items]) if inner else None
    if is_a.is_binary(type_) or is_a.is_large_binary(type_) or is_a.is_binary_view(type_):
        return _text
    if is_a.is_fixed_size_binary(type_):
        return _text
    if is_a.is_string(type_) or is_a.is_large_string(type_) or is_a.is_string_view(type_):
        return None
    if is_a.is_integer(type_) or is_a.is_floating(type_) or is_a.is_boolean(type_) or is_a.is_null(type_):
        return None
    return _written


def _struct(type_: pa.DataType) -> Convert | None:
    fields = _children(type_)
    converts = {field.name: convert for field in fields if (convert := _convert(field.type))}
    of_lists = bool(fields) and all(pa.types.is_list(f.type) or pa.types.is_large_list(f.type) for f in fields)

    def convert_fields(value: dict[str, Any]) -> Any:
        value = {name: _each(converts.get(name), inner) for name, inner in value.items()}
        if of_lists and None not in value.values() and len({len(inner) for inner in value.values()}) == 1:
            return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
        return value

    return convert_fields if converts or of_lists else None


def _each(convert: Convert | None, value: Any) -> Any:
    return convert(value) if convert and value is not None else value


def _object(pairs: list[tuple[Any, Any]]) -> Any:
    """An object for a map with text keys; a list of pairs for any other map."""
    found = {key: value for key, value in pairs if isinstance(key, str)}
    return found if len(found) == len(pairs) else [list(pair) for pair in pairs]


def _text(data: bytes) -> str | NotText:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return NotText(data)


def _parsed(text: Any) -> Any:
    try:
        value = Decoder().whole(text, "") if isinstance(text, str) else text
    except json.JSONDecodeError:
        return text
    return text if isinstance(value, Unreadable) else value


def _written(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime | date | time) else str(value)
