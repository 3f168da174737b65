"""Programs that nobody here wrote, against Snug's API over a real socket: LangChain, llm, and made-up requests."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import hypothesis
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from pydantic import BaseModel, SecretStr
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from modules.settings import Settings
from tests.api_desk import FOX, MODEL, Desk, all_codes, desk_with, sdk, served
from tests.fakes import Script
from tests.tool_templates import TOOL_FAMILIES

HERMES = TOOL_FAMILIES["hermes"]
FUZZED = r"^/v1/(chat/completions|completions|embeddings|models.*|internal/token/.*)$"
REFUSALS = {400, 404, 405, 413, 415}
CANARY = "what somebody else has said"
LEAKS = re.compile(
    r"Traceback|File \"|, line \d+, in |[\w.]+\.py\b|0x[0-9a-f]{6,}|<[\w.]+ object at|"
    r"(?<![\w.])/(home|root|tmp|usr|var|opt|work|proc)/|[A-Z]:\\\\Users|" + CANARY
)
"""What no error text may show: stack lines, addresses in memory, folders of this machine, what others have said."""


class City(BaseModel):
    """Where somebody lives."""

    city: str


def chat_model(port: int, **more: Any) -> Any:
    openai_chat = pytest.importorskip("langchain_openai").ChatOpenAI
    url = f"http://127.0.0.1:{port}/v1"
    return openai_chat(base_url=url, api_key=SecretStr("none"), model=MODEL, max_retries=0, timeout=30, **more)


def test_langchain_chats_streams_calls_tools_and_gets_structured_answers(settings: Settings) -> None:
    messages = pytest.importorskip("langchain_core.messages")

    def get_weather(city: str) -> str:
        """The weather in a city."""
        return f"Rain in {city}."

    script = Script(reply=HERMES.one, chat_template=HERMES.template)
    with desk_with(settings, script) as desk, served(desk.app) as port:
        model = chat_model(port).bind_tools([get_weather])
        asked = [messages.HumanMessage("Weather in Oslo?")]
        reply = model.invoke(asked)
        assert [(call["name"], call["args"]) for call in reply.tool_calls] == [("get_weather", {"city": "Oslo"})]
        pieces = list(model.stream(asked))
        whole = pieces[0]
        for piece in pieces[1:]:
            whole += piece
        assert [(call["name"], call["args"]) for call in whole.tool_calls] == [("get_weather", {"city": "Oslo"})]
        result = messages.ToolMessage(get_weather("Oslo"), tool_call_id=reply.tool_calls[0]["id"])
        model.invoke([*asked, reply, result])
        assert "Rain in Oslo." in desk.engine.decode(desk.engine.requests[-1].prompt_ids)
        forced = chat_model(port).with_structured_output(City, method="function_calling")
        forced.invoke("Where?")  # the scripted model calls something else, which is no City
        shapes = [request.shape for request in desk.engine.requests[-2:]]
        assert [shape and shape.calls[0].before for shape in shapes] == [None, '{"name": "City", "arguments": ']
    with desk_with(settings, Script(reply='{"city": "Oslo"}')) as desk, served(desk.app) as port:
        assert chat_model(port).with_structured_output(City, method="json_schema").invoke("Where?") == City(city="Oslo")
        assert "".join(str(piece.content) for piece in chat_model(port).stream("Where?")) == '{"city": "Oslo"}'


def test_the_llm_command_line_tool_asks_streams_and_calls(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = pytest.importorskip("llm")
    plugin = pytest.importorskip("llm.default_plugins.openai_models")
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))

    def get_weather(city: str) -> str:
        """The weather in a city."""
        return f"Rain in {city}."

    with desk_with(settings, Script()) as desk, served(desk.app) as port:
        model = plugin.Chat("snug", model_name=MODEL, api_base=f"http://127.0.0.1:{port}/v1", supports_tools=True)
        model.key = "none"
        assert model.prompt("Hello", stream=False).text() == FOX
        assert "".join(model.prompt("Hello", system="Be brief.")) == FOX
    script = Script(reply=HERMES.one, chat_template=HERMES.template)
    with desk_with(settings, script) as desk, served(desk.app) as port:
        model = plugin.Chat("snug", model_name=MODEL, api_base=f"http://127.0.0.1:{port}/v1", supports_tools=True)
        model.key = "none"
        response = model.prompt("Weather?", tools=[llm.Tool.function(get_weather)])
        assert [(call.name, call.arguments) for call in response.tool_calls()] == [("get_weather", {"city": "Oslo"})]
        assert desk.engine.requests


def test_the_openai_client_hears_that_embeddings_are_not_to_be_had_here(settings: Settings) -> None:
    with (
        desk_with(settings, Script()) as desk,
        sdk(desk) as client,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        client.embeddings.create(model=MODEL, input="a harbour")
    assert caught.value.code == "not_available_here"


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Desk, int]]:
    folder = tmp_path_factory.mktemp("fuzzed")
    folders = {"model_dir": folder / "models", "user_data_dir": folder / "user_data"}
    for path in folders.values():
        path.mkdir()
    with desk_with(Settings.model_validate(folders), Script()) as desk, served(desk.app) as port:
        said = {"messages": [{"role": "user", "content": CANARY}]}
        assert httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=said).status_code == 200
        yield desk, port


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["sound", "broken"])
def test_no_made_up_request_breaks_the_server_or_goes_without_an_error_object(
    fuzzed: tuple[Desk, int], mode: GenerationMode, pytestconfig: pytest.Config
) -> None:
    _, port = fuzzed
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    found = schema.include(path_regex=FUZZED).get_all_operations()
    operations = [result.ok() for result in found if isinstance(result, Ok)]
    assert len(operations) >= 8
    each = 10_000 // 2 // len(operations) if pytestconfig.getoption("--all") else 8
    codes = all_codes()
    for operation in operations:

        @hypothesis.settings(max_examples=each, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy(generation_mode=mode))
        def holds(case: Any) -> None:
            response = case.call(timeout=10)
            assert response.status_code < 500, (response.status_code, response.text)
            if response.status_code >= 400:
                error = json.loads(response.text)["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert error["code"] in codes
                assert response.status_code in REFUSALS, error
                shown = error["message"].replace(unquote(case.formatted_path), "").replace(case.formatted_path, "")
                assert not LEAKS.search(shown), error

        assert LEAKS.search("/home/somebody/model") and LEAKS.search('File "a.py", line 3, in f')
        with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing can be wrong where nothing is sent
            holds()
