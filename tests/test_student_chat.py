"""Chat templates of all kinds: what stands before an answer, what ends it, who is refused, what is made again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from student_lake import RECORDS, four, make_lake, put_candidates, settings_for
from tiny_student import make_tiny_student
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from srt_assets.core.errors import UserError
from srt_assets.core.lake import Lake
from srt_assets.core.scoring import chat
from srt_assets.core.scoring import stage as scores
from srt_assets.core.scoring.chat import Chat, words_of
from srt_assets.core.scoring.encoding import Encoder, Pass, Texts
from srt_assets.core.students import checkpoints
from srt_assets.core.tables import PASSES
from srt_assets.core.training import job
from srt_assets.core.training import stage as training
from tests.training_data import in_process, make_bench

torch.set_num_threads(1)
MARKS = ["<|im_start|>", "<|im_end|>", "<|end|>"]
TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
LOOP = "{% for m in messages %}" + TURN + "{% endfor %}"
OPENS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = LOOP + OPENS
SYSTEM = "<|im_start|>system\nYou are a box.<|im_end|>\n"
EMPTY_THOUGHT = "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
USER = "<|im_start|>user\nName it.<|im_end|>\n<|im_start|>assistant\n"


def tokenizer_with(template: str, **named: str):
    """The tiny tokenizer with control tokens of its own: `</s>` is EOS, `<|im_end|>` ends a turn."""
    from tiny_student import make_tiny_tokenizer

    tokenizer = make_tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.chat_template = template
    for name, value in named.items():
        setattr(tokenizer, name, value)
    return tokenizer


def chat_of(template: str, **named: str) -> Chat:
    return Chat("mine", words_of("mine", tokenizer_with(template, **named)))


KINDS = {
    # template, what stands before the answer, what ends it, whether that is the generation prompt
    "chatml": (CHATML, USER, "<|im_end|>", True),
    "own system text": (SYSTEM + CHATML, SYSTEM + USER, "<|im_end|>", True),
    "opens a thought": (CHATML.replace("assistant\n{%", "assistant\n<think>\n{%"), USER, "<|im_end|>", False),
    "empty thought": (
        CHATML.replace("{{ m.content }}", EMPTY_THOUGHT + "{{ m.content }}"),
        USER + "<think>\n\n</think>\n\n",
        "<|im_end|>",
        False,
    ),
    "a channel of its own": (
        CHATML.replace("{{ m.content }}", "{% if m.role == 'assistant' %}<|end|>final\n{% endif %}{{ m.content }}"),
        USER + "<|end|>final\n",
        "<|im_end|>",
        False,
    ),
    "no generation prompt": (LOOP, USER, "<|im_end|>", False),
    "always a generation prompt": (LOOP + "<|im_start|>assistant\n", USER, "<|im_end|>", False),
    "trims": (CHATML.replace("m.content }}", "m.content | trim }}"), USER, "<|im_end|>", True),
    "two marks": (CHATML.replace("<|im_end|>\n{%", "\n<|end|><|im_end|>\n{%"), None, "\n<|end|>", True),
    "nothing follows": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}" + OPENS,
        "<|im_start|>user\nName it.<|im_start|>assistant\n",
        "</s>",
        True,
    ),
    "plain text": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: "
        "{% endif %}",
        "user: Name it.\nassistant: ",
        "</s>",
        True,
    ),
    "eos by name": (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} {{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}",
        "<s>[user] Name it. </s>[assistant] ",
        " </s>",
        True,
    ),
    "wants an answer": (
        "{% if messages[-1].role != 'assistant' %}{{ raise_exception('no answer') }}{% endif %}" + LOOP,
        USER,
        "<|im_end|>",
        False,
    ),
    "dated": ("{{ strftime_now('%d %B %Y') }}\n" + CHATML, "26 July 2024\n" + USER, "<|im_end|>", True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_is_all_before_an_answer_and_the_turn_ends_with_the_first_mark(kind: str) -> None:
    template, prompt, end, usual = KINDS[kind]
    found = chat_of(template)
    if prompt is not None:
        assert found.prompts(["Name it."]) == [prompt]
    turns = found.turns
    assert (turns.end, turns.usual) == (end, usual)
    assert turns.ends_usual == (end == "</s>") and bool(turns.note) == (not usual)


UNFIT = {
    "raises": ("{{ raise_exception('Only tool conversations') }}", "Only tool conversations"),
    "alters the answer": (CHATML.replace("m.content }}", "m.content | tojson }}"), "it alters the answer"),
    "drops the answer": (
        "{% for m in messages if m.role == 'user' %}" + TURN + "{% endfor %}",
        "leaves the answer out",
    ),
    "drops the question": ("{% for m in messages[1:] %}" + TURN + "{% endfor %}", "leaves the instruction out"),
    "says it twice": (CHATML + "{{ messages[-1].content }}", "writes the answer more than once"),
    "counts": ("{{ messages[-1].content | length }}" + CHATML, "writes something else before another answer"),
    "is no template": ("{% for m in messages %}", "cannot be used"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_template_that_cannot_be_read_is_refused_by_the_students_name(home: Path, kind: str) -> None:
    template, why = UNFIT[kind]
    lake = make_lake(home)
    info = checkpoints.add(settings_for(), lake, str(student_with(home / "unfit", template)), "odd-one")
    for attempt in (
        lambda: chat.of_student(info.slug, info.path, info.fingerprint),
        lambda: scores.STAGE.wanted(settings_for(template="chat"), lake, "odd-one"),
        lambda: Encoder(AutoTokenizer.from_pretrained(info.path), "chat", "aligned", 100),
    ):
        with pytest.raises(UserError, match=r"the chat template of the student odd-one cannot be used: ") as refused:
            attempt()
        assert why in refused.value.message and "student.template" in refused.value.remedy
    scores.STAGE.run(settings_for(template="none"), lake, "odd-one")  # it is a student all the same


def test_a_text_that_the_template_takes_offence_at_has_a_status() -> None:
    picky = "{% if 'tool' in messages[0].content %}{{ raise_exception('no tools') }}{% endif %}" + CHATML
    encoder = Encoder(tokenizer_with(picky), "chat", "aligned", 500)
    good, bad = Texts("Name it.", "", "A box."), Texts("Name a tool.", "", "A saw.")
    fine, refused, guessed = encoder.encode([good, bad, Texts("Name it.", "", "The tool is a saw.")])
    assert all(isinstance(fine[name], Pass) for name in PASSES)
    assert {*refused.values(), *guessed.values()} == {"template_failed"}
    assert encoder.for_training([bad, good], 500)[0] == "template_failed"


def test_marks_that_are_not_called_special_end_a_turn_too() -> None:
    """`add_tokens(["<|im_end|>"])`, as many do; a word that was added is a word."""
    from tiny_student import make_tiny_tokenizer

    tokenizer = make_tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=False), AddedToken("\n", special=False), "Over"])
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "\nOver<|im_end|>")
    assert Chat("mine", words_of("mine", tokenizer)).turns.end == "\nOver<|im_end|>"


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "two marks"])
def test_what_is_learned_is_what_the_template_writes(kind: str) -> None:
    """Decoded, a sample is the rendered conversation up to the end of its turn; loss on the answer and that end."""
    tokenizer = tokenizer_with(KINDS[kind][0])
    encoder = Encoder(tokenizer, "chat", "aligned", 500)
    texts = Texts("Name it.", "", "A box, <b>or two</b>.\n  Yes!")
    (one,) = encoder.for_training([texts], 500)
    assert isinstance(one, Pass)
    turns = [{"role": "user", "content": texts.instruction}, {"role": "assistant", "content": texts.response}]
    if "dated" not in kind:
        written = tokenizer.apply_chat_template(turns, tokenize=False)
        sample = tokenizer.decode(one.ids)
        assert (
            sample.startswith(written) if kind == "nothing follows" else written.startswith(sample.removesuffix("</s>"))
        )
    answer = tokenizer.decode(one.ids[one.start :])
    assert answer == texts.response + KINDS[kind][2]
    scored = encoder.encode([texts])[0]["response_given_prompt"]
    assert one.ids[: len(scored.ids)].tolist() == scored.ids.tolist(), "training sees what was scored"


def test_a_sample_whose_end_does_not_fit_is_too_long() -> None:
    encoder = Encoder(tokenizer_with(CHATML), "chat", "aligned", 500)
    texts = Texts("Name it.", "", "A box.")
    whole = len(encoder.for_training([texts], 500)[0].ids)
    assert not encoder.for_training([texts], whole)[0].truncated
    assert encoder.for_training([texts], whole - 1)[0].truncated


# -- students


def student_with(folder: Path, template: str, seed: int = 0) -> Path:
    """A tiny student with that template, whose embeddings have room for its control tokens."""
    make_tiny_student(folder, seed=seed)
    tokenizer = tokenizer_with(template)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    shutil.rmtree(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_students_files_say_what_its_tokenizer_does(tmp_path: Path, kind: str) -> None:
    folder = student_with(tmp_path / kind.replace(" ", "-"), KINDS[kind][0])
    loaded = AutoTokenizer.from_pretrained(folder)
    read, used = chat.of_student("mine", folder, kind), Chat("mine", words_of("mine", loaded))
    assert read == used.turns
    chat.check(used, folder, kind)


def test_a_tokenizer_that_reads_otherwise_than_its_files_is_refused(tmp_path: Path) -> None:
    folder = student_with(tmp_path / "mine", CHATML)
    with pytest.raises(
        UserError, match=r"the tokenizer of the student mine ends a turn with .*, its files say '<.im_end"
    ):
        chat.check(chat_of(KINDS["nothing follows"][0]), folder, "f")


@pytest.mark.parametrize("form", ["config", "named", "old tokens"])
def test_templates_are_found_where_older_tokenizers_kept_them(tmp_path: Path, form: str) -> None:
    folder = student_with(tmp_path / "mine", CHATML)
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = CHATML
    if form == "named":
        config["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    if form == "old tokens":
        config["eos_token"] = {"content": "</s>", "lstrip": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    found = chat.of_student("mine", folder, form)
    assert (found.end, found.usual) == ("<|im_end|>", True)
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": None}))
    with pytest.raises(UserError, match="the student mine has no chat template to use"):
        chat.of_student("mine", folder, form + " gone")


def wanted(lake: Lake, slug: str, template: str = "chat") -> tuple[str, list | None]:
    settings = settings_for(template=template)
    trained = job.training_fingerprint(settings, checkpoints.get(lake, slug)).facts.get("turns")
    return scores.STAGE.wanted(settings, lake, slug).facts["code"], trained


def test_only_what_the_rule_changes_is_made_again(home: Path) -> None:
    """Equal token ids are equal scores and equal trainings: nothing of the old ones' facts moves."""
    lake = make_lake(home)
    expected = {
        "chatml": ("2", [True, "<|im_end|>"]),  # scored as before, trained to another end
        "nothing follows": ("2", None),
        "opens a thought": ("4", [False, "<|im_end|>"]),
        "empty thought": ("4", [False, "<|im_end|>"]),
    }
    for n, (kind, facts) in enumerate(expected.items()):
        checkpoints.add(settings_for(), lake, str(student_with(home / f"s{n}", KINDS[kind][0])), f"s{n}")
        assert wanted(lake, f"s{n}") == facts, kind
        assert wanted(lake, f"s{n}", "vicuna") == ("2", None)
    assert wanted(lake, "tiny") == ("2", None)


