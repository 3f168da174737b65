"""Colours each word of a reply by how sure the model was of it; the pointer shows what else it might have been."""

import html
import re
from bisect import bisect_left

import gradio as gr

params = {
    "display_name": "Perplexity colours",
    "active": True,
    "alternatives": 4,
}
# Sure, then less and less so: text of any theme stays readable on these.
SHADES = ((0.8, ""), (0.5, "rgba(234, 179, 8, .22)"), (0.2, "rgba(249, 115, 22, .30)"), (0.0, "rgba(239, 68, 68, .38)"))
WORD = re.compile(r"\w")
FENCE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\]\([^)\s]{0,1000}\)", re.DOTALL)
BLOCK = re.compile(r"(?m)^(?:    .*|[^\S\n]*\|.*\|[^\S\n]*)$")


def state_modifier(state):
    if params["active"]:
        state["logprobs"] = max(int(state["logprobs"]), int(params["alternatives"]))
    return state


def output_modifier(string, state, is_chat=False):
    tokens = state.get("token_probabilities") if params["active"] and is_chat else None
    return coloured(string, tokens) if tokens else string


def coloured(text, tokens):
    """The text with marks around the tokens of which the model was not sure; code and formulas stay as they are."""
    spoken = "".join(token["text"] for token in tokens)
    begin = text.rfind(spoken.strip()) if spoken.strip() else -1
    if begin < 0:
        return text
    begin -= len(spoken) - len(spoken.lstrip())
    kept = joined(found.span() for pattern in (FENCE, BLOCK) for found in pattern.finditer(text))
    firsts = [first for first, _ in kept]
    parts, at = [text[: max(begin, 0)]], begin
    for token in tokens:
        end = at + len(token["text"])
        piece = text[max(at, 0) : max(end, 0)]
        near = bisect_left(firsts, end) - 1  # the last that begins before the token ends
        inside = near >= 0 and at < kept[near][1]
        parts.append(piece if inside or not WORD.search(piece) else marked(piece, token))
        at = end
    return "".join(parts) + text[max(at, 0) :]


def joined(spans):
    """The same stretches of a text, in order, those that overlap as one."""
    found = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def marked(piece, token):
    shade = next(shade for least, shade in SHADES if token["probability"] >= least)
    if not shade:
        return piece
    others = " · ".join(f"{text.strip() or '␣'} {share:.0%}" for text, share in token["top"])
    title = html.escape(f"{token['probability']:.0%}" + (f" ({others})" if others else ""))
    title = title.replace("\n", "⏎")
    word = piece.strip()
    before, after = piece[: piece.index(word)], piece[piece.index(word) + len(word) :]
    return f'{before}<span style="background-color: {shade}" title="{title}">{word}</span>{after}'


def ui():
    active = gr.Checkbox(value=params["active"], label="On")
    gr.HTML(
        "<p>Yellow: likely by less than 80 %. Orange: less than 50 %. Red: less than 20 %.</p>", apply_default_css=False
    )
    active.change(lambda value: params.update(active=value), active, None)
