"""Fields other than the texts: those that change what an answer means, and those that do not. Both are lists of names.

A field on neither list is unread: the record is kept, and the field is counted and named. The forms (`table.py`) decide
which fields are instruction, input and response.
"""

import re
from functools import lru_cache
from typing import Any

from srt_assets.core.records.files.json_types import type_of
from srt_assets.core.records.forms import checks
from srt_assets.core.records.forms.result import Read, Reject, is_filled, named


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _each(names: str, check: checks.Check) -> dict[str, checks.Check]:
    return dict.fromkeys(names.split(), check)


_LABELS: dict[str, checks.Check] = {
    **_each(
        "label labels kto_tag is_correct is_good is_valid is_verified is_chosen is_accepted accepted is_safe",
        checks.label,
    ),
    **_each("correctness correctness_math_verify correctness_llama", checks.truth),
    **_each(
        "is_rejected is_bad is_wrong is_incorrect incorrect is_harmful harmful is_unsafe unsafe is_flagged flagged "
        "is_hallucination hallucination hallucinated",
        checks.if_true("negative_label"),
    ),
    # These names also stand for other things than a verdict.
    **_each(
        "correct answer_correct verified valid passed pass success successful safe preferred thumbs_up", checks.mark
    ),
    **_each("verdict judgement judgment verification verification_result math_verify review_result", checks.word),
    **_each("status feedback quality desirable", checks.word),
}
# Checks of fields that may hold no verdict. A field whose value is not a verdict counts as unread.
_MAYBE = frozenset({checks.mark, checks.word, checks.loss})
# What `columns = { label = "" }` leaves out.
LABELS = tuple(_LABELS)
_IN_BOTH: dict[str, checks.Check] = {
    **_each(
        "tools tool functions available_tools available_functions tool_definitions function_definitions tool_list "
        "tools_json function_list api_list apis",
        checks.if_filled("tools"),
    ),
    **_each(
        "tool_calls tool_call function_call function_calls tool_call_id tool_results", checks.if_filled("tool_calls")
    ),
    **_each(
        "images image image_url image_urls image_path image_paths image_file image_files img img_path img_url "
        "pixel_values screenshot screenshots audios audio audio_url audio_path audio_file videos video video_url "
        "video_path video_file files attachments media",
        checks.if_filled("multimodal"),
    ),
    **_each(
        "reasoning_content thinking reasoning thought thoughts cot complex_cot chain_of_thought reasoning_trace "
        "thinking_trajectory thinking_trajectories",
        checks.if_filled("thoughts"),
    ),
    **_each("weight weights loss_weight loss_scale sample_weight train training trainable loss_mask", checks.weight),
    **_each("train_on_turn", checks.weight),
    "loss": checks.loss,
    **_LABELS,
    **_each("rank ranks ranking", checks.rank),
    **_each("toxic is_toxic", checks.if_true("toxic")),
    **_each("deleted is_deleted", checks.if_true("deleted")),
    "tree_state": checks.tree_state,
    **_each("turn turns num_turns n_turns", checks.turns),
    "refusal": checks.if_filled("refusal"),
}
SYSTEM = (
    *("system", "system_prompt", "system_message", "sys_prompt", "sys", "system_instruction", "system_instructions"),
    *("system_text", "system_content", "developer_prompt", "developer_message", "pre_prompt"),
)
HISTORY = (
    *("history", "previous_turns", "chat_history", "dialogue_history", "conversation_history", "past_turns"),
    *("message_history", "previous_messages", "past_messages", "prior_turns", "dialogue", "dialog"),
    *("dialogue_context", "conversation_context", "conversation_so_far"),
)
# Checks by the name of a field of a row: with these fields filled, the texts alone are not the record.
OF_ROW: dict[str, checks.Check] = {
    **_each(" ".join(SYSTEM), checks.if_filled("system_prompt")),
    **_each(" ".join(HISTORY), checks.history),
    **_IN_BOTH,
    "chat_template_kwargs": checks.if_filled("template_kwargs"),
}
OF_MESSAGE: dict[str, checks.Check] = {**_IN_BOTH, "channel": checks.channel}
# A weight decides whether an answer is trained on. It does not matter on a question.
OF_ANSWER_ONLY = _words(
    "weight weights loss loss_weight loss_scale sample_weight train training trainable train_on_turn loss_mask rank "
    "ranks ranking refusal"
)

# Passages an instruction may refer to. If no form reads such a field, the record would lack it.
INPUTS = _words(
    """
    input context contexts article articles passage passages paragraph paragraphs document documents background
    evidence choices options answer_choices definition task_description retrieved_contexts retrieved_documents
    """
)
# What may be an instruction, or a part of one.
QUESTIONS = _words("instruction prompt question inputs query problem problem_statement")

# Known fields that do not change what the answer means.
HARMLESS = _words(
    """
    id idx index uid uuid guid key hash row_id sample_id example_id item_id record_id prompt_id question_id
    answer_id conversation_id conversation_hash message_id parent_id message_tree_id user_id turn_id
    turn_identifier source sources dataset dataset_name data_source subset split origin url link license licence
    author username lang lang_code language language_code locale category categories topic topics task task_name
    task_type task_source task_category other_task_category template_idx template_type template_name domain type kind
    skill difficulty tag tags title model model_name generator teacher created created_at created_date date timestamp
    updated_at n_tokens num_tokens token_count length is_classification metadata meta synthetic emojis detoxify
    openai_moderation detoxify_moderation redacted hashed_ip header country state score scores quality rating
    ratings score_chosen score_rejected chosen_score rejected_score chosen_rating rejected_rating chosen_model
    rejected_model margin helpfulness coherence complexity verbosity input_quality quality_explanation intent
    knowledge instruct_reward min_neighbor_distance repeat_count min_similar_uuid llama_guard_2 reward_model
    gen_input_configs gen_response_configs difficulty_generator parallel_tool_calls finish_reason finish_reasons
    is_reasoning_complete problem_type question_type name cache_control annotator review_count
    """
)


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


_BY_LETTERS = {_letters(name): name for name in (*OF_ROW, *OF_MESSAGE, *HARMLESS, *INPUTS, *QUESTIONS)}
# Numbers of rows, as pandas writes them.
_NUMBERING = re.compile(r"\s*|Unnamed: \d+|__index_level_\d+__")


@lru_cache(maxsize=4096)
def plain(name: str) -> str:
    """The name of a field as the lists have it: case, blanks, hyphens and underscores are forgiven."""
    if _NUMBERING.fullmatch(name):
        return "index"
    letters = _letters(name)
    return _BY_LETTERS.get(letters, letters)


def account(
    read: Read,
    name: str,
    value: Any,
    table: dict[str, checks.Check] = OF_ROW,
    place: str = "",
    off: frozenset[str] = frozenset(),
) -> Reject | None:
    """Decide about a field that no reader took: a reject, or a note in `read` that it is unread or unused.

    `off`: fields that the settings switch off.
    """
    if not is_filled(value):
        return None
    key = plain(name) if isinstance(name, str) else ""
    if (check := table.get(key)) and key not in off:
        why = check(place + name, value)
        if why or check not in _MAYBE or checks.verdict(value) is not None:
            return why
    known = read.unused if key in HARMLESS else read.unread
    known[named(place + str(name))] = type_of(value)
    return None