def test_scores_of_another_prompt_are_made_again_and_others_kept(home: Path, monkeypatch) -> None:
    lake = Lake(home)
    put_candidates(lake, [row for r in RECORDS[:3] for row in four(r)])
    settings = settings_for(template="chat")
    for n, kind in enumerate(("chatml", "empty thought")):
        checkpoints.add(settings_for(), lake, str(student_with(home / f"s{n}", KINDS[kind][0])), f"s{n}")
        with monkeypatch.context() as older:  # as the program before the rule: version 2, and the generation prompt
            older.setattr(chat.Chat, "__init__", before_the_rule(chat.Chat.__init__))
            older.setattr(chat.Chat, "prompts", generation_prompts)
            chat.of_student.cache_clear()
            scores.STAGE.run(settings, lake, f"s{n}")
        chat.of_student.cache_clear()
        again = scores.STAGE.run(settings, lake, f"s{n}")
        assert again.cached == (kind == "chatml")
        assert again.cached or again.stats["candidates_scored"] == 12


def before_the_rule(build):
    def made(self, *given) -> None:
        build(self, *given)
        self.turns = replace(self.turns, usual=True, ends_usual=True)

    return made


def generation_prompts(self, asked):
    return self._render([[{"role": "user", "content": text}] for text in asked], add_generation_prompt=True)


