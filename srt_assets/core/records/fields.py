"""Fields other than the texts: those that change what an answer means, and those that do not. Both are lists of names.

A field on neither list is unread: the record is kept, and the field is counted and named. The forms (`forms.py`) decide
which fields are instruction, input and response.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from srt_assets.core.records.result import Read, Reject, is_filled, named, type_of

_GOOD = {"true", "1", "yes", "good", "positive", "chosen", "correct", "accepted", "pass", "passed", "desirable"}
_BAD = {"false", "0", "no", "bad", "negative", "rejected", "incorrect", "wrong", "fail", "failed", "undesirable"}
# A tool column of text often holds an empty list, written as JSON.
_EMPTY_JSON = {"[]", "{}", "null", "none"}

Check = Callable[[str, Any], Reject | None]


def _if_filled(reason: str) -> Check:
    def check(name: str, value: Any) -> Reject | None:
        if not value or (isinstance(value, str) and value.strip().lower() in _EMPTY_JSON):
            return None
        return Reject(reason, named(name))

    return check


def _history(name: str, value: Any) -> Reject | None:
    """Earlier turns: pairs of texts, or messages. Any other value is rejected as `wrong_type`."""
    found = _if_filled("has_history")(name, value)
    if found and isinstance(value, list) and not all(isinstance(turn, dict) or _is_pair(turn) for turn in value):
        return Reject("wrong_type", f"{named(name)}: a turn is not a pair of texts")
    return found


def _is_pair(turn: Any) -> bool:
    return isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(text, str) for text in turn)


def _if_true(reason: str) -> Check:
    def check(name: str, value: Any) -> Reject | None:
        return Reject(reason, named(name)) if verdict(value) is True else None

    return check


def verdict(value: Any) -> bool | None:
    """Whether a label calls the answer good (True) or bad (False); None if its value is not known."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return True if value == 1 else False if value == 0 else None
    word = value.strip().lower().removesuffix(".0") if isinstance(value, str) else ""
    return True if word in _GOOD else False if word in _BAD else None


def label(name: str, value: Any) -> Reject | None:
    """A reject if a label calls the answer bad, or if its value is not known."""
    good = verdict(value)
    if good is None:
        shown = value if isinstance(value, str) else str(value) if isinstance(value, float) else type_of(value)
        return Reject("unknown_label", f"{named(name)}: {named(shown)}")
    return None if good else Reject("negative_label", named(name))


def _truth(name: str, value: Any) -> Reject | None:
    """As `label`, for a field that may also hold a score: a number is not a verdict."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return None
    return label(name, value)


def weight(name: str, value: Any) -> Reject | None:
    """A reject if the weight is 0 (the answer is not to be trained on), or any other value but 1."""
    good = verdict(value)
    if good is None:
        return Reject("weighted", named(name))
    return None if good else Reject("weight_zero", named(name))


def _rank(name: str, value: Any) -> Reject | None:
    rank = value.strip().removesuffix(".0") if isinstance(value, str) else value
    if rank in (0, "0") and rank is not False:
        return None
    is_number = isinstance(rank, int | float) or (isinstance(rank, str) and rank.isdigit())
    return Reject("rank_above_0" if is_number else "unknown_label", named(name))


def _channel(name: str, value: Any) -> Reject | None:
    return None if value == "final" else Reject("thoughts", f"{named(name)}: {named(value)}")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _each(names: str, check: Check) -> dict[str, Check]:
    return dict.fromkeys(names.split(), check)


_IN_BOTH: dict[str, Check] = {
    **_each("tools tool functions available_tools tool_definitions", _if_filled("tools")),
    **_each("tool_calls tool_call function_call function_calls tool_call_id", _if_filled("tool_calls")),
    **_each("images image image_url img audios audio videos video files attachments", _if_filled("multimodal")),
    **_each("reasoning_content thinking reasoning thought thoughts", _if_filled("thoughts")),
    **_each("weight loss_weight sample_weight train loss_mask", weight),
    **_each("label labels kto_tag", label),
    **_each("is_correct correctness is_good accepted", _truth),
    **_each("rank ranking", _rank),
    **_each("toxic is_toxic", _if_true("toxic")),
    **_each("deleted is_deleted", _if_true("deleted")),
    "refusal": _if_filled("refusal"),
}
SYSTEM = ("system", "system_prompt", "system_message", "sys_prompt")
HISTORY = ("history", "previous_turns", "chat_history", "dialogue_history", "conversation_history", "past_turns")
# By field of a row: the check that rejects the row if the field changes what the texts mean.
OF_ROW: dict[str, Check] = {
    **_each(" ".join(SYSTEM), _if_filled("system_prompt")),
    **_each(" ".join(HISTORY), _history),
    **_IN_BOTH,
    "chat_template_kwargs": _if_filled("template_kwargs"),
    "correctness_math_verify": _truth,
}
OF_MESSAGE: dict[str, Check] = {**_IN_BOTH, "channel": _channel}
# These fields describe an answer. In a message of the user they are ignored.
OF_ANSWER_ONLY = _words("weight loss_weight sample_weight train loss_mask rank ranking refusal")

# Known fields that do not change what the answer means.
HARMLESS = _words(
    """
    id idx index uid uuid guid key hash row_id sample_id example_id item_id record_id prompt_id question_id
    answer_id conversation_id conversation_hash message_id parent_id message_tree_id tree_state user_id turn_id
    turn_identifier source sources dataset dataset_name data_source subset split origin url link license licence
    author username lang language lang_code locale category categories topic topics task task_name task_type
    task_source task_category template_type template_name domain type kind skill difficulty tag tags title model
    model_name generator teacher created created_at created_date date timestamp updated_at turn turns num_turns
    n_turns n_tokens num_tokens token_count length is_classification metadata meta synthetic emojis
    detoxify openai_moderation detoxify_moderation redacted hashed_ip header country state score scores quality
    rating ratings score_chosen score_rejected helpfulness coherence complexity verbosity input_quality
    quality_explanation intent knowledge instruct_reward min_neighbor_distance repeat_count min_similar_uuid
    llama_guard_2 reward_model gen_input_configs gen_response_configs difficulty_generator parallel_tool_calls
    finish_reason finish_reasons is_reasoning_complete problem_type question_type name cache_control annotator
    review_count
    """
)


@lru_cache(maxsize=4096)
def plain(name: str) -> str:
    """The name of a field as the lists spell it: lower case, with underscores for blanks and hyphens."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def account(
    read: Read,
    name: str,
    value: Any,
    checks: dict[str, Check] = OF_ROW,
    place: str = "",
    off: frozenset[str] = frozenset(),
) -> Reject | None:
    """Decide about a field that no reader took: a reject, or a note in `read` that it is unread or unused.

    `off`: fields that the settings switch off.
    """
    if not is_filled(value):
        return None
    key = plain(name) if isinstance(name, str) else ""
    if (check := checks.get(key)) and name not in off:
        return check(place + name, value)
    known = read.unused if key in HARMLESS else read.unread
    known[named(place + str(name))] = type_of(value)
    return None
