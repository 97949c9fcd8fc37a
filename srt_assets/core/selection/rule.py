"""The SQL of the rule, `decisions.sql`, over one student's rows. Running and storing it is in `decide.py`."""

from collections.abc import Mapping
from types import MappingProxyType

from srt_assets.core.lake import Lake
from srt_assets.core.sql import models
from srt_assets.core.tables import TABLES


def rule_sql(
    lake: Lake, student: str, policies: str, instead: Mapping[str, str] = MappingProxyType({}), active_only: bool = True
) -> str:
    """The rule's SQL over one student's scores. `policies`: a relation with the columns of the table `policies`.

    `instead`: relations to read instead of tables of the lake. Without `active_only` every policy counts as active, so
    that one pass over the scores decides for all policies.
    """
    if not active_only:
        policies = f"(SELECT * REPLACE (true AS active) FROM {policies})"

    def relation(name: str) -> str | None:
        if name == "policies":
            return policies
        if name in instead:
            return instead[name]
        if name not in TABLES:
            return None
        return lake.source(name, f"student={student}" if TABLES[name].partitioned and name != "candidates" else None)

    return models.written_out(models.RULE, relation)


def memory(lake: Lake) -> str:
    """DuckDB's memory limit for the rule; above it DuckDB spills. Without a limit it takes most of the machine's."""
    candidates = sum(manifest.rows for manifest in lake.manifests("candidates"))
    return f"{600 + 240 * (candidates // 4_000_000)}MB"
