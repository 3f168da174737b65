"""Reads replies aloud in the browser's own voice; nothing leaves this machine. A button stands under every reply."""

from pathlib import Path

import gradio as gr

HERE = Path(__file__).parent
params = {
    "display_name": "Speech",
}


def ui():
    gr.HTML(
        "<p>The loudspeaker under a reply reads it aloud, and stops it. The voice is your browser's.</p>"
        "<div id='snug-speech'></div>",
        js_on_load="window.snugSpeech?.settings(element.querySelector('#snug-speech'))",
        apply_default_css=False,
    )


def custom_css():
    return (HERE / "page.css").read_text(encoding="utf-8")


def custom_js():
    return (HERE / "page.js").read_text(encoding="utf-8")
