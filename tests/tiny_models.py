"""Tiny random models of many families, as folders that look like downloaded ones: `tiny_model("llama", folder)`.

fp32 safetensors with two or three layers, a byte-level tokenizer (or a sentencepiece model alone) and a chat
template. Weights come from a fixed seed and are large enough that greedy decoding does not fall into one repeated
token; rows of special tokens are zero, so greedy decoding never ends by itself. The text they write means nothing.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy
import sentencepiece
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PROSE = Path(__file__).parent / "data" / "prose.txt"
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
EOS_ID, PAD_ID = 258, 259
COUNTED = "".join(map(chr, range(ord("!"), ord("~") + 1)))
"""The byte tokenizer's first tokens."""
BYTE_VOCAB = 256 + len(SPECIALS)
SENTENCEPIECE_VOCAB = 400
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_INIT_STD = {"gpt_neox": 0.6, "bloom": 0.15, "t5": 0.5, "bart": 0.08}
_DEFAULT_INIT_STD = 0.3
_POSITION_STD = 3.0

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
_GPT_LIKE: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024}

_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _LLAMA_LIKE),
    "mistral": ("MistralConfig", {**_LLAMA_LIKE, "sliding_window": None}),
    "qwen3": ("Qwen3Config", {**_LLAMA_LIKE, "head_dim": 16}),
    "phi3": ("Phi3Config", _LLAMA_LIKE),
    "gemma3": (
        "Gemma3TextConfig",
        {**_LLAMA_LIKE, "num_hidden_layers": 3, "head_dim": 16, "sliding_window": 32, "query_pre_attn_scalar": 16,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "tie_word_embeddings": False},
    ),
    "mixtral": ("MixtralConfig", {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt2": ("GPT2Config", _GPT_LIKE),
    "gptj": ("GPTJConfig", {**_GPT_LIKE, "rotary_dim": 8}),
    "gpt_neox": (
        "GPTNeoXConfig",
        {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 1024},
    ),
    "opt": (
        "OPTConfig",
        {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "max_position_embeddings": 1024},
    ),
    "bloom": ("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4, "tie_word_embeddings": False}),
    "falcon": (
        "FalconConfig",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 1024,
         "alibi": False, "multi_query": True, "parallel_attn": True, "bias": False},
    ),
    "mamba2": (
        "Mamba2Config",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 16, "expand": 2, "state_size": 16,
         "n_groups": 2, "chunk_size": 16},
    ),
    "t5": (
        "T5Config",
        {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": PAD_ID,
         "dropout_rate": 0.0, "tie_word_embeddings": False},
    ),
    "bart": (
        "BartConfig",
        {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 1024,
         "decoder_start_token_id": EOS_ID, "forced_eos_token_id": None, "forced_bos_token_id": None},
    ),
}  # fmt: skip

