"""Shows the faces of your characters on an empty chat: one click begins a conversation with one of them."""

from pathlib import Path

HERE = Path(__file__).parent
params = {
    "display_name": "Gallery",
}


def custom_css():
    return (HERE / "page.css").read_text(encoding="utf-8")


def custom_js():
    return (HERE / "page.js").read_text(encoding="utf-8")
