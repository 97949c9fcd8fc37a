"""Token ids over tokenizers that differ in BOS, prefix spaces and merges: what both protocols promise of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from student_tokenizers import TOKENIZERS, tokenizer_named
from tiny_student import make_tiny_tokenizer

from srt_assets.core.errors import UserError
from srt_assets.core.scoring.batching import plan
from srt_assets.core.scoring.encoding import Encoder, Pass, Texts
from srt_assets.core.tables import PASSES

TEXT = st.text(alphabet=st.sampled_from(" \n:.,'aAbe1éß木🙂USER</s>"), max_size=40) | st.text(max_size=30)
NAMES = ["vicuna", "alpaca", "wizardlm", "none"]
CANDIDATE = st.builds(Texts, TEXT, TEXT, TEXT)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return tokenizer_named(request.param)


@QUICK
@given(candidate=CANDIDATE, template=st.sampled_from(NAMES), room=st.integers(8, 300))
def test_aligned_scores_the_same_ids_with_and_without_context(tokenizer, candidate, template, room):
    encoder = Encoder(tokenizer, template, "aligned", room)
    encoded = encoder.encode([candidate])[0]
    for direct, given_context in (PASSES[:2], PASSES[2:]):
        a, b = encoded[direct], encoded[given_context]
        if isinstance(a, str) or isinstance(b, str):
            assert a == b
            continue
        assert a.n_scored >= 1 and a.start >= 1 and b.start >= 1
        assert np.array_equal(a.ids[a.start :], b.ids[b.start :])
        assert a.truncated == b.truncated
        assert len(b.ids) <= room
        assert tuple(a.ids[: len(encoder.bos)]) == encoder.bos
        # Without BOS the first target token is context in both.
        assert a.start == (len(encoder.bos) or 1)


@QUICK
@given(candidate=CANDIDATE)
def test_aligned_targets_are_the_text_tokenized_alone(tokenizer, candidate):
    encoder = Encoder(tokenizer, "vicuna", "aligned", 10_000)
    one = encoder.encode([candidate])[0]["response_given_prompt"]
    if isinstance(one, Pass):
        alone = tokenizer(candidate.response, add_special_tokens=False)["input_ids"]
        assert one.ids[len(one.ids) - len(alone) :].tolist() == alone
        assert one.start == len(one.ids) - len(alone) + (0 if encoder.bos else 1)


@QUICK
@given(candidate=CANDIDATE, length=st.integers(1, 120))
def test_training_sees_the_scored_ids_plus_eos_and_learns_the_first_one_too(tokenizer, candidate, length):
    encoder = Encoder(tokenizer, "alpaca", "aligned", 10_000)
    scored = encoder.encode([candidate])[0]["response_given_prompt"]
    trained = encoder.for_training([candidate], 10_000)[0]
    short = encoder.for_training([candidate], length)[0]
    if isinstance(scored, Pass):
        assert isinstance(trained, Pass)
        assert trained.ids.tolist() == [*scored.ids.tolist(), tokenizer.eos_token_id]
        assert trained.start == scored.start - (0 if encoder.bos else 1)
    elif isinstance(trained, Pass):  # a single token that scoring has nothing to compare with
        assert scored == "no_scored_tokens" and len(trained.ids) == trained.start + 2
    else:
        assert trained == scored
    if isinstance(short, Pass):
        assert len(short.ids) <= length


@QUICK
@given(candidates=st.lists(CANDIDATE, min_size=1, max_size=4), protocol=st.sampled_from(["aligned", "official"]))
def test_a_candidate_is_encoded_the_same_in_any_company(tokenizer, candidates, protocol):
    encoder = Encoder(tokenizer, "vicuna", protocol, 200)
    for candidate, together in zip(candidates, encoder.encode(candidates), strict=True):
        alone = encoder.encode([candidate])[0]
        for name in PASSES:
            a, b = alone[name], together[name]
            assert a.key == b.key if isinstance(a, Pass) and isinstance(b, Pass) else a == b


@QUICK
@given(candidate=CANDIDATE, room=st.integers(8, 300))
def test_official_is_the_whole_text_cut_on_the_right(tokenizer, candidate, room):
    from student_oracle import GUESS, prompt

    try:
        "".join(candidate).encode()
    except UnicodeEncodeError:
        return
    encoded = Encoder(tokenizer, "vicuna", "official", room).encode([candidate])[0]
    own = prompt("vicuna", candidate.instruction, candidate.input)
    contexts = (
        (
            encoded["response_given_prompt"],
            own,
            candidate.response,
        ),
        (
            encoded["instruction_given_response"],
            prompt("vicuna", GUESS.format(candidate.response), ""),
            candidate.instruction + candidate.input,
        ),
    )
    for one, context, target in contexts:
        if isinstance(one, Pass):
            assert one.ids.tolist() == tokenizer(context + target)["input_ids"][:room]
        if not candidate.response:
            assert one == "empty_target"


def test_merges_across_the_boundary_do_not_happen(tokenizer):
    """A template's end and a response's begin that one token would cover stay two."""
    candidate = Texts("Say", "", ":) yes")
    one = Encoder(tokenizer, "vicuna", "aligned", 500).encode([candidate])[0]["response_given_prompt"]
    alone = tokenizer(":) yes", add_special_tokens=False)["input_ids"]
    assert one.ids[-len(alone) :].tolist() == alone


@pytest.mark.parametrize("protocol", ["aligned", "official"])
def test_text_no_tokenizer_takes_has_a_status(tokenizer, protocol):
    good = Texts("Name a fruit.", "", "A sweet apple.")
    encoder = Encoder(tokenizer, "vicuna", protocol, 500)
    bad, beside = encoder.encode([Texts("a \ud800 b", "", "c d e"), good])
    assert set(bad.values()) == {"not_encodable"}
    assert all(isinstance(beside[name], Pass) for name in PASSES)


@pytest.mark.parametrize("template", ["vicuna", "chat"])
def test_names_of_control_tokens_in_an_answer_are_text(template):
    """An answer about HTML would end in its middle, and the student would learn to end there."""
    encoder = Encoder(make_tiny_tokenizer(bos=True), template, "aligned", 500)
    html = Texts("Strike a word </s>.", "", "<p><s>old</s> new</p>")
    (one,) = encoder.for_training([html], 500)
    assert isinstance(one, Pass)
    bos, eos = (encoder.tokenizer.convert_tokens_to_ids(mark) for mark in ("<s>", "</s>"))
    answer = one.ids[one.start :].tolist()
    assert answer[-1] == eos and not {bos, eos} & set(answer[:-1])
    assert encoder.tokenizer.decode(answer[:-1]) == html.response
    passes = encoder.encode([html])[0]
    assert not {bos, eos} & set(passes["instruction"].ids[1:].tolist())


def test_chat_needs_a_chat_template(tokenizer):
    bare = tokenizer_named("bytes")
    bare.chat_template = None
    with pytest.raises(UserError, match="chat template"):
        Encoder(bare, "chat", "aligned", 100)


PASS = st.builds(
    lambda ids, cut: Pass(np.asarray(ids, dtype=np.int32), max(1, min(cut, len(ids) - 1))),
    st.lists(st.integers(0, 3), min_size=2, max_size=30),
    st.integers(1, 29),
)


@given(passes=st.lists(PASS, max_size=30), budget=st.integers(1, 100))
def test_batches_hold_every_pass_once_and_keep_the_budget(passes, budget):
    prefixes = [(0,), (0, 1), (1, 1, 1)]
    batches = plan(passes, budget, prefixes)
    assert sorted(i for b in batches for i in b.members) == list(range(len(passes)))
    for batch in batches:
        assert batch.tokens <= budget or len(batch.members) == 1
        for i in batch.members:
            assert tuple(passes[i].ids[: len(batch.prefix)]) == batch.prefix
            # The token that predicts the first scored one must go through the model.
            assert len(batch.prefix) < passes[i].start
