"""Rows in forms that people publish data in, with invented texts, and what each must become. No test is here.

A case: rows of one file; records (instruction, input, response), rejects (row, reason), alternatives (kind, response),
fields that nobody reads. What is not named must be empty.
"""

from typing import Any, NamedTuple


class Case(NamedTuple):
    rows: list[Any]
    records: tuple[tuple[str, str, str], ...] = ()
    rejects: tuple[tuple[int, str], ...] = ()
    alternatives: tuple[tuple[str, str], ...] = ()
    unread: frozenset[str] = frozenset()


def chat(
    *texts: str, keys: tuple[str, str] = ("role", "content"), roles: tuple[str, str] = ("user", "assistant")
) -> list:
    return [{keys[0]: roles[n % 2], keys[1]: text} for n, text in enumerate(texts)]


def gpt(*texts: str) -> list:
    return chat(*texts, keys=("from", "value"), roles=("human", "gpt"))


def said(role: str, text: Any, **more: Any) -> dict:
    return {"role": role, "content": text, **more}


def flat(id: str, parent: str | None, role: str, text: str, **more: Any) -> dict:
    return {
        "message_id": id,
        "parent_id": parent,
        "role": role,
        "text": text,
        "message_tree_id": "t",
        "lang": "en",
        **more,
    }


Q, A, B = "Name a lake.", "Orrin.", "Orm."
QA = (Q, "", A)

