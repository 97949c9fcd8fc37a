"""What stands beside the texts of a row in people's data, and why the row is then no record. No test is here.

By reason, fields of which each rejects the row alone; "" is none: the row stays a record of its texts.
"""

from typing import Any

FIELDS: dict[str, list[dict[str, Any]]] = {
    "unread_input": [
        {"Input": "In the north."}, {"Context": "In the north."}, {"contexts": ["In the north."]},
        {"passage": "Of lakes."}, {"documents": [{"title": "Lakes"}]}, {"paragraph": "Of lakes."},
        {"choices": ["Orrin", "Orm"]}, {"options": {"A": "Orrin", "B": "Orm"}}, {"definition": "Answer in one word."},
        {"question": "Which one?"}, {"Problem": "Which one?"}, {"query": "?"}, {"text": "Of lakes."},
    ],
    "system_prompt": [
        {"systemPrompt": "Be brief."}, {"system_instruction": "Be brief."}, {"System Message": "Be brief."},
        {"system": ["Be brief."]}, {"system": {"content": "Be brief."}},
    ],
    "has_history": [
        {"history": '[["Hi", "Ho"]]'}, {"chatHistory": [["Hi", "Ho"]]}, {"turns": [{"role": "user", "content": "Hi"}]},
        {"previous_messages": [{"role": "user", "content": "Hi"}]}, {"dialogue": "Hi"},
    ],
    "tools": [{"available_functions": ["f"]}, {"api_list": ["f"]}, {"function_definitions": "f"}],
    "tool_calls": [{"toolCalls": [{"id": "c"}]}],
    "multimodal": [{"image_path": "a.png"}, {"image_urls": ["a"]}, {"video_path": "a"}, {"pixel_values": [0.5]}],
    "thoughts": [{"Complex_CoT": "Hm."}, {"chain_of_thought": "Hm."}],
    "negative_label": [
        {"is_correct": 0}, {"is_correct": 0.0}, {"isCorrect": False}, {"correct": False}, {"verified": False},
        {"passed": 0}, {"pass": "False"}, {"is_valid": "no"}, {"chosen": False}, {"chosen": 0}, {"rejected": True},
        {"is_safe": False}, {"is_harmful": True}, {"flagged": 1}, {"verdict": "incorrect"}, {"status": "rejected"},
        {"feedback": "negative"}, {"quality": "bad"}, {"review_result": False}, {"accepted": 0}, {"Label": "Rejected"},
        {"correctness_llama": False},
    ],
    "unknown_label": [{"is_correct": 0.4}, {"label": "dispreferred"}, {"is_chosen": "perhaps"}, {"ranks": [1, 0]}],
    "weight_zero": [{"loss": False}, {"loss_scale": 0.0}, {"weights": 0}, {"training": "false"}, {"loss_mask": 0}],
    "weighted": [{"loss_scale": 0.5}],
    "rank_above_0": [{"Rank": 1.0}, {"ranks": 2}],
    "": [
        {"question": " Name a lake. "}, {"Input": " "}, {"context": None}, {"choices": []}, {"choices": [None]},
        {"tools": "[ ]"}, {"history": "[[]]"}, {"system": "null"}, {"history": [None]}, {"turns": 1},
        {"chosen": True}, {"rejected": False}, {"is_correct": 1}, {"correct": True}, {"verified": 1.0},
        {"correctness": 0, "helpfulness": 0}, {"quality": 0}, {"rank": float("nan")}, {"loss": True}, {"passed": "1"},
        {"image": {"bytes": None, "path": None}}, {"": 0, "Unnamed: 0": 1, "__index_level_0__": 2},
        {"chosen_score": 1, "rejected_score": 4}, {"_task_source": "x", "_template_idx": 3},
    ],
}  # fmt: skip
# Names that stand for a verdict in some data and for something else in others: then nobody reads them.
UNREAD: list[dict[str, Any]] = [
    {"correct": "B"}, {"verdict": "It is a lake."}, {"loss": 1.7}, {"correct": 3}, {"passed": 0.5}, {"feedback": "Hm."},
]  # fmt: skip