# Further families, for what is worked out from a config alone: they have no tokenizer and no trained-looking weights.
_FURTHER_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", _LLAMA_LIKE),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**_LLAMA_LIKE, "head_dim": 16, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        {**_LLAMA_LIKE, "head_dim": 16, "num_hidden_layers": 4, "num_experts": 8, "num_experts_per_tok": 2,
         "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "linear_num_value_heads": 4,
         "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        {**_LLAMA_LIKE, "num_key_value_heads": 4, "num_hidden_layers": 3, "moe_intermediate_size": 32,
         "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "n_shared_experts": 1,
         "first_k_dense_replace": 1, "kv_lora_rank": 32, "q_lora_rank": 48, "qk_rope_head_dim": 8, "v_head_dim": 16,
         "qk_nope_head_dim": 16},
    ),
    "gemma2": (
        "Gemma2Config",
        {**_LLAMA_LIKE, "head_dim": 16, "sliding_window": 32, "query_pre_attn_scalar": 16,
         "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt_oss": (
        "GptOssConfig",
        {**_LLAMA_LIKE, "head_dim": 16, "sliding_window": 32, "num_local_experts": 4, "num_experts_per_tok": 2,
         "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "olmo2": ("Olmo2Config", _LLAMA_LIKE),
    "cohere": ("CohereConfig", _LLAMA_LIKE),
    "starcoder2": ("Starcoder2Config", {**_LLAMA_LIKE, "sliding_window": None}),
    "stablelm": ("StableLmConfig", _LLAMA_LIKE),
    "phi": ("PhiConfig", _LLAMA_LIKE),
    "granite": ("GraniteConfig", _LLAMA_LIKE),
    "smollm3": ("SmolLM3Config", _LLAMA_LIKE),
    "gpt_bigcode": ("GPTBigCodeConfig", {**_GPT_LIKE, "multi_query": True}),
    "codegen": ("CodeGenConfig", {**_GPT_LIKE, "rotary_dim": 8}),
    "mpt": ("MptConfig", {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 1024}),
    "mamba": ("MambaConfig", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 16}),
}  # fmt: skip

FURTHER = tuple(_FURTHER_CONFIGS)
CAUSAL = tuple(name for name in _CONFIGS if name not in ("t5", "bart"))
ENCODER_DECODER = ("t5", "bart")
SENTENCEPIECE = ("sentencepiece", "sentencepiece_slow")
FAMILIES = (*CAUSAL, *ENCODER_DECODER, *SENTENCEPIECE)


def tiny_model(family: str, folder: Path) -> Path:
    """The folder `folder`/`family` holding a model of `family` (one of FAMILIES), made at the first call.

    `sentencepiece` is a Llama with a tokenizer.model and no tokenizer.json, which transformers converts at load;
    `sentencepiece_slow` is a GPT-2 whose tokenizer stays the Python one.
    """
    target = folder / family
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=folder, prefix=".building-"))
    if family in SENTENCEPIECE:
        _write_sentencepiece_tokenizer(building, slow=family == "sentencepiece_slow")
        base = "gpt2" if family == "sentencepiece_slow" else "llama"
        _build_model(base, vocab_size=SENTENCEPIECE_VOCAB, eos_id=2, pad_id=0, specials=range(3)).save_pretrained(
            building
        )
    else:
        byte_tokenizer().save_pretrained(building)
        specials = range(256, BYTE_VOCAB)
        _build_model(family, vocab_size=BYTE_VOCAB, eos_id=EOS_ID, pad_id=PAD_ID, specials=specials).save_pretrained(
            building
        )
    try:
        building.rename(target)
    except OSError:  # another worker was first
        shutil.rmtree(building)
    return target