def test_training_ends_a_turn_as_the_template_does_and_generation_stops_there(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "home")
    bench.settings = bench.settings.model_copy(
        update={"student": bench.settings.student.model_copy(update={"template": "chat"})}
    )
    source = student_with(tmp_path / "thinks", KINDS["opens a thought"][0])
    checkpoints.add(bench.settings, bench.lake, str(source), name="thinks")
    for table in ("selected_set", "policy_decisions"):
        shutil.copytree(bench.lake.directory(table, "student=tiny"), bench.lake.directory(table, "student=thinks"))
    seen: list[np.ndarray] = []

    def look(command, env) -> int:
        from srt_assets.core.training import data

        task = job.Job.read(Path(command[-2]))
        tokenizer = AutoTokenizer.from_pretrained(task.student_path)
        loaded = data.load(task, tokenizer, 256, len(tokenizer))
        seen.extend(one.ids for one in (*loaded.train, *loaded.held_out))
        return in_process(command, env)

    training.STAGE.run(bench.settings, bench.lake, "thinks", launch=look)
    tokenizer = AutoTokenizer.from_pretrained(source)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert len(seen) == 16 and all(ids[-1] == end for ids in seen)
    assert not any("<think>" in tokenizer.decode(ids) for ids in seen)
    (made,) = training.finished.all_of(bench.lake, "thinks")
    stops = json.loads((made.path / "generation_config.json").read_text())["eos_token_id"]
    assert stops == [end, tokenizer.eos_token_id]
    assert made.record["answers_end_with"] == "<|im_end|>"
    card = (made.path / "README.md").read_text()
    assert r"an answer ends with `<\|im_end\|>`" in card and "generation prompt of its template ends with" in card
    # Its successor is a student like any other.
    again = checkpoints.add(bench.settings, bench.lake, str(made.path), name="next")
    assert chat.of_student("next", again.path, again.fingerprint).end == "<|im_end|>"


