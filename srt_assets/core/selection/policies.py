"""Policies as data: what each policy compares, and the limits for its winner. `decisions.sql` implements them."""

from dataclasses import asdict, dataclass

from srt_assets.core.hashing import digest
from srt_assets.settings import POLICIES as NAMES
from srt_assets.settings import Selection


@dataclass(frozen=True)
class Policy:
    """A row of the rule's input. Comparisons: ifd (higher wins), r_ifd (lower), perplexity (lower, of the response
    given the prompt), longest (more response tokens), random (a coin by seed and sample), always, never.

    Limits are on logarithms of the ratios: 0.0 means "ratio below 1"; None means any.
    """

    compare_1: str
    compare_2: str
    response_reflected_only: bool
    log_ifd_below: float | None
    log_r_ifd_below: float | None


POLICIES: dict[str, Policy] = {
    # The authors' four-candidate tree.
    "selective": Policy("ifd", "r_ifd", True, 0.0, 0.0),
    # Version 1 of the method: always both rewrites, whatever their scores.
    "reflected_all": Policy("always", "always", False, None, None),
    # The same tree with one score in both comparisons, and a limit for that score only.
    "ifd_only": Policy("ifd", "ifd", True, 0.0, None),
    "r_ifd_only": Policy("r_ifd", "r_ifd", True, None, 0.0),
    # The paper's baselines include originals: the winner of every record is kept.
    "perplexity": Policy("perplexity", "perplexity", False, None, None),
    "random": Policy("random", "random", False, None, None),
    "longest": Policy("longest", "longest", False, None, None),
    "original": Policy("never", "never", False, None, None),
}
assert set(POLICIES) == set(NAMES)


def policy_rows(selection: Selection, seed: int, student: str) -> list[dict]:
    """Rows of the table `policies` for a student: every policy under the settings' switches, one of them active."""
    switches = _switches(selection)
    rows = []
    for name, policy in POLICIES.items():
        facts = asdict(policy) | switches | {"seed": seed if name == "random" else None}
        if selection.keep_unreflected:
            facts["response_reflected_only"] = False
        mark = digest(policy=name, **facts)
        active = name == selection.policy
        rows.append({"student": student, "policy": name, "active": active, "policy_fingerprint": mark, **facts})
    return rows


def _switches(selection: Selection) -> dict[str, bool | int | float | None]:
    # In TOML `top_k = 1` is a count and `top_k = 1.0` a share, so the type decides.
    is_share = isinstance(selection.top_k, float) and selection.top_k <= 1
    return {
        "filter_before_compare": selection.filter_before_compare,
        "top_k_count": int(selection.top_k) if selection.top_k and not is_share else None,
        "top_k_share": selection.top_k if selection.top_k and is_share else None,
        "top_k_per_dataset": selection.top_k_per_dataset,
    }
