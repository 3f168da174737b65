"""The process that renders chat templates: reads requests from stdin, writes results to stdout, one at a time.

It runs code that came with a model, so it imports nothing of Snug but its confinement, has no network, files or secrets
to give away, and may be killed at any moment. templates.py starts it and watches the clock.

A message is four bytes of length (big endian) and that many bytes of ASCII JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from modules.confined import confine

HAS_LIMITS = os.name == "posix"  # on Windows only the clock limits a template

if HAS_LIMITS:
    import resource

STATM = Path("/proc/self/statm")  # Linux: the size of this process, in pages


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks replies for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """A call block, so that variables set inside stay inside, as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render_body"), [], [], body).set_lineno(line)

    def _render_body(self, caller: Callable[[], str]) -> str:
        return caller()


class SafeNamespace(Namespace):
    """jinja2's `namespace()` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


class DictFunction:
    """What `dict` is in a template: it makes dicts and offers nothing else to climb."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As dict.fromkeys."""
        return dict.fromkeys(*args)


def _check_attribute(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def build_environment() -> ImmutableSandboxedEnvironment:
    """The sandbox that templates are written for: as in transformers' utils/chat_template_utils.py (5.23)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = DictFunction()
    environment.globals["namespace"] = SafeNamespace
    return environment


def limit_memory(growth_bytes: int) -> None:
    """Let the process grow by so much from now on; a later call may allow more or less."""
    if not STATM.exists():
        return
    now_bytes = int(STATM.read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (now_bytes + growth_bytes, hard))


def limit_cpu(seconds: int) -> None:
    """End the process after so many more seconds of computing, should nobody watch the clock any more."""
    if not HAS_LIMITS:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds + 1, hard))


def close_doors() -> None:
    """No files but Python's, no core dumps."""
    confine()
    if HAS_LIMITS:
        for limit, value in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
            resource.setrlimit(limit, (value, value))


def answer(request: dict[str, Any], compile_template: Callable[[str, str], Any]) -> dict[str, str]:
    """Render one request; the problem in words under "error" if that fails."""
    try:
        return {"text": compile_template(request["template"], request["whose"]).render(**request["variables"])}
    except TemplateError as error:
        return {"error": str(error.message or type(error).__name__)[:500]}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except Exception as error:  # whatever a template's code does, the worker lives on
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answer requests until `source` ends. The first message sent says that the worker is ready."""
    environment = build_environment()

    @lru_cache(maxsize=8)
    def compile_template(template: str, _whose: str) -> Any:  # the time would tell others that somebody has the same
        return environment.from_string(template)

    _send(sink, {"ready": True})
    while header := source.read(4):
        payload = source.read(int.from_bytes(header, "big"))
        request = json.loads(payload)
        limit_memory(request["memory_bytes"])
        limit_cpu(request["cpu_s"])
        try:
            _send(sink, answer(request, compile_template))
        except MemoryError:
            compile_template.cache_clear()
            _send(sink, {"error": "it needs too much memory"})


def _send(sink: BinaryIO, message: dict[str, Any]) -> None:
    payload = json.dumps(message).encode("ascii")
    sink.write(len(payload).to_bytes(4, "big") + payload)
    sink.flush()


if __name__ == "__main__":
    close_doors()
    serve(sys.stdin.buffer, sys.stdout.buffer)