def test_other_templates_end_with_eos_and_a_generation_config_that_says_so_stays(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "home", max_steps=1)
    training.STAGE.run(bench.settings, bench.lake, "tiny", launch=in_process)
    (made,) = training.finished.all_of(bench.lake, "tiny")
    student = checkpoints.get(bench.lake, "tiny").path
    both = [json.loads((p / "generation_config.json").read_text())["eos_token_id"] for p in (made.path, student)]
    assert both == [2, 2] and made.record["answers_end_with"] == "</s>" and not made.record["prompt_note"]


def test_an_end_of_turn_without_an_embedding_is_refused(tmp_path: Path) -> None:
    bench = make_bench(tmp_path / "home", max_steps=1)
    folder = make_tiny_student(tmp_path / "unresized")
    tokenizer_with(CHATML).save_pretrained(folder)
    checkpoints.add(bench.settings, bench.lake, str(folder), name="unresized")
    arm = training.active_arm(bench.settings, bench.lake, "tiny")
    info = checkpoints.get(bench.lake, "unresized")
    task = job.make(bench.settings, info, tmp_path / "work", run="r", arm="a", data_hash="", steps=1)
    arm.rows.move(task.rows_file)
    from srt_assets.core.training import data

    with pytest.raises(UserError, match=r"the end of a turn of its chat template, '<\|im_end\|>' has id 321"):
        data.load(replace(task, template="chat"), AutoTokenizer.from_pretrained(info.path), 256, 320)
