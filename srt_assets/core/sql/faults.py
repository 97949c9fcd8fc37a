"""Errors in the files of `dbt_like_sql/`, for `srt status`, `srt doctor` and the UI. They stop no run.

A stage needs only the rule, `decisions.sql`, and checks it with `models.check_rule` before it computes anything.
"""

from srt_assets.core import stages
from srt_assets.core.errors import UserError, nearest
from srt_assets.core.sql import models
from srt_assets.core.sql.models import Model


def faults() -> list[UserError]:
    """One error for each file that cannot be used."""
    project = models.load()
    wrong_facts = [error for test in project.tests.values() if (error := wrong_fact(test))]
    wrong_names = [
        UserError(f"{model.path}: there is an asset named {model.name} already", "give the file another name")
        for model in project.views
        if model.name in names_of_assets()
    ]
    return [*project.unusable, *project.broken.values(), *wrong_facts, *wrong_names]


def usable_views() -> list[Model]:
    """The models that become assets: views whose names no stage has. Some may not compile."""
    return [model for model in models.load().views if model.name not in names_of_assets()]


def wrong_fact(test: Model) -> UserError | None:
    """The error that keeps a test from being a check of an asset; None if there is none."""
    known = names_of_assets() | {model.name for model in models.load().views}
    asset, severity = test.facts.get("asset"), test.facts.get("severity", "error")
    if asset is None:
        return UserError(
            f"{test.path}: the test names no asset", "add a line such as -- @asset: selected_set at the top"
        )
    if asset not in known:
        return UserError(f"{test.path}: @asset names {asset}, which does not exist", nearest(asset, known))
    if severity not in ("error", "warn"):
        return UserError(f"{test.path}: @severity is {severity!r}", "write warn, or leave the line out")
    return None


def names_of_assets() -> set[str]:
    """The names of assets that are not SQL models."""
    return {stage.asset for stage in stages.STAGES} | {"pipeline_status"}
