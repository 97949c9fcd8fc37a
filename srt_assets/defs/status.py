"""The asset `pipeline_status`: the table of `srt status` in the UI. `srt run` makes it; no job or sensor does yet."""

import dagster as dg

from srt_assets.core.hashing import fingerprint
from srt_assets.defs import names
from srt_assets.defs.resources import LakeResource


@dg.asset(
    deps=[names.REFLECTED_RESPONSES, names.FINETUNED_CHECKPOINT],
    group_name=names.GROUP_STATUS,
    kinds={"markdown"},
    code_version="1",
)
def pipeline_status(context: dg.AssetExecutionContext, lake: dg.ResourceParam[LakeResource]) -> dg.MaterializeResult:
    """Every asset by student: fresh, changed (and why), missing or failed."""
    from srt_assets.core.status import standings
    from srt_assets.core.student.checkpoints import list_students

    store = lake.open()
    found = standings(lake.settings(), store, list_students(store))
    rows = ["| asset | student | state | why |", "|---|---|---|---|"]
    # Reasons may quote names of files and models: nothing in them is markup.
    rows += [
        f"| {s.asset} | {s.student or '-'} | {s.state} | `{s.why.replace('`', '').replace('|', '/')}` |" for s in found
    ]
    counts = {state: sum(s.state == state for s in found) for state in ("fresh", "changed", "missing", "failed")}
    version = fingerprint(standings=[[s.asset, s.student, s.state, s.why] for s in found])
    return dg.MaterializeResult(
        metadata={"status": dg.MetadataValue.md("\n".join(rows)), **counts}, data_version=dg.DataVersion(version)
    )
