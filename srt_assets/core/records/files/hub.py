"""Datasets of the Hugging Face hub: the commit at which a dataset is read, and its rows.

A dataset is read at the commit that was the newest at the first read, until the settings name another revision. So a
change on the hub does not change a home, and `srt status` needs no network.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from srt_assets.core.errors import UserError
from srt_assets.core.masking import redact
from srt_assets.core.records.files.find import kind_of
from srt_assets.settings import Dataset

_COMMIT = re.compile(r"[0-9a-f]{40}")
# Seconds to wait for the hub. `srt status` asks it too, until the dataset has been read once.
_PATIENCE = 10

log = logging.getLogger(__name__)


def facts(dataset: Dataset, known: Mapping[str, Any], asks: bool = True) -> Any:
    """What a hub set is made of. `known`: the facts of the datasets that the home was last made of, by name. `asks`:
    for the newest commit, where the home knows none.

    An older program stored only name and split. These are kept while config, revision and data_files are not set.
    """
    before = known.get(dataset.name, {}).get("hub")
    wanted = dataset.model_dump(include={"hf", "split", "config", "revision", "data_files"}, mode="json")
    if not (dataset.config or dataset.revision or dataset.data_files) and before == [dataset.hf, dataset.split]:
        return before
    if isinstance(before, Mapping) and {**before, "commit": ""} == {**wanted, "commit": ""}:
        return before
    return {**wanted, "commit": _commit(dataset.hf, dataset.revision) if asks else ""}


def commit_in(hub_facts: Any) -> str:
    """The commit that these facts name; '' if none is known."""
    return hub_facts.get("commit", "") if isinstance(hub_facts, Mapping) else ""


@cache
def _commit(name: str, revision: str) -> str:
    """The commit of a revision ('' is the newest), from the hub, else from its cache; '' if neither has it."""
    if _COMMIT.fullmatch(revision):
        return revision
    if Path(name).is_dir():
        return ""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return HfApi().dataset_info(name, revision=revision or None, timeout=_PATIENCE).sha or ""
    except (OSError, ValueError, httpx.HTTPError, OfflineModeIsEnabled) as error:
        why = redact(str(error).splitlines()[0] if str(error) else type(error).__name__)
    ref = Path(HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "refs" / (revision or "main")
    try:
        found = ref.read_text().strip()
    except (OSError, ValueError):
        found = ""
    if _COMMIT.fullmatch(found):
        return found
    log.warning("%s: its commit is not known (%s) and is not recorded in the home; set datasets.revision", name, why)
    return ""


def read_hub(dataset: Dataset, commit: str = "") -> Iterator[Any]:
    """The rows of a split of a hub dataset, at this commit if one is given. UserError if they cannot be loaded."""
    import datasets
    import httpx

    from srt_assets.core.records.files import arrow_rows

    what = f"dataset {dataset.name!r}: cannot load {dataset.hf!r}, split {dataset.split!r}"
    data_files = [*dataset.data_files] if isinstance(dataset.data_files, tuple) else dataset.data_files
    given = {"name": dataset.config, "revision": commit or dataset.revision, "data_files": data_files}
    try:
        rows = datasets.load_dataset(dataset.hf, split=dataset.split, **{k: v for k, v in given.items() if v})
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise UserError(f"{what}: {redact(str(error))}", _remedy(dataset)) from None
        raise UserError(
            f"{what}: it is a loading script, which the datasets library no longer runs",
            "set datasets.revision = 'refs/convert/parquet', where the hub stores most such datasets as Parquet; "
            "or download its files and set datasets.path",
        ) from None
    except (OSError, ValueError, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{what}: {redact(str(error))}", _remedy(dataset)) from None
    if not isinstance(rows, datasets.Dataset):
        yield from rows
        return
    if commit and (other := _cached_commit(rows)) not in ("", commit):
        # Without a network the library loads the newest commit in its cache.
        raise UserError(
            f"{what}: only commit {other[:12]} is on this machine, not {commit[:12]}",
            f"go online, or set datasets.revision = '{other}'",
        )
    # As Arrow tables: images and audio are not decoded, and columns are read as in files.
    for table in rows.with_format("arrow").iter(batch_size=1000):
        yield from arrow_rows.rows_of(table)


def _cached_commit(rows: Any) -> str:
    """The commit of a dataset's cached files, if their paths name exactly one; else ''."""
    places = {part for file in rows.cache_files for part in Path(file["filename"]).parts if _COMMIT.fullmatch(part)}
    return places.pop() if len(places) == 1 else ""


def _remedy(dataset: Dataset) -> str:
    if kind_of(Path(dataset.hf))[0] or dataset.hf.startswith(("/", ".", "~")) or dataset.hf.count("/") > 1:
        return f"{dataset.hf!r} looks like a file: then it is path = {dataset.hf!r}"
    return "check the name, the config, the split and the network; or download it and set datasets.path"
