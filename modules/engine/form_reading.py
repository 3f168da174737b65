"""Forms of replies read in a process of their own, which is killed when one takes too long or too much.

Some schemas and grammars are made to take minutes. Read here, they are refused in time, and no reply of others waits
for them; an engine gets only the grammar of what could be read. How a reply is then held is each engine's own.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from modules.engine.base import GenerationRequest
from modules.errors import BadGrammar, BadValue, GenerationFailed
from modules.forms.tools import CallShape
from modules.killable import KillableWorker, WorkerDoesNotStart, WorkerEnded, WorkerLate, bare_environment

READ_S = 1.5  # of the 2 that a refusal may take
_START_S = 30.0
_KEPT = 32


@dataclass(frozen=True, slots=True)
class Form:
    """What a reply is to follow, for one kind of engine. With a `shape` calls, or JSON of `json_schema` instead.

    `special` are the ids of the control tokens in `shape`.
    """

    engine: Literal["llamacpp", "guidance"]
    grammar: str = ""
    json_schema: str = ""
    shape: CallShape | None = None
    special: Mapping[str, int] = field(default_factory=dict)

    @property
    def param(self) -> str:
        """The field that asks for it."""
        return "tools" if self.shape is not None else "response_format" if self.json_schema else "grammar"


class FormReader:
    """The process, started when first needed and again after it was killed. Safe from any thread."""

    def __init__(self, *, read_s: float = READ_S) -> None:
        self._read_s = read_s
        command = [sys.executable, "-P", "-m", "modules.engine.form_worker"]
        self._worker = KillableWorker(command, bare_environment(), start_s=_START_S)
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, form: Form, whose: str = "") -> str:
        """The grammar of `form` in its engine's words. A form is read once for each person: `whose` it is.

        Raises BadGrammar for one that cannot be held, takes longer than READ_S or more than 512 MiB to read.
        """
        question = json.dumps(asdict(form)).encode()
        key = hashlib.blake2b(whose.encode("utf-8", "surrogatepass") + b"\0" + question, digest_size=16).digest()
        with self._lock:
            if (known := self._known.get(key)) is not None:
                self._known.move_to_end(key)
                return known
        grammar = self._ask(question, form.param)
        with self._lock:
            self._known[key] = grammar
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return grammar

    def close(self) -> None:
        """End the process. A later form starts it again."""
        self._worker.close()

    def _ask(self, question: bytes, param: str) -> str:
        try:
            answer = self._worker.ask(question, timeout_s=self._read_s)
        except WorkerDoesNotStart as error:
            raise GenerationFailed(
                "The process that reads the forms of replies does not start.", remedy="Try again; free some memory."
            ) from error
        except WorkerEnded as error:
            late = isinstance(error, WorkerLate)
            what = f"takes longer than {self._read_s:g} s" if late else "takes too much memory"
            raise BadGrammar(
                f"The form of the reply {what} to read.", remedy="Make it smaller, or less ambiguous.", param=param
            ) from error
        if problem := answer.get("error"):
            where = problem["param"] or param
            raise BadGrammar(problem["message"], remedy=problem["remedy"], param=where)
        return str(answer["grammar"])


def form_of(request: GenerationRequest, engine: Literal["llamacpp", "guidance"]) -> Form | None:
    """What the reply to `request` is to follow, None where it is free. Raises BadValue together with ban_eos_token
    or min_tokens.
    """
    if not request.has_form:
        return None
    params = request.params
    if params.ban_eos_token:
        raise BadValue(
            "A reply that follows a form ends with it; ban_eos_token forbids that.",
            remedy="Leave out one of them.",
            param="ban_eos_token",
        )
    if params.min_tokens:
        raise BadValue(
            "A reply that follows a form ends with it; min_tokens may forbid that.",
            remedy="Leave out one of them.",
            param="min_tokens",
        )
    return Form(engine, params.grammar, params.json_schema, request.shape)


def too_dear(param: str) -> BadGrammar:
    """Why a reply ends whose form, of the parameter `param`, takes too long at each token."""
    return BadGrammar(
        "The form of the reply takes too long to follow here.",
        remedy="Make it smaller, or less ambiguous.",
        param=param,
    )
