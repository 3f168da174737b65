"""The import rule of docs/architecture.md: read from the sources, and seen in a fresh interpreter."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TORCH_KIN = {"torch", "transformers", "accelerate", "bitsandbytes", "deepspeed", "tokenizers"}
TORCH_ROOMS = (
    "modules/engine/",
    "modules/memory/model/meta.py",
    *(
        f"modules/memory/dryruns/{name}.py"
        for name in ("live_bytes", "fake_linears", "shortening", "dryrun", "training_dryrun", "worker")
    ),
)
"""The engine, and files of modules/memory/ that run in processes of their own."""
LLAMACPP_ROOMS = tuple(f"modules/memory/dryruns/{name}.py" for name in ("llamacpp_params", "llamacpp_dry"))
WEB_MODULES = (
    "server", "modules.models.manager", "modules.startup", "modules.check", "modules.plan_command.report",
    "modules.services", "modules.chat.service", "modules.chat.prompts", "modules.api.app", "modules.ui.app",
)  # fmt: skip
"""What the web process imports, or the terminal's check."""


@dataclass(frozen=True)
class Import:
    """One import statement: `name` imported in `path`; `lazy` inside a function, `typing` under TYPE_CHECKING."""

    path: str
    line: int
    name: str
    lazy: bool
    typing: bool


def sources() -> list[str]:
    """server.py and every module that holds code, relative to the root."""
    found = [path for path in (ROOT / "modules").rglob("*.py") if path.read_text(encoding="utf-8").strip()]
    return ["server.py", *sorted(path.relative_to(ROOT).as_posix() for path in found)]


def imports_of(path: str) -> Iterator[Import]:
    """Every import statement of a source file."""

    def walk(node: ast.AST, lazy: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name, lazy, typing)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                name = whole if (ROOT / (whole.replace(".", "/") + ".py")).exists() else str(node.module)
                yield Import(path, node.lineno, name, lazy, typing)
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        guarded = typing or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside, guarded)

    yield from walk(ast.parse((ROOT / path).read_text(encoding="utf-8")), False, False)


def rows() -> list[str]:
    """The files and folders of the table of rooms, in its order."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `?((?:modules/|server\.py)[^ |`]*)`? \|", text, re.MULTILINE)


def row_of(path: str) -> int | None:
    """Where a source file stands in the table: by its own row, or by that of its folder."""
    table = rows()
    return next((table.index(name) for name in (path, path.rpartition("/")[0] + "/") if name in table), None)


def file_of(name: str) -> str:
    """The source file of one of our modules; a package stands for its __init__."""
    path = name.replace(".", "/")
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"


def test_the_table_of_rooms_has_a_row_for_every_file_and_no_other() -> None:
    assert [path for path in sources() if row_of(path) is None] == []
    assert [row for row in rows() if not (ROOT / row).exists()] == []
    assert len(rows()) == len(set(rows()))


def test_a_file_imports_only_what_stands_above_it() -> None:
    breaches = []
    for path in sources():
        for item in imports_of(path):
            if not item.name.startswith("modules"):
                continue
            own, other = row_of(path), row_of(file_of(item.name))
            if own is None or other is None or other > own or (other == own and path.count("/") == 1):
                breaches.append(f"{path}:{item.line} imports {item.name}")
    assert breaches == []


def test_api_and_ui_know_nothing_of_each_other() -> None:
    for own, other in (("api", "ui"), ("ui", "api")):
        mine = [path for path in sources() if path.startswith(f"modules/{own}/")]
        assert not [item for path in mine for item in imports_of(path) if item.name.startswith(f"modules.{other}")]


def test_nothing_in_modules_imports_the_tests_or_the_server() -> None:
    mine = [path for path in sources() if path != "server.py"]
    assert not [item for path in mine for item in imports_of(path) if item.name.split(".")[0] in ("tests", "server")]


@pytest.mark.parametrize(
    ("libraries", "rooms"),
    [
        ({"gradio", "gradio_client"}, ("modules/ui/",)),
        ({"fastapi"}, ("modules/api/", "server.py")),
        ({"xllamacpp"}, ("modules/engine/llamacpp/", *LLAMACPP_ROOMS)),
        (TORCH_KIN, TORCH_ROOMS),
    ],
)
def test_heavy_libraries_stay_in_their_rooms(libraries: set[str], rooms: tuple[str, ...]) -> None:
    breaches = [
        f"{path}:{item.line} imports {item.name}"
        for path in sources()
        for item in imports_of(path)
        if item.name.split(".")[0] in libraries
        and not path.startswith(rooms)
        and not item.typing
        and not (path == "modules/hardware.py" and item.lazy)
    ]
    assert breaches == []


@pytest.mark.parametrize("module", WEB_MODULES)
def test_the_web_process_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({TORCH_KIN | {'xllamacpp'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_every_module_that_is_named_in_a_text_is_there() -> None:
    """Processes are started, and engines loaded, by names that no import checks: `modules.x.y`, `modules.x.y:load`."""
    texts = [
        (path, node.value)
        for path in sources()
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    named = [(path, text) for path, text in texts if re.fullmatch(r"modules(\.(?!json$)\w+)+(:\w+)?", text)]
    assert len(named) >= 8
    missing = [
        (path, text) for path, text in named if not (ROOT / f"{text.partition(':')[0].replace('.', '/')}.py").is_file()
    ]
    assert missing == []


def test_the_scan_sees_what_it_should() -> None:
    """Guards the guard: a scan that finds nothing would pass every test above."""
    found = list(imports_of("modules/engine/host/host.py"))
    assert Import("modules/engine/host/host.py", found[0].line, "__future__", False, False) == found[0]
    assert "modules.engine.base" in {item.name for item in found}
    assert any(item.lazy for item in imports_of("server.py"))
    assert row_of("modules/errors.py") == 0
    assert row_of("modules/api/sse.py") == rows().index("modules/api/")
