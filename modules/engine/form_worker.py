"""The process that reads the forms which replies are to follow: schemas, grammars, tool calls → an engine's grammar.

Strangers write them, and some are made to take for ever, so it may be killed at any moment; form_reading.py starts it
and watches the clock. Messages are as in killable.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from modules.answering import close_doors, limit_time, serve, told
from modules.engine.llamacpp import call_grammar
from modules.engine.llamacpp.gbnf import check_gbnf
from modules.engine.llamacpp.schema_grammar import checked_grammar_of
from modules.engine.loops import guidance
from modules.errors import BadGrammar, SnugError
from modules.forms.tools import CallShape, shape_from
from modules.units import MiB

MOST_BYTES = 512 * MiB  # more than a form can need
_LONGEST_S = 10


def answer(form: Mapping[str, Any]) -> dict[str, Any]:
    """The grammar of `form` (form_reading.Form as JSON), or an error under "error"."""
    limit_time(_LONGEST_S)
    shape = shape_from(form["shape"]) if form["shape"] else None
    read = _for_llamacpp if form["engine"] == "llamacpp" else _for_guidance
    try:
        return {"grammar": read(form, shape)}
    except SnugError as error:
        return told(error)
    except (MemoryError, RecursionError):
        return told(BadGrammar("The form of the reply is too large to read.", remedy="Make it smaller."))
    except Exception as error:  # the edge of one form: libraries meet things in it that they were not made for
        why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        return told(BadGrammar(f"The form of the reply cannot be read ({why}).", remedy="Write it otherwise."))
    finally:
        limit_time(0)


def _for_llamacpp(form: Mapping[str, Any], shape: CallShape | None) -> str:
    if shape is not None:
        return call_grammar.calls_grammar(shape, form["json_schema"])
    if form["json_schema"]:
        return checked_grammar_of(form["json_schema"])
    check_gbnf(form["grammar"])
    return str(form["grammar"])


def _for_guidance(form: Mapping[str, Any], shape: CallShape | None) -> str:
    if shape is not None:  # control tokens as texts: bytes have none
        guidance.try_form(guidance.calls_grammar(shape, form["json_schema"], {}), "tools")
        return guidance.calls_grammar(shape, form["json_schema"], form["special"])
    if form["json_schema"]:
        grammar, param = guidance.schema_grammar(form["json_schema"]), "response_format"
    else:
        grammar, param = guidance.gbnf_grammar(form["grammar"]), "grammar"
    guidance.try_form(grammar, param)
    return grammar


if __name__ == "__main__":
    close_doors(MOST_BYTES)
    serve(sys.stdin.buffer, sys.stdout.buffer, answer)