CASES: dict[str, Case] = {
    # -- those of the fact sheet, plain
    "alpaca": Case([{"instruction": Q, "input": "In the north.", "output": A}], ((Q, "In the north.", A),)),
    "alpaca of axolotl": Case([{"instruction": Q, "response": A}], (QA,)),
    "alpaca with a system text": Case(
        [{"instruction": Q, "output": A, "system": "Be brief."}], (), ((0, "system_prompt"),)
    ),
    "alpaca with history": Case(
        [{"instruction": Q, "output": A, "history": [["Hi", "Ho"]]}], (), ((0, "has_history"),)
    ),
    "alpaca with neither": Case([{"instruction": Q, "output": A, "system": "", "history": []}], (QA,)),
    "reflection of axolotl": Case(
        [{"instruction": Q, "input": "", "output": A, "reflection": "Too short.", "corrected": "Lake Orrin."}],
        (QA,),
        unread=frozenset({"reflection", "corrected"}),
    ),
    "dolly": Case(
        [{"instruction": Q, "context": "Orrin is a lake.", "response": A, "category": "closed_qa"}],
        ((Q, "Orrin is a lake.", A),),
    ),
    "open orca": Case(
        [
            {"id": "niv.1", "system_prompt": "", "question": Q, "response": A},
            {"id": "niv.2", "system_prompt": "Think.", "question": Q, "response": A},
        ],
        (QA,),
        ((1, "system_prompt"),),
    ),
    "question and answer with an article": Case(
        [{"article": "Of lakes.", "question": Q, "answer": A}], ((Q, "Of lakes.", A),)
    ),
    "upper case": Case([{"INSTRUCTION": Q, "RESPONSE": A}], (QA,)),
    "prompt and generation": Case([{"prompt": Q, "generation": A}], (QA,)),
    "message_1 and message_2": Case([{"message_1": Q, "message_2": A, "topic": "lakes"}], (QA,)),
    "flan": Case([{"inputs": Q, "targets": A, "task_source": "x", "task_name": "y", "template_type": "zs"}], (QA,)),
    "self-instruct": Case(
        [
            {
                "id": "seed_task_0",
                "instruction": "Add.",
                "instances": [
                    {"input": "1 2", "output": "3"},
                    {"input": "2 2", "output": "4"},
                    {"input": "", "output": ""},
                ],
                "is_classification": False,
            }
        ],
        (("Add.", "1 2", "3"), ("Add.", "2 2", "4")),
        ((0, "empty_response"),),
    ),
    "sharegpt": Case([{"id": "a", "conversations": gpt(Q, A)}], (QA,)),
    "sharegpt with roles in other letters": Case(
        [{"conversations": chat(Q, A, keys=("from", "value"), roles=("Human ", "GPT"))}], (QA,)
    ),
    "sharegpt with tools": Case(
        [
            {"conversations": [*gpt(Q), {"from": "function_call", "value": "{}"}], "tools": "[]"},
            {"conversations": gpt(Q, A), "tools": '[{"name": "lakes"}]'},
            {"conversations": gpt(Q, A), "tools": "[]"},
        ],
        (QA,),
        ((0, "tool_calls"), (1, "tools")),
    ),
    "openai fine-tuning": Case(
        [
            {"messages": [said("user", Q), said("assistant", A, weight=1)], "parallel_tool_calls": False},
            {"messages": [said("user", Q), said("assistant", A, weight=0)]},
            {"messages": [said("developer", "Be brief."), *chat(Q, A)]},
            {"messages": [said("user", Q), said("assistant", None, tool_calls=[{"id": "c"}])]},
            {"messages": [said("user", Q), said("assistant", None, refusal="I will not.")]},
            {"messages": [said("user", [{"type": "image_url", "image_url": {"url": "x"}}]), said("assistant", A)]},
            {"messages": [said("user", Q), said("assistant", A, reasoning_content="Hm.")]},
            {"messages": [said("user", Q), said("assistant", A, weight=0.5)]},
        ],
        (QA,),
        (
            (1, "weight_zero"),
            (2, "system_prompt"),
            (3, "tool_calls"),
            (4, "refusal"),
            (5, "multimodal"),
            (6, "thoughts"),
            (7, "weighted"),
        ),
    ),
    "parts": Case(
        [
            {
                "messages": [
                    said("user", [{"type": "text", "text": "Name "}, {"type": "text", "text": "a lake."}]),
                    said("assistant", A),
                ]
            },
            {
                "messages": [
                    said("user", [{"type": "text", "value": Q}], loss_weight=0.0),
                    said("assistant", [{"type": "text", "value": A}], loss_weight=1.0),
                ]
            },
            {"messages": [said("user", Q), said("assistant", [{"type": "text", "value": A}], loss_weight=0.0)]},
            {"messages": [said("user", Q), said("assistant", [{"type": "hologram", "text": A}])]},
        ],
        (QA, QA),
        ((2, "weight_zero"), (3, "unknown_part")),
    ),
    "openai preference": Case(
        [
            {
                "input": {"messages": chat(Q), "tools": [], "parallel_tool_calls": True},
                "preferred_output": chat(A, roles=("assistant", "user")),
                "non_preferred_output": chat(B, roles=("assistant", "user")),
            }
        ],
        (QA,),
        alternatives=(("non_preferred", B),),
    ),
    "preference as texts": Case([{"prompt": Q, "chosen": A, "rejected": B}], (QA,), alternatives=(("rejected", B),)),
    "preference with the prompt inside": Case(
        [
            {
                "prompt": Q,
                "prompt_id": "p",
                "chosen": chat(Q, A),
                "rejected": chat(Q, B),
                "messages": chat(Q, A),
                "score_chosen": 8.0,
            }
        ],
        (QA,),
        alternatives=(("rejected", B),),
    ),
    "preference of LLaMA-Factory": Case(
        [{"conversations": gpt(Q), "chosen": {"from": "gpt", "value": A}, "rejected": {"from": "gpt", "value": B}}],
        (QA,),
        alternatives=(("rejected", B),),
    ),
    "kto": Case(
        [
            {"prompt": Q, "completion": A, "label": True},
            {"prompt": Q, "completion": B, "label": False},
            {"messages": chat(Q, B), "kto_tag": False},
            {"prompt": Q, "completion": A, "label": "toxic"},
        ],
        (QA,),
        ((1, "negative_label"), (2, "negative_label"), (3, "unknown_label")),
    ),
    "a false label with a better answer beside it": Case(
        [
            {"prompt": Q, "completions": [B, A], "labels": [False, True]},
            {"prompt": Q, "completions": [B], "labels": [False]},
            {"prompt": Q, "completions": [A, B], "labels": [True, True]},
        ],
        (QA,),
        ((1, "negative_label"), (2, "several_good_answers")),
        (("completions", B),),
    ),
    "prompt and completion as messages": Case(
        [
            {"prompt": chat(Q), "completion": chat(A, roles=("assistant", "user"))},
            {"prompt": [said("system", "Be brief."), *chat(Q)], "completion": chat(A, roles=("assistant", "user"))},
            {"prompt": chat(Q, A, "And a pond?"), "completion": chat(B, roles=("assistant", "user"))},
        ],
        (QA,),
        ((1, "system_prompt"), (2, "multi_turn")),
    ),
    "text alone": Case([{"text": "### Human: hi"}], (), ((0, "no_structure"),)),
    "chat template": Case([{"messages": chat(Q, A), "chat_template_kwargs": {"x": 1}}], (), ((0, "template_kwargs"),)),
    "oasst trees": Case(
        [
            {
                "message_tree_id": "t",
                "tree_state": "ready_for_export",
                "prompt": {
                    "message_id": "t",
                    "role": "prompter",
                    "text": Q,
                    "replies": [
                        {"message_id": "b", "role": "assistant", "text": B, "rank": 1, "replies": []},
                        {
                            "message_id": "a",
                            "role": "assistant",
                            "text": A,
                            "rank": 0,
                            "replies": [
                                {
                                    "role": "prompter",
                                    "text": "Why?",
                                    "replies": [{"role": "assistant", "text": "It is.", "replies": []}],
                                }
                            ],
                        },
                    ],
                },
            }
        ],
        (QA,),
        ((0, "multi_turn"),),
        (("rank", B),),
    ),
    "oasst flat": Case(
        [
            flat("t", None, "prompter", Q, deleted=False),
            flat("b", "t", "assistant", B, rank=1.0),
            flat("a", "t", "assistant", A, rank=0.0),
            flat("c", "a", "prompter", "Why?"),
            flat("d", "c", "assistant", "It is."),
            flat("x", "lost", "assistant", "Of what?") | {"message_tree_id": "u"},
        ],
        (QA,),
        ((4, "multi_turn"), (5, "broken_tree")),
        (("rank", B),),
    ),
    "ultrachat": Case([{"prompt": Q, "prompt_id": "p", "messages": chat(Q, A)}, {"id": "1", "data": [Q, A]}], (QA, QA)),
    "a prompt that is another": Case([{"prompt": "Hm?", "messages": chat(Q, A)}], (), ((0, "ambiguous_form"),)),
    "wildchat": Case(
        [
            {
                "conversation_hash": "h",
                "model": "m",
                "turn": 1,
                "toxic": False,
                "redacted": False,
                "conversation": [
                    said("user", Q, language="English", toxic=False, redacted=False, turn_identifier=1),
                    said("assistant", A, language="English", toxic=False, redacted=False, turn_identifier=2),
                ],
            },
            {"conversation": [said("user", Q, toxic=True), said("assistant", A)], "toxic": True},
        ],
        (QA,),
        ((1, "toxic"),),
    ),
    "magpie": Case(
        [
            {"uuid": "u", "conversations": gpt(Q, A), "instruction": Q, "response": A, "instruct_reward": -3.1},
            {"uuid": "v", "conversations": gpt(Q, A), "instruction": Q, "response": B},
        ],
        (QA,),
        ((1, "ambiguous_form"),),
    ),
    "tulu": Case([{"id": "1", "messages": chat(Q, A), "source": "s"}], (QA,)),
    "open thoughts": Case(
        [{"system": "Think long.", "conversations": gpt(Q, A)}, {"conversations": gpt(Q, A), "source": "s", "id": 3}],
        (QA,),
        ((0, "system_prompt"),),
    ),
    "open r1": Case(
        [
            {
                "problem": Q,
                "solution": "It is Orrin.",
                "answer": "Orrin",
                "generations": [A, B],
                "correctness_math_verify": [True, False],
                "finish_reasons": ["stop", "stop"],
                "is_reasoning_complete": [True, True],
                "messages": chat(Q, A),
            }
        ],
        (QA,),
        alternatives=(("generations", B),),
        unread=frozenset({"solution", "answer"}),
    ),
    # -- what else comes in rows
    "numbers as text": Case(
        [{"instruction": "2 + 2?", "output": 4}, {"prompt": "Is it?", "completion": True}],
        (("2 + 2?", "", "4"), ("Is it?", "", "true")),
    ),
    "pandas' empty cells": Case(
        [{"instruction": Q, "input": float("nan"), "output": A}, {"instruction": Q, "output": float("nan")}],
        (QA,),
        ((1, "missing_response"),),
    ),
    "filled beside empty": Case(
        [{"instruction": Q, "output": None, "response": A}, {"instruction": Q, "output": "", "response": A}], (QA, QA)
    ),
    "two outputs": Case([{"instruction": Q, "output": B, "response": A}], (), ((0, "ambiguous_form"),)),
    "two inputs": Case([{"instruction": Q, "input": "x", "context": "y", "output": A}], (), ((0, "ambiguous_form"),)),
    "a passage beside messages": Case([{"messages": chat(Q, A), "context": "Of lakes."}], (), ((0, "unread_input"),)),
    "system prompt in the second reading": Case(
        [{"prompt": Q, "chosen": A, "rejected": B, "messages": [said("system", "Hm."), *chat(Q, A)]}],
        (),
        ((0, "system_prompt"),),
    ),
    "conversation as JSON text": Case(
        [
            '{"a": 1}',
            {"messages": '[{"role": "user", "content": "Name a lake."}, {"role": "assistant", "content": "Orrin."}]'},
        ],
        (QA,),
        ((0, "not_an_object"),),
    ),
    "conversation as an object of lists": Case([{"conversations": {"from": ["human", "gpt"], "value": [Q, A]}}], (QA,)),
    "roles that are not known": Case(
        [{"messages": chat(Q, A, roles=("pirate", "parrot"))}, {"messages": [{"content": Q}, {"content": A}]}],
        (),
        ((0, "unknown_role"), (1, "unknown_role")),
    ),
    "odd orders": Case(
        [
            {"messages": chat("Hello!", Q, A, roles=("assistant", "user"))},
            {"messages": [*chat(Q), *chat(Q)]},
            {"messages": chat(Q)},
            {"messages": chat(Q, A, "And?")},
            {"messages": chat(Q, A, "And?", B)},
            {"messages": []},
        ],
        (),
        (
            (0, "role_order"),
            (1, "role_order"),
            (2, "no_reply"),
            (3, "no_reply"),
            (4, "multi_turn"),
            (5, "missing_instruction"),
        ),
    ),
    "fields that nobody knows": Case(
        [{"instruction": Q, "output": A, "mood": "blue", "source": "s", "messages[]": None}],
        (QA,),
        unread=frozenset({"mood"}),
    ),
    "images and weights of rows": Case(
        [
            {"instruction": Q, "output": A, "images": ["a.png"]},
            {"instruction": Q, "output": A, "images": [], "weight": 1},
            {"instruction": Q, "output": A, "weight": 0},
            {"instruction": Q, "output": A, "rank": 2},
            {"instruction": Q, "output": A, "is_correct": False},
        ],
        (QA,),
        ((0, "multimodal"), (2, "weight_zero"), (3, "rank_above_0"), (4, "negative_label")),
    ),
    "no form": Case(
        [{"idx": 1, "Skill": "Math", "Instruction": Q}, {}], (), ((0, "unknown_form"), (1, "unknown_form"))
    ),
}
