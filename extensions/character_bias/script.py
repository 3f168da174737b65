"""Puts words into the speaker's mouth: every reply begins with them, for the model alone."""

import gradio as gr

params = {
    "display_name": "Character bias",
    "active": True,
    "bias": "*in a good mood*",
}
CHOICES = ["*in a good mood*", "*sighs, and answers curtly*", "*whispers*", "*laughs*", "*thinks for a while*"]


def bot_prefix_modifier(string, state):
    if params["active"] and params["bias"].strip():
        return f"{string} {params['bias'].strip()} "
    return string


def ui():
    active = gr.Checkbox(value=params["active"], label="On")
    bias = gr.Dropdown(
        [*dict.fromkeys([params["bias"], *CHOICES])],
        value=params["bias"],
        allow_custom_value=True,
        label="How the speaker feels",
        info="Choose one, or write your own",
    )
    active.change(lambda value: params.update(active=value), active, None)
    bias.change(lambda value: params.update(bias=value or ""), bias, None)
