"""The asset `raw_dataset`: the records the settings name. The example of how an asset and its stage fit together."""

import dagster as dg

from srt_assets.core.records import raw
from srt_assets.defs import names
from srt_assets.defs.resources import LakeResource
from srt_assets.defs.run_stage import run_stage


@dg.asset(name=names.RAW_DATASET, group_name=names.GROUP_RAW, kinds={"parquet"}, code_version=raw.VERSION)
def raw_dataset(context: dg.AssetExecutionContext, lake: dg.ResourceParam[LakeResource]) -> dg.MaterializeResult:
    """Instruction-response pairs from the settings' files, with content ids; other rows are rejected with a reason."""
    store = lake.open()
    return run_stage(
        context,
        lambda progress: raw.run(lake.settings(), store, progress),
        lambda: raw.describe(store),
    )
