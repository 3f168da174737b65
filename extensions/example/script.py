"""An example: signs every reply. Start it with `python server.py --extensions example`.

Copy this folder under another name and keep the hooks that you need.
"""


def setup() -> None:
    """Called once, when Snug starts."""


def input_modifier(text: str) -> str:
    """What the model reads in place of a message of yours. Your message stays on the page as you wrote it."""
    return text.strip()


def output_modifier(text: str) -> str:
    """What is kept in place of a finished reply."""
    return text.rstrip() + "\n\n*Checked by an extension.*"
