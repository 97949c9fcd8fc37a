"""Configurations and chat templates that no machine can serve: refused in one sentence, before they have taken it."""

import json
import os
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch
from student_lake import make_lake, settings_for
from tiny_student import make_tiny_student
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from srt_assets.core.errors import UserError
from srt_assets.core.scoring import rendering
from srt_assets.core.scoring import stage as scores
from srt_assets.core.scoring.rendering import Renderer
from srt_assets.core.students import building, checkpoint_files, checkpoints, loading, plausible, watch
from srt_assets.core.students.headers import Held

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_student(tmp_path_factory.mktemp("plain") / "student")


@pytest.fixture
def source(plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / "student")


def changed(source: Path, **config: object) -> Path:
    file = source / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return source


# -- configurations

AT_ONCE = [
    ({"hidden_size": 10**7}, "hidden_size = 10,000,000"),
    ({"vocab_size": 10**12}, "vocab_size = 1,000,000,000,000"),
    ({"num_hidden_layers": 10**7}, "num_hidden_layers = 10,000,000"),
    ({"num_hidden_layers": -1}, "num_hidden_layers = -1"),
    ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
    ({"hidden_size": 16.0}, "hidden_size = 16.0, which is no whole number"),
    ({"hidden_size": "16"}, "hidden_size = '16', which is no whole number"),
    ({"vocab_size": True}, "vocab_size = True, which is no whole number"),
    ({"num_hidden_layers": float("nan")}, "num_hidden_layers = nan"),
    ({"num_attention_heads": 10**9}, "num_attention_heads = 1,000,000,000"),
    ({"num_attention_heads": 3, "head_dim": None}, "num_attention_heads = 3, which does not divide hidden_size = 16"),
    ({"intermediate_size": [32, 10**9]}, "intermediate_size = [32, 1000000000]"),
    ({"max_position_embeddings": 10**12}, "max_position_embeddings = 1,000,000,000,000"),
    ({"max_position_embeddings": -5}, "max_position_embeddings = -5"),
    ({"text_config": {"n_layer": 10**9}}, "text_config.n_layer = 1,000,000,000"),
    ({"ffn_config": {"moe_num_experts": 10**9}}, "ffn_config.moe_num_experts = 1,000,000,000"),
    ({"n_routed_experts": 10**9}, "n_routed_experts = 1,000,000,000"),
]


@pytest.mark.parametrize(("config", "said"), AT_ONCE)
def test_a_configuration_is_refused_by_its_numbers(lake, source: Path, config: dict, said: str) -> None:
    for refused in (checkpoint_files.inspect, lambda path: checkpoints.add(settings_for(), lake, str(path))):
        with pytest.raises(UserError) as caught:
            refused(changed(source, **config))
        assert said in caught.value.message and str(source) in caught.value.message
        assert "\n" not in caught.value.message and "config.json" in caught.value.remedy


WHILE_BUILT = [
    ({"hidden_size": 500_000}, "a weight of 320 x 500,000 in Embedding"),
    ({"intermediate_size": 10**6, "hidden_size": 1600}, "a weight of"),
    ({"num_hidden_layers": 4000}, "parts of"),
    ({"model_type": "mixtral", "num_local_experts": 60_000}, "a weight of 60,000 x"),
    ({"model_type": "gpt_neo", "max_position_embeddings": 10**6, "num_layers": 2}, "1,000,000 x 1,000,000"),
    ({"model_type": "mamba", "state_size": 10**9}, "a weight of"),
    ({"model_type": "opt", "max_position_embeddings": 2**31 - 9}, "a weight of 2,147,483,641 x 16"),
]


