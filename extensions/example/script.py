"""Every hook at work, harmlessly. Copy this folder under another name and keep the hooks that you need.

Start it with `python server.py --extensions example`.
"""

import gradio as gr
from transformers import LogitsProcessor

params = {
    "display_name": "Example",
    "is_tab": False,  # True: a tab of its own
    "signature": "Checked by an extension.",
    "calm": 0.0,
}
calls = []


class Calm(LogitsProcessor):
    """Takes a little off every token that the text holds already."""

    def __init__(self, amount):
        self.amount = amount

    def __call__(self, input_ids, scores):
        scores[0, input_ids[0].unique()] -= self.amount
        return scores


def setup():
    """Once, when Snug starts."""
    calls.clear()


def ui():
    """Controls on the Extensions tab. What a handler puts into `params` is kept for the next start."""
    signature = gr.Textbox(value=params["signature"], label="Signature under every reply")
    calm = gr.Slider(0, 5, value=params["calm"], step=0.1, label="Calm", info="Taken off words that were said already")
    signature.change(lambda text: params.update(signature=text), signature, None)
    calm.release(lambda amount: params.update(calm=amount), calm, None)


def custom_css():
    """A style sheet for the page."""
    return ".example-mark { color: var(--ink-3); font-size: 12.5px; margin-right: 10px; }"


def custom_js():
    """A script for the page, run once it stands. `snug.eachMessage` hands it every message that is drawn."""
    return """
    snug.eachMessage(({ node, role }) => {
      if (role !== "assistant" || node.querySelector(".example-mark")) return;
      const words = node.querySelector(".body").textContent.split(/\\s+/).filter(Boolean).length;
      node.querySelector(".message-foot")?.prepend(snug.el("span.example-mark", {}, `${words} words`));
    });
    """


def history_modifier(history):
    """What was said before, as pairs of question and reply."""
    return history


def state_modifier(state):
    """Everything about this reply: parameters, names, the character's texts."""
    state["max_new_tokens"] = min(state["max_new_tokens"], 4096)
    return state


def chat_input_modifier(text, visible_text, state):
    """A new message: for the model, and for the page."""
    return text, visible_text


def input_modifier(string, state, is_chat=False):
    """What the model reads of a new message, or of the notebook's text. Yours stays on the page as you wrote it."""
    return string.strip() if is_chat else string


def bot_prefix_modifier(string, state):
    """How the reply begins, for the model alone."""
    return string


def logits_processor_modifier(processor_list, input_ids):
    """In the engine's process, with torch: how likely each token is."""
    if params["calm"]:
        processor_list.append(Calm(params["calm"]))
    return processor_list


def custom_generate_reply(question, original_question, seed, state, stopping_strings, is_chat=False):
    """A reply in place of the model's, the whole so far each time; without a `yield` the model writes it."""
    if original_question.strip() == "/example":
        yield "Hello"
        yield "Hello, this reply was written by an extension."


def output_modifier(string, state, is_chat=False):
    """What the page shows of a finished reply. The model's own words stay what it reads later, but in the notebook."""
    return f"{string}\n\n*{params['signature']}*" if params["signature"] and is_chat else string
