"""How the page looks: Gradio's theme in Snug's colours, and the style sheets and scripts of static/.

Everything comes from this machine: the fonts are files that Gradio brings along.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.themes.utils.fonts import LocalFont

STATIC = Path(__file__).parent / "static"
STYLES = (
    "base.css",
    "shell.css",
    "side.css",
    "chat.css",
    "forms.css",
    "params.css",
    "keys.css",
    "plan.css",
    "strip.css",
    "characters.css",
    "lorebook.css",
    "download.css",
    "compare.css",
    "attachments.css",
    "notebook.css",
    "extensions.css",
    "people.css",
)
SCRIPTS = (
    "texts.js",
    "core.js",
    "strip.js",
    "files.js",
    "side.js",
    "people.js",
    "shell.js",
    "attachments.js",
    "chat.js",
    "forms.js",
    "params.js",
    "presets.js",
    "keys.js",
    "plan.js",
    "tokens.js",
    "notebook.js",
    "setup.js",
    "characters.js",
    "lorebook.js",
    "download.js",
    "compare.js",
    "extensions.js",
)
FAVICON = STATIC / "favicon.png"


def theme() -> gr.themes.Base:
    """Gradio's own controls, flat and quiet; the colours are the variables of static/base.css."""
    return gr.themes.Base(
        font=[LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"],
        font_mono=[LocalFont("IBM Plex Mono", weights=(400,)), "ui-monospace", "monospace"],
        text_size=gr.themes.sizes.text_md,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
    ).set(**{**_both(_COLOURS), **_FLAT})


def head() -> str:
    """Style sheets and scripts for the page's <head>, in order."""
    styles = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in STYLES)
    scripts = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return f"{_META}<style>{styles}</style><script>{scripts}</script>"


_META = '<meta name="referrer" content="no-referrer">'


_COLOURS = {
    "body_background_fill": "var(--paper)",
    "body_text_color": "var(--ink)",
    "body_text_color_subdued": "var(--ink-2)",
    "background_fill_primary": "var(--paper)",
    "background_fill_secondary": "var(--paper-2)",
    "border_color_primary": "var(--line)",
    "border_color_accent": "var(--accent)",
    "color_accent_soft": "var(--accent-soft)",
    "link_text_color": "var(--accent)",
    "link_text_color_hover": "var(--accent)",
    "link_text_color_visited": "var(--accent)",
    "link_text_color_active": "var(--accent)",
    "block_background_fill": "transparent",
    "block_border_color": "transparent",
    "block_label_background_fill": "transparent",
    "block_label_text_color": "var(--ink-2)",
    "block_title_text_color": "var(--ink)",
    "block_info_text_color": "var(--ink-2)",
    "panel_background_fill": "transparent",
    "input_background_fill": "var(--field)",
    "input_background_fill_focus": "var(--field)",
    "input_border_color": "var(--line-2)",
    "input_border_color_focus": "var(--accent)",
    "input_placeholder_color": "var(--ink-3)",
    "checkbox_background_color": "var(--field)",
    "checkbox_background_color_selected": "var(--accent)",
    "checkbox_border_color": "var(--line-3)",
    "checkbox_border_color_selected": "var(--accent)",
    "checkbox_label_background_fill": "transparent",
    "checkbox_label_background_fill_hover": "transparent",
    "checkbox_label_background_fill_selected": "transparent",
    "checkbox_label_border_color": "transparent",
    "checkbox_label_text_color": "var(--ink)",
    "checkbox_label_text_color_selected": "var(--ink)",
    "slider_color": "var(--accent)",
    "button_primary_background_fill": "var(--accent)",
    "button_primary_background_fill_hover": "var(--accent-2)",
    "button_primary_text_color": "var(--on-accent)",
    "button_primary_text_color_hover": "var(--on-accent)",
    "button_primary_border_color": "transparent",
    "button_secondary_background_fill": "var(--field)",
    "button_secondary_background_fill_hover": "var(--hover)",
    "button_secondary_text_color": "var(--ink)",
    "button_secondary_text_color_hover": "var(--ink)",
    "button_secondary_border_color": "var(--line-2)",
    "button_cancel_background_fill": "var(--field)",
    "button_cancel_text_color": "var(--bad)",
    "error_background_fill": "var(--paper)",
    "error_border_color": "var(--bad)",
    "error_text_color": "var(--bad)",
    "error_icon_color": "var(--bad)",
    "shadow_drop": "none",
    "block_shadow": "none",
    "input_shadow": "none",
    "input_shadow_focus": "0 0 0 3px var(--accent-soft)",
    "button_primary_shadow": "none",
    "button_secondary_shadow": "none",
}
_FLAT = {
    "block_border_width": "0px",
    "block_padding": "0px",
    "block_label_padding": "0px",
    "form_gap_width": "0px",
    "layout_gap": "20px",
    "input_border_width": "1px",
    "input_padding": "9px 12px",
    "input_radius": "9px",
    "block_radius": "10px",
    "button_large_radius": "9px",
    "button_medium_radius": "9px",
    "button_small_radius": "8px",
    "button_large_text_weight": "600",
    "button_medium_text_weight": "600",
    "checkbox_shadow": "none",
    "checkbox_label_padding": "0px",
    "checkbox_label_shadow": "none",
    "button_transform_hover": "none",
}


def _both(colours: dict[str, str]) -> dict[str, str]:
    """The same variable for light and dark: base.css gives each its two values."""
    probe = gr.themes.Base()
    dark = {f"{name}_dark": value for name, value in colours.items() if hasattr(probe, f"{name}_dark")}
    return {**colours, **dark}