@pytest.mark.parametrize(("config", "said"), WHILE_BUILT)
def test_a_model_is_refused_in_the_moment_in_which_it_outgrows_its_weights(
    source: Path, monkeypatch: pytest.MonkeyPatch, config: dict, said: str
) -> None:
    """Nothing has memory by then."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(building, "_FEW_PARTS", 1000)
    attention = {"attention_types": [[["global"], 2]]} if config.get("model_type") == "gpt_neo" else {}
    with pytest.raises(UserError) as caught:
        loading.load_whole(changed(source, **config, **attention))
    assert said in caught.value.message and str(source) in caught.value.message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "kB"


@pytest.mark.parametrize(
    "config",
    [{"num_attention_heads": 3}, {"num_key_value_heads": 0}, {"rope_parameters": {"rope_type": "none of these"}}],
)
def test_what_fails_inside_the_library_names_the_student(source: Path, config: dict) -> None:
    with pytest.raises(UserError) as caught:
        loading.load_whole(changed(source, **config))
    assert str(source) in caught.value.message and "\n" not in caught.value.message


def test_counting_ends_with_the_building(source: Path) -> None:
    loading.load_whole(source)
    torch.nn.Linear(9000, 9000, device="meta")
    with pytest.raises(UserError), building.bounded(source, Held(1, 1, 4, 1), quantized=False):
        torch.nn.Linear(9000, 9000, device="meta")
    with building.bounded(source, Held(1, 1, 4 * 9000**2, 1), quantized=True):
        torch.nn.Linear(9000, 9000, device="meta")


# As they are in the wild: the weights of a checkpoint may be fewer than its configuration speaks of.
KNOWN_GOOD = (
    "llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next gemma gemma2 gemma3_text gemma3 phi phi3 phimoe "
    "gpt2 gpt_neo gpt_neox gptj gpt_bigcode gpt_oss opt bloom falcon falcon_mamba falcon_h1 mamba mamba2 jamba zamba2 "
    "bamba rwkv recurrent_gemma cohere cohere2 granite granitemoe olmo olmo2 olmoe starcoder2 stablelm codegen xglm "
    "deepseek_v2 deepseek_v3 glm glm4 glm4_moe nemotron nemotron_h exaone4 ernie4_5 smollm3 llama4 mllama t5 bart "
    "xlnet dbrx mpt persimmon openai-gpt ctrl bert whisper musicgen"
)


@pytest.mark.parametrize("kind", KNOWN_GOOD.split())
def test_no_configuration_that_transformers_ships_is_refused(kind: str) -> None:
    config = json.loads(json.dumps(AutoConfig.for_model(kind).to_dict(), default=str))
    plausible.check(config, Path("config.json"), Held(numbers=10_000, tensors=20, n_bytes=40_000, longest=320))


SMALL = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    },
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "mixtral": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen3": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1},
    "gemma2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
}


@pytest.mark.parametrize("kind", SMALL)
def test_other_architectures_load(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the allowance for small models."""
    more = {"vocab_size": 320, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind in ("mixtral", "qwen3", "gemma2"):
        more["intermediate_size"] = 64
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL[kind], **more)).save_pretrained(tmp_path)
    monkeypatch.setattr(building, "_SMALL", 0)
    monkeypatch.setattr(building, "_FEW_PARTS", 0)
    assert loading.load_whole(tmp_path).get_input_embeddings().weight.shape[0] == 320


def test_headers_that_promise_more_than_the_file_holds(source: Path) -> None:
    """Their numbers are what a configuration is measured by."""
    file = source / "model.safetensors"
    for shape in ([10**9, 10**9], [-4, 4], [4.0], "4", None, [True]):
        header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
        with pytest.raises(UserError, match=r"model\.safetensors is cut short or damaged"):
            checkpoint_files.inspect(source)


def test_students_behind_an_absurd_one_are_found(plain: Path, tmp_path: Path) -> None:
    for name in ("a-good", "b-absurd", "c-good"):
        shutil.copytree(plain, tmp_path / name)
    changed(tmp_path / "b-absurd", num_hidden_layers=10**7)
    whole, refused = watch.scan(tmp_path)
    assert list(whole) == ["a-good", "c-good"] and list(refused) == ["b-absurd"]
    assert "b-absurd" in refused["b-absurd"] and "num_hidden_layers = 10,000,000" in refused["b-absurd"]


# -- chat templates

