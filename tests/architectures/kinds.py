"""Tiny random checkpoints of the architectures that transformers ships: real configurations, some ten thousand weights.

One table of small sizes serves nearly all; what an architecture wants beside it stands in `OWN`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_student import make_tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

VOCABULARY = 320
_SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "word_embed_proj_dim", "lru_width"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "encoder_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group", "mamba_n_groups"), 1),
    **dict.fromkeys(("head_dim", "d_kv", "state_size", "mamba_d_state", "time_step_rank", "mamba_dt_rank"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_d_head", "mamba_num_heads", "mamba_head_dim"), 8),
    **dict.fromkeys(("n_positions", "max_position_embeddings", "max_seq_len", "max_sequence_length"), 1024),
    **{"mamba_chunk_size": 16, "chunk_size": 16, "mamba_expand": 2, "n_groups": 1, "rotary_dim": 4},
    **dict.fromkeys(("initializer_range", "init_std"), 0.3),  # wide enough that losses differ from ln(vocabulary)
}
_TOKENS = {"vocab_size": VOCABULARY, "unk_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
_LATENT |= {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": None}
_TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"]}
_GEMMA_N = {**_TWO_KINDS, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8}
_GEMMA_N |= {"num_kv_shared_layers": 0}
OWN: dict[str, dict[str, Any]] = {
    "deepseek_v2": _LATENT | {"first_k_dense_replace": 1, "num_experts_per_tok": 2},
    "deepseek_v3": _LATENT | {"first_k_dense_replace": 1},
    "falcon": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4},
    "gemma3n_text": _GEMMA_N | {"laurel_rank": 8, "activation_sparsity_pattern": [0.0, 0.0]},
    "gemma4_text": _GEMMA_N | {"global_head_dim": 8, "head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "hunyuan_v1_dense": {"head_dim": 8},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "minicpm3": _LATENT,
    "ministral": {"head_dim": 8, "sliding_window": 16},
    "mistral": {"sliding_window": 16},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "prophetnet": {"num_encoder_layers": 2, "num_decoder_layers": 2, "num_hidden_layers": None}
    | {"num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": (16, 16),
        "axial_pos_shape": (32, 32),
        "feed_forward_size": 48,
    }
    | {"attn_layers": ["local", "lsh"], "local_attn_chunk_length": 16, "lsh_attn_chunk_length": 16}
    | {"attention_head_size": 8, "num_hidden_layers": 2},
    "xlnet": {"d_inner": 48},
    "xlstm": {"head_dim": None, "v_head_dim": None},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "head_dim": None}
    | {"mamba_headdim": 8, "n_mamba_heads": 8, "mamba_ngroups": 1},
}
# What is left out ships for pictures or sound, needs packages of its own, or is another name of one that is here.
CAUSAL = """
    afmoe apertus arcee bailing_hybrid bamba beam bitnet bloom biogpt codegen cohere cohere2 cohere2_moe ctrl cwm
    deepseek_v2 deepseek_v3 deepseek_v4 diffllama doge ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_h1
    falcon_mamba flex_olmo gemma gemma2 gemma3_text gemma3n_text gemma4_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neo
    gpt_neox gpt_oss gptj granite granitemoe granitemoehybrid granitemoeshared helium hunyuan_v1_dense jamba jetmoe lfm2
    lfm2_moe llama llama4_text mamba mamba2 minicpm3 minimax minimax_m2 ministral ministral3 mistral mixtral
    modernbert-decoder mpt nanochat nemotron nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt persimmon phi
    phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_5_text qwen3_moe qwen3_next recurrent_gemma rwkv seed_oss smollm3 stablelm
    starcoder2 vaultgemma xglm xlstm zamba2
""".split()  # noqa: SIM905
# They load as causal language models, and are none.
LOOKS_AHEAD = """
    bert big_bird camembert electra ernie megatron-bert prophetnet rembert roberta roformer xlm xlm-roberta xlnet
""".split()  # noqa: SIM905
RANDOM = ("reformer",)  # hashes with random rotations
ENCODER_DECODER = ("bart", "blenderbot", "marian", "mbart", "mt5", "pegasus", "t5")


def config_of(kind: str) -> Any:
    """A small configuration of this kind."""
    known = AutoConfig.for_model(kind).to_dict()
    own = OWN.get(kind, {})
    sizes = {k: v for k, v in _SMALL.items() if known.get(k) is not None}
    sizes = {k: v for k, v in (sizes | own).items() if v is not None}
    return AutoConfig.for_model(kind, **_TOKENS, **sizes)


def save(kind: str, directory: Path) -> Path:
    """A checkpoint of this kind with a tokenizer, the same each time."""
    torch.manual_seed(0)
    maker = AutoModelForSeq2SeqLM if kind in ENCODER_DECODER else AutoModelForCausalLM
    maker.from_config(config_of(kind)).save_pretrained(directory)
    make_tiny_tokenizer(vocab=VOCABULARY).save_pretrained(directory)
    return directory
