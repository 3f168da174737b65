"""Keeps a reply from ending, or from ending a paragraph, before it has a given number of tokens."""

import gradio as gr
from transformers import LogitsProcessor

from modules import shared

params = {
    "display_name": "Long replies",
    "tokens": 120,
    "paragraph": True,
}


class NotYet(LogitsProcessor):
    """Forbids some tokens until so many have been written."""

    def __init__(self, begin, tokens, forbidden):
        self.end = begin + tokens
        self.forbidden = forbidden

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] < self.end:
            scores[:, self.forbidden] = -float("inf")
        return scores


def _ends():
    """Tokens that end a reply: the model's own, and with `paragraph` those that hold a line's end."""
    ends = getattr(shared.model.generation_config, "eos_token_id", None)
    found = set(ends if isinstance(ends, list) else [ends]) | {shared.tokenizer.eos_token_id}
    if params["paragraph"]:
        for text in ("\n", "\n\n", "a\n", "a\n\n"):
            found.add(shared.tokenizer.encode(text, add_special_tokens=False)[-1])
    return sorted(token for token in found if token is not None)


def logits_processor_modifier(processor_list, input_ids):
    if params["tokens"]:
        processor_list.append(NotYet(input_ids.shape[1], int(params["tokens"]), _ends()))
    return processor_list


def ui():
    tokens = gr.Slider(0, 1000, value=params["tokens"], step=10, label="Shortest reply (tokens)", info="0 is off")
    paragraph = gr.Checkbox(value=params["paragraph"], label="Without a new line until then")
    tokens.release(lambda value: params.update(tokens=value), tokens, None)
    paragraph.change(lambda value: params.update(paragraph=value), paragraph, None)