TIME, MEMORY, ENDLESS = "it takes more than", "it needs too much memory", "it calls itself without end"
EITHER = f"{MEMORY}|{TIME}"
HARMFUL = {
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": TIME,
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}": TIME,
    "{{ 'x' * 3000000000 }}": MEMORY,
    "{% set n = namespace(x='xxxx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}": EITHER,
    "{{ 'x'.ljust(10**10) }}": MEMORY,
    "{{ '%9999999999d' % 1 }}": MEMORY,
    "{{ '{:>9999999999}'.format('x') }}": MEMORY,
    "{% macro f(n) %}{{ f(n+1) }}{% endmacro %}{{ f(0) }}": ENDLESS,
    "{% for i in range(10**9) %}{% endfor %}": "Range too big",
    "{% for i in range(50000) %}{{ messages[0].content }}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}": "characters of",
    "{{ ''.__class__.__mro__ }}": "is unsafe",
    "{% include '/etc/passwd' %}": "no loader",
    "{% for %}": "line 1",
    "{{ raise_exception('Only tool\nconversations') }}": "Only tool conversations",
    "{{ nothing.at_all }}": "'nothing' is undefined",
    "\ud800{{ messages[0].content }}": "half a character",
}


def chat(text: str = "hi") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("template", HARMFUL)
def test_a_template_is_stopped_and_the_student_named(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.5)
    renderer = Renderer(template, {}, "my-student", "2024-07-26")
    for _ in range(2):  # a new process each time
        with pytest.raises(UserError) as caught:
            renderer.render([chat()])
        assert "the student my-student" in caught.value.message and re.search(HARMFUL[template], caught.value.message)
        assert "student.template" in caught.value.remedy and "\n" not in caught.value.message


ORDINARY = [
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m.content | trim }}{{ eos_token }}\n{% endfor %}",
    "{{ bos_token }}{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    "{%- for m in messages -%}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson }}{% break %}{%- endfor -%}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}\n    {# aside #}\n  x\n",
    "{% set n = namespace(seen=false) %}{% for m in messages %}{% set n.seen = 1 %}{% endfor %}{{ n.seen }}{{ tools }}",
    "{{ messages | tojson(indent=2) }}{{ dict(a=1) }}{{ '<b>' | tojson }}{{ messages[0].content.split(' ')[-1] }}",
    "{% macro say(m) %}[{{ m.content | upper }}]{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}{{date}}",
]


def test_the_text_is_the_one_that_transformers_writes(plain: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(plain)
    turns = [chat("a <b> & 'c'"), [*chat("  é木🙂\nline "), {"role": "assistant", "content": "Yes.", "name": None}]]
    for template in ORDINARY:
        tokenizer.chat_template = template
        ours = Renderer(template, tokenizer.special_tokens_map, "s", "2024-07-26")
        for options in ({}, {"add_generation_prompt": True}, {"date": "today"}):
            theirs = [tokenizer.apply_chat_template(turn, tokenize=False, **options) for turn in turns]
            assert ours.render(turns, **options) == theirs, template


def test_many_conversations_and_long_ones(plain: Path) -> None:
    renderer = Renderer("{{ messages[0].content }}", {}, "s", "2024-07-26")
    texts = [f"{i} \n\t\u2028 é" for i in range(2000)] + ["x" * 6_000_000, "y" * 3_000_000]
    assert renderer.render([chat(text) for text in texts]) == texts
    assert renderer.render([]) == []


def test_the_process_has_no_secrets_and_ends_with_its_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of-nobody")
    renderer = Renderer("{{ messages[0].content }}", {}, "s", "2024-07-26")
    renderer.render([chat()])
    child = renderer._child
    assert child and child.poll() is None
    assert b"of-nobody" not in Path(f"/proc/{child.pid}/environ").read_bytes()
    del renderer
    assert child.wait(30) is not None


def test_scoring_with_such_a_template_names_the_student(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.5)
    settings = settings_for(template="chat")
    lake = make_lake(home, source=tmp_path / "student")
    (tmp_path / "student" / "chat_template.jinja").write_text(next(iter(HARMFUL)))
    with pytest.raises(UserError, match="the student tiny") as caught:
        scores.STAGE.run(settings, lake, "tiny")
    assert TIME in caught.value.message and os.sep not in caught.value.message
