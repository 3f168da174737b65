"""Tiny configs of many families, as their config.json would say, and folders of random weights made of them.

For counting bytes: no tokenizer, nothing that generates sense. tiny_models.py makes models that can be talked to.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

VOCAB = 260
_LLAMA: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
_GPT: dict[str, Any] = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512}
_PLAIN = {name: value for name, value in _LLAMA.items() if name != "num_key_value_heads"}
_MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MLA: dict[str, Any] = {
    "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "moe_intermediate_size": 32, "kv_lora_rank": 24, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "first_k_dense_replace": 1, "head_dim": 8,
}  # fmt: skip
_LINEAR: dict[str, Any] = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
_MAMBA_2: dict[str, Any] = {
    "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_heads": 8, "mamba_d_head": 16,
    "mamba_n_groups": 1, "mamba_chunk_size": 16,
}  # fmt: skip
_BART: dict[str, Any] = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 96, "decoder_ffn_dim": 80,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 512,
}  # fmt: skip
_GEMMA_4: dict[str, Any] = {
    **_LLAMA, "num_hidden_layers": 6, "head_dim": 16, "global_head_dim": 32, "sliding_window": 32,
    "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 260,
    "tie_word_embeddings": True,
    "layer_types": [f"{kind}_attention" for kind in ("sliding", "sliding", "sliding", "full", "sliding", "full")],
}  # fmt: skip
_T5: dict[str, Any] = {
    "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "llama_tied": {**_LLAMA, "tie_word_embeddings": True, "model_type": "llama"},
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gptj": {**_GPT, "rotary_dim": 8},
    "gpt_neo": {
        "hidden_size": 64, "intermediate_size": 96, "num_layers": 4, "num_heads": 4, "max_position_embeddings": 512,
        "attention_types": [[["global", "local"], 2]], "window_size": 32,
    },
    "gpt_neox": _PLAIN,
    "codegen": {**_GPT, "rotary_dim": 8, "n_ctx": 512},
    "opt": {**_PLAIN, "ffn_dim": 96, "word_embed_proj_dim": 64},
    "bloom": {"hidden_size": 64, "n_layer": 3, "n_head": 4},
    "mpt": {"d_model": 64, "n_layers": 3, "n_heads": 4, "max_seq_len": 512},
    "falcon": {**_PLAIN, "multi_query": True, "new_decoder_architecture": False, "parallel_attn": True},
    "falcon_new": {**_PLAIN, "num_kv_heads": 2, "new_decoder_architecture": True, "model_type": "falcon"},
    "mistral": {**_LLAMA, "sliding_window": 32},
    "mixtral": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "gemma": {**_LLAMA, "head_dim": 32, "tie_word_embeddings": True},
    "gemma2": {**_LLAMA, "head_dim": 32, "sliding_window": 32, "query_pre_attn_scalar": 32,
               "tie_word_embeddings": True},
    "gemma3_text": {**_LLAMA, "head_dim": 32, "sliding_window": 32, "query_pre_attn_scalar": 32,
                    "num_hidden_layers": 7, "tie_word_embeddings": True},
    "qwen2": _LLAMA,
    "qwen2_moe": {**_LLAMA, **_MOE, "shared_expert_intermediate_size": 48},
    "qwen3": {**_LLAMA, "head_dim": 32},
    "qwen3_moe": {**_LLAMA, **_MOE, "head_dim": 32, "mlp_only_layers": [0]},
    "qwen3_next": {**_LLAMA, **_MOE, **_LINEAR, "num_hidden_layers": 4, "head_dim": 16,
                   "shared_expert_intermediate_size": 32},
    "phi": _LLAMA,
    "phi3": {**_LLAMA, "pad_token_id": 0},
    "phimoe": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "starcoder2": _LLAMA,
    "stablelm": _LLAMA,
    "cohere": {**_LLAMA, "tie_word_embeddings": True},
    "cohere2": {**_LLAMA, "sliding_window": 32, "num_hidden_layers": 4, "tie_word_embeddings": True},
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "olmoe": {**_LLAMA, "num_experts": 4, "num_experts_per_tok": 2},
    "granite": _LLAMA,
    "granitemoe": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoehybrid": {**_LLAMA, **_MAMBA_2, "num_local_experts": 4, "num_experts_per_tok": 2,
                         "shared_intermediate_size": 48, "layer_types": ["mamba", "attention", "mamba"]},
    "deepseek_v2": {**_LLAMA, **_MLA, "topk_method": "greedy"},
    "deepseek_v3": {**_LLAMA, **_MLA},
    "gpt_oss": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 32,
                "num_hidden_layers": 4},
    "mamba": {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 8},
    "mamba2": {"hidden_size": 64, "num_hidden_layers": 3, "num_heads": 8, "head_dim": 16, "expand": 2,
               "state_size": 16, "n_groups": 2, "chunk_size": 16},
    "falcon_mamba": {"hidden_size": 64, "num_hidden_layers": 3, "state_size": 8},
    "jamba": {**_LLAMA, "num_hidden_layers": 4, "attn_layer_period": 4, "attn_layer_offset": 2,
              "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 4, "mamba_d_state": 8,
              "mamba_dt_rank": 4, "use_mamba_kernels": False},
    "bamba": {**_LLAMA, **_MAMBA_2, "num_hidden_layers": 4, "attn_layer_indices": [1]},
    "falcon_h1": {**_LLAMA, **_MAMBA_2, "head_dim": 16, "mamba_d_ssm": 128},
    "lfm2": {**_LLAMA, "layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3},
    "nemotron": _LLAMA,
    "smollm3": {**_LLAMA, "pad_token_id": 0},
    "glm4": {**_LLAMA, "head_dim": 16, "pad_token_id": 0},
    "exaone4": {**_LLAMA, "sliding_window": 32, "sliding_window_pattern": 4, "num_hidden_layers": 4},
    "nemotron_h": {**_LLAMA, "hybrid_override_pattern": "M-*M", "num_hidden_layers": 4, "mamba_num_heads": 8,
                   "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2, "conv_kernel": 4, "chunk_size": 16,
                   "head_dim": 16},
    "zamba2": {**_LLAMA, "num_key_value_heads": 4, "mamba_d_state": 16, "mamba_expand": 2, "n_mamba_heads": 8,
               "mamba_ngroups": 2, "num_hidden_layers": 4, "chunk_size": 16, "num_mem_blocks": 1, "use_mem_rope": True,
               "layers_block_type": ["mamba", "hybrid", "mamba", "mamba"]},
    "minimax": {**_LLAMA, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
                "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "gemma3n_text": {**_LLAMA, "num_hidden_layers": 5, "head_dim": 16, "num_kv_shared_layers": 2, "sliding_window": 32,
                     "intermediate_size": [96] * 5, "laurel_rank": 4, "hidden_size_per_layer_input": 8,
                     "vocab_size_per_layer_input": VOCAB, "altup_num_inputs": 2, "tie_word_embeddings": True,
                     "activation_sparsity_pattern": [0.0] * 5,
                     "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "full", "sliding", "full")]},
    "gemma4_text": _GEMMA_4,
    "gemma4_text_k_eq_v": {**_GEMMA_4, "model_type": "gemma4_text", "attention_k_eq_v": True,
                           "num_global_key_value_heads": 1, "global_head_dim": 64},
    "t5": _T5,
    "mt5": {**_T5, "tie_word_embeddings": False},
    "bart": _BART,
}  # fmt: skip


def tiny_config(family: str) -> Any:
    """The transformers config of one of CONFIGS."""
    options = dict(CONFIGS[family])
    model_type = options.pop("model_type", family)
    ids = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2}
    return transformers.CONFIG_MAPPING[model_type](**{**ids, **options})


def tiny_folder(family: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """`folder`/`family`, holding config.json and model.safetensors in `dtype`; made at the first call."""
    target = folder / family
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(family)
    auto: Any = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    building = Path(tempfile.mkdtemp(dir=folder, prefix=".building-"))
    auto.from_config(config, dtype=dtype).save_pretrained(building)
    try:
        building.rename(target)
    except OSError:  # another worker was first
        shutil.rmtree(building)
    return target
