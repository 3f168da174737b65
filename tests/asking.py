"""A request of the page as its doors get it, from whomever a test wants."""

from __future__ import annotations

import gradio as gr
from fastapi import Request

from modules.accounts.person import STATE, Person


def asking(person: Person) -> gr.Request:
    """A request that `person` sends."""
    return gr.Request(Request({"type": "http", "headers": [], "state": {STATE: person}}))