def tiny_config(family: str, **changes: Any) -> Any:
    """The config of a tiny model of `family`, one of CAUSAL, ENCODER_DECODER or FURTHER, with `changes` made to it."""
    config_name, options = {**_CONFIGS, **_FURTHER_CONFIGS}[family]
    ids = {"bos_token_id": 256, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    return getattr(transformers, config_name)(**{"vocab_size": BYTE_VOCAB, **ids, **options, **changes})


def tiny_gguf(
    folder: Path, *, width: int = 64, inner: int = 96, layers: int = 2, kind: str = "F16", context: int = 1024,
    readable: bool = False, counting: bool = False, pooling: int = 0, part_tensors: int = 0, template: str = "",
) -> Path:  # fmt: skip
    """A .gguf file of a small Llama with random weights and the byte tokenizer, made at the first call.

    `kind` is what ggml calls the format of its matrices: F16, Q8_0, Q4_0. A `readable` one writes ASCII when greedy; a
    `counting` one writes COUNTED round and round, from where the prompt ends, and no rounding makes it waver.
    `pooling` is llama.cpp's number of how it embeds texts, 0 for a file that says nothing. With `part_tensors` it comes
    in parts of so many tensors, and the path is not that of a file.
    """
    usual = (width, layers, kind) == (64, 2, "F16")
    name = "readable" if readable else "counting" if counting else "tiny"
    path = folder / (f"{name}.gguf" if usual else f"{name}-{width}-{layers}-{kind}.gguf")
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    heads = 4
    quantization = gguf.GGMLQuantizationType[kind]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=part_tensors)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    if template:
        writer.add_chat_template(template)
    if pooling:
        writer.add_pooling_type(gguf.PoolingType(pooling))
    tokens = [*alphabet, *SPECIALS, "ab"]  # the format wants one merge at least
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(alphabet) + [3] * len(SPECIALS) + [1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(EOS_ID)
    shapes = {"token_embd": (len(tokens), width), "output": (len(tokens), width), "output_norm": (width,)}
    for block in (f"blk.{layer}" for layer in range(layers)):
        shapes |= {f"{block}.{name}_norm": (width,) for name in ("attn", "ffn")}
        shapes |= {f"{block}.attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
        shapes |= {f"{block}.ffn_gate": (inner, width), f"{block}.ffn_up": (inner, width)}
        shapes[f"{block}.ffn_down"] = (width, inner)
    chance = numpy.random.default_rng(0)
    for name, shape in shapes.items():
        if len(shape) > 1:
            matrix = chance.normal(0, _DEFAULT_INIT_STD, shape).astype("float32")
            if readable and name == "output":
                matrix *= numpy.array([[len(token) == 1 and " " < token < "\x7f"] for token in tokens])
            if counting and name == "token_embd":
                following = numpy.zeros_like(matrix)
                following[: len(COUNTED)] = numpy.roll(matrix[: len(COUNTED)], 1, axis=0)
            elif counting and name == "output":
                matrix = following
            elif counting and name.endswith(("attn_output", "ffn_down")):  # the layers say nothing
                matrix *= 0
            packed = gguf.quants.quantize(matrix, quantization)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=quantization)
        else:
            writer.add_tensor(f"{name}.weight", numpy.ones(shape, "float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a byte, and the four special tokens, with a ChatML template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: number for number, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer_class: Any = transformers.PreTrainedTokenizerFast
    return tokenizer_class(  # type: ignore[no-any-return]
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|endoftext|>", "<|im_start|>"],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _build_model(family: str, *, vocab_size: int, eos_id: int, pad_id: int, specials: Sequence[int]) -> Any:
    """A seeded model whose special tokens' embedding and output rows are zero."""
    config_name, options = _CONFIGS[family]
    ids = {"bos_token_id": specials[0], "eos_token_id": eos_id, "pad_token_id": pad_id}
    config = getattr(transformers, config_name)(vocab_size=vocab_size, **ids, **options)
    auto: Any = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(sum(family.encode()))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "conv" not in name:
                std = (
                    _POSITION_STD
                    if "embed_positions" in name or "relative" in name
                    else _INIT_STD.get(family, _DEFAULT_INIT_STD)
                )
                weight.normal_(0, std, generator=generator)
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            table.weight[list(specials)] = 0
            if getattr(table, "bias", None) is not None:
                table.bias.zero_()
    return model


def _init_std(family: str, parameter: str) -> float:
    if "embed_positions" in parameter or "relative" in parameter:
        return _POSITION_STD
    return _INIT_STD.get(family, _DEFAULT_INIT_STD)


def _write_sentencepiece_tokenizer(folder: Path, *, slow: bool) -> None:
    """A sentencepiece model trained on the prose, and the least of a tokenizer_config.json."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE.read_text(encoding="utf-8").splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=SENTENCEPIECE_VOCAB,
        byte_fallback=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        character_coverage=1.0,
        minloglevel=2,
    )
    name = "spiece.model" if slow else "tokenizer.model"
    (folder / name).write_bytes(model.getvalue())
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    settings = {"tokenizer_class": "GPTSw3Tokenizer" if slow else "LlamaTokenizer", **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT_TEMPLATE}))
