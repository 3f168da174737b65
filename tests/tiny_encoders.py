"""Folders of tiny random models that embed, as sentence-transformers writes them: weights, tokenizer, modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

WIDTH = 48
POSITIONS = 130
# In the order of RoBERTa's ids, whose positions begin behind that of the padding.
BEGIN, PAD, END, UNKNOWN = "<s>", "<pad>", "</s>", "<unk>"
_BERT: dict[str, Any] = {
    "hidden_size": WIDTH, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "mpnet": _BERT,
    "electra": {**_BERT, "embedding_size": 32},
    "distilbert": {"dim": WIDTH, "hidden_dim": 80, "n_layers": 2, "n_heads": 4, "max_position_embeddings": POSITIONS},
    "modernbert": {**_BERT, "num_hidden_layers": 4, "local_attention": 16, "global_attn_every_n_layers": 3},
    "qwen3": {**_BERT, "num_key_value_heads": 2, "head_dim": 16},
}
DECODERS = frozenset({"qwen3"})


def tokenizer(*, begins: bool = True) -> Any:
    """One token a byte between <s> (with `begins`) and </s>; its file asks for cuts and padding, as published ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: number for number, text in enumerate((BEGIN, PAD, END, UNKNOWN, *alphabet))}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=UNKNOWN))
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (BEGIN, PAD, END, UNKNOWN)])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}" if begins else f"$A {END}", special_tokens=[(BEGIN, 0), (END, 2)]
    )
    made.enable_truncation(16)
    made.enable_padding(pad_id=1, pad_token=PAD, length=16)
    kind: Any = transformers.PreTrainedTokenizerFast
    return kind(
        tokenizer_object=made, bos_token=BEGIN, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, cls_token=BEGIN,
        sep_token=END, model_max_length=POSITIONS - 2,
    )  # fmt: skip


def encoder_folder(
    parent: Path,
    family: str,
    *,
    pooling: str = "mean",
    normalizes: bool = False,
    headed: bool = False,
    dtype: torch.dtype = torch.float32,
    **settings: Any,
) -> Path:
    """`parent`/tiny-`family`, with a pooling in sentence-transformers' words; "" for a folder that says nothing.

    `headed`: saved with the head that it was trained with. `settings` go to sentence_bert_config.json.
    """
    folder = parent / f"tiny-{family}"
    ids: dict[str, Any] = {"vocab_size": 260, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config = transformers.CONFIG_MAPPING[family](**ids, **CONFIGS[family])
    decodes = family in DECODERS
    head: Any = transformers.AutoModelForCausalLM if decodes else transformers.AutoModelForMaskedLM
    auto: Any = head if headed else transformers.AutoModel
    torch.manual_seed(0)
    model = auto.from_config(config, dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    tokenizer(begins=not decodes).save_pretrained(folder)
    if pooling:
        write_modules(folder, pooling, normalizes=normalizes)
    if settings:
        (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


def write_modules(folder: Path, pooling: str, *, normalizes: bool = False, more: tuple[str, ...] = ()) -> None:
    """modules.json and the Pooling module's config; `more` are modules behind it."""
    kinds = ("Transformer", "Pooling", *more, *(("Normalize",) if normalizes else ()))
    modules = [
        {"idx": number, "name": str(number), "path": "" if not number else f"{number}_{kind}",
         "type": f"sentence_transformers.models.{kind}"}
        for number, kind in enumerate(kinds)
    ]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    flags = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    written: dict[str, Any] = {f"pooling_mode_{flag}": flag.removesuffix("_tokens").removesuffix("_token") == pooling
                               for flag in flags}  # fmt: skip
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH} | written))
