"""Rules that the sources keep, read from them: who opens connections, what is never called, how secrets compare."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
NETWORK = {
    "aiohttp",
    "ftplib",
    "grpc",
    "http.client",
    "http.server",
    "httpx",
    "httpx2",
    "huggingface_hub",
    "imaplib",
    "poplib",
    "requests",
    "smtplib",
    "socket",
    "socketserver",
    "ssl",
    "telnetlib",
    "urllib.request",
    "urllib3",
    "webbrowser",
    "websocket",
    "websockets",
    "xmlrpc",
}
PICKLES = {
    "modules/engine/host/wire.py": "Snug's own two processes, over a pipe that no other has",
    "modules/engine/zero3/ranks.py": "Snug's own ranks, each of which knows a secret that only this user can read",
}
SECRET_NAMES = re.compile(r"(?i)(.*_)?(secret|password|passphrase|api_key|access_token|session_token|hf_token)")


def sources() -> list[str]:
    found = [*(ROOT / "modules").rglob("*.py"), *(ROOT / "extensions").rglob("*.py"), ROOT / "server.py"]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


@cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imported(path: str) -> Iterator[str]:
    """Every module that a file imports, with each package that it lies in."""
    for node in ast.walk(tree(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def name_of(node: ast.expr) -> str:
    """`a.b.c` as text; of anything else nothing, so that its methods begin with a dot."""
    if isinstance(node, ast.Attribute):
        inner = name_of(node.value)
        return f"{inner}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(path: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield name_of(node.func), node


def listed() -> set[str]:
    """The files that SECURITY.md's table says may open connections."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `((?:modules/|server\.py|extensions/)[^`]*)` \|", text, re.MULTILINE))


def test_whoever_opens_connections_is_listed_with_a_reason_and_nobody_else_is() -> None:
    opening = {path for path in sources() if set(imported(path)) & NETWORK}
    assert opening == listed()
    assert "modules/outgoing.py" in opening


def test_nothing_is_run_that_came_as_data() -> None:
    for path, name, call in ((own, name, call) for own in sources() for name, call in calls(own)):
        where = f"{path}:{call.lineno}"
        assert name not in ("eval", "exec", "compile", "builtins.eval", "builtins.exec", "os.system", "os.popen"), where
        assert not name.startswith(("marshal.", "shelve.", "dill.", "joblib.", "cloudpickle.")), where
        assert name not in ("torch.load", "yaml.unsafe_load", "yaml.full_load", "numpy.load", "np.load"), where
        if name.startswith("pickle."):
            assert path in PICKLES, where
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        shell = options.get("shell")
        assert not (isinstance(shell, ast.Constant) and shell.value), where
        trust = options.get("trust_remote_code")
        assert not (isinstance(trust, ast.Constant) and trust.value), where
        if name == "yaml.load":
            assert path == "modules/yaml_files.py", where


def test_no_assert_checks_what_came_from_outside() -> None:
    """`python -O` leaves them out: one may tell the type checker that a value is there, and nothing else."""
    for path in sources():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Assert):
                test = node.test
                named = isinstance(test, ast.Compare) and isinstance(test.left, ast.Name | ast.Attribute)
                assert named and ast.unparse(test).endswith(" is not None"), f"{path}:{node.lineno}"
            assert not (isinstance(node, ast.Name) and node.id == "__debug__"), f"{path}:{node.lineno}"


def test_secrets_are_not_compared_letter_by_letter() -> None:
    mine = [path for path in sources() if path.startswith(("modules/api", "modules/acc", "modules/ui"))]
    for path, node in ((own, node) for own in mine for node in ast.walk(tree(own))):
        if not isinstance(node, ast.Compare) or not any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            continue
        for side in (node.left, *node.comparators):
            name = name_of(side).rpartition(".")[2]
            assert not SECRET_NAMES.fullmatch(name), f"{path}:{node.lineno}: use hmac.compare_digest"


def test_who_asks_is_a_person_wherever_there_may_be_several() -> None:
    """A route that takes the same owner for everybody, or tells people apart by address alone, mixes two people up."""
    for path in sources():
        text = (ROOT / path).read_text(encoding="utf-8")
        if path.startswith(("modules/api/", "modules/ui/")):
            assert not re.search(r"^OWNER\b|owner_of = ", text, re.MULTILINE), path
        if path.startswith("modules/api/") and "client.host" in text:
            assert "person_in(" in text, path


def test_what_lies_under_us_is_not_older_than_its_last_known_hole() -> None:
    floors = {
        "gradio": (6, 25),
        "starlette": (1, 3, 1),
        "python-multipart": (0, 0, 30),
        "transformers": (5, 10),
        "torch": (2, 10),
        "jinja2": (3, 1, 6),
        "pillow": (12, 3),
        "argon2-cffi": (25, 1),
        "nh3": (0, 3),
    }
    for name, floor in floors.items():
        found = tuple(int(part) for part in re.findall(r"\d+", version(name).partition("+")[0])[:3])
        assert found >= floor, name


def test_the_rules_see_what_they_should() -> None:
    assert len(sources()) > 250
    assert "http.client" in set(imported("modules/engine/llamacpp/question.py"))
    assert "subprocess.Popen" in {name for name, _ in calls("modules/killable.py")}
    assert SECRET_NAMES.fullmatch("password") and not SECRET_NAMES.fullmatch("tokens")


def test_every_screenshot_is_made_anew_by_its_script_and_shown_by_some_page() -> None:
    """What no page shows grows old unseen; what nothing makes anew cannot be kept true."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = {
        (path.parent / name).resolve()
        for path in pages
        for name in re.findall(r'(?:\]\(|src=")([^)"]*screenshots/[^)"]+)[)"]', path.read_text(encoding="utf-8"))
    }
    folder = ROOT / "docs" / "screenshots"
    made = {
        folder / f"{name}.png" for name in re.findall(r'shoot\(.*"([\w-]+)"\)', (folder / "make.py").read_text("utf-8"))
    }
    assert shown == made == set(folder.glob("*.png"))


def test_no_process_of_ours_finds_modules_in_the_folder_that_it_starts_in() -> None:
    """`python -m` looks there first: whoever may write in that folder (Downloads, /tmp) would be imported."""
    commands = [
        (path, node.lineno, [ast.unparse(part) for part in node.elts])
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.List | ast.Tuple) and any(ast.unparse(part) == "sys.executable" for part in node.elts)
    ]
    assert len(commands) > 8
    in_snugs_own = {"'modules.engine.process.bandwidth'", "'modules.engine.loading.convert'"}
    for path, line, parts in commands:
        assert {"'-P'", "'-I'", *in_snugs_own} & set(parts), f"{path}:{line}"
