"""Figures of hostile content: scripts in texts, control tokens in messages, broken files, templates; and the code."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.version import Version
from playwright.sync_api import Dialog, sync_playwright

from benchmarks.common import ROOT
from benchmarks.reliability_rows.advisories import audit, package_index, pinned
from benchmarks.reliability_rows.outcome import Outcome, Scale
from modules.chat.prompts import Prompts
from modules.chat.templates import TemplateWorker
from modules.errors import SnugError
from modules.memory.model.formats import model_files, read_safetensors
from modules.memory.model.gguf import read_gguf
from modules.ui.markdown import StreamingMarkdown, render, render_modified
from tests import test_formats, test_gguf, test_modified_text, test_prompts, test_templates, test_ui
from tests.chat_templates import FAMILIES
from tests.conftest import find_chromium

CONTEXTS = ("{}", "text {} text", "> {}", "- {}", "| {} |\n|---|\n| {} |", "```\n{}\n```\n{}")
MANY = 400  # texts shown at a time
SHOW = """async pages => {
    const box = document.querySelector("#box"), live = "script,iframe,object,embed,form,base,meta,link";
    let banned = 0;
    for (const page of pages) {
        box.innerHTML = page;
        banned += box.querySelectorAll(live).length;
        const nodes = [...box.querySelectorAll("*")];
        banned += nodes.filter(node => [...node.attributes].some(one => one.name.startsWith("on"))).length;
        banned += nodes.filter(node => /^\\s*(javascript|data|vbscript):/i.test(node.href ?? "")).length;
        await new Promise(done => setTimeout(done));
    }
    return banned;
}"""


def vectors() -> list[str]:
    """Hostile texts, each by itself and in several places of a message."""
    texts = [*test_ui.VECTORS, *test_modified_text.HOSTILE]
    return [context.replace("{}", text) for context in CONTEXTS for text in texts]


def shown(texts: list[str], step: int) -> Iterator[str]:
    """The HTML of every beginning of every text, as a whole reply, as a growing one, as an extension's."""
    for text in texts:
        growing = StreamingMarkdown()
        for end in range(1, len(text) + 1, step):
            blocks, tail = growing.update(text[:end])
            yield render(text[:end])
            yield "".join(blocks) + tail
        yield render(text)
        yield render_modified(text)


def scripts(scale: Scale) -> Outcome:
    """Every cut of every vector, put into a page of a real browser that forbids nothing."""
    asked = "150 XSS vectors × every cut position: 0 script runs, 0 outside requests; 0 outgoing connections offline"
    chromium = find_chromium()
    if not chromium:
        return Outcome(asked, "there is no Chromium here", None)
    texts, ran, requests, banned, count = vectors(), list[str](), list[str](), 0, 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_content("<div id=box></div>")

        def alarm(dialog: Dialog) -> None:
            ran.append(dialog.message)
            dialog.dismiss()

        page.on("dialog", alarm)
        page.on("request", lambda request: requests.append(request.url))
        batch: list[str] = []
        for html in shown(texts, scale.of(1, 7)):
            batch.append(html)
            count += 1
            if len(batch) == MANY:
                banned += page.evaluate(SHOW, batch)
                batch = []
        banned += page.evaluate(SHOW, batch)
        browser.close()
    outside = [url for url in requests if not url.startswith(("data:", "about:"))]
    return Outcome(
        asked,
        f"{len(texts)} vectors, {count:,} states in Chromium: {len(ran)} scripts ran, {len(outside)} outside requests, "
        f"{banned} elements or attributes that act; outgoing connections: see row S9",
        not (ran or outside or banned),
        not scale.quick,
        {"vectors": len(texts), "states": count, "ran": ran[:5], "requests": outside[:5], "banned": banned},
    )


def control_tokens(_: Scale) -> Outcome:
    """Every special token of every template in every form as content; clean chats against the library's own ids."""
    names = list(FAMILIES)
    prompts_made, became, clean, equal = 0, 0, 0, 0
    with closing(Prompts(TemplateWorker())) as prompts:
        for name in names:
            tokens = test_prompts.family_engine(name)
            plain = test_prompts.chat([("user", "a"), ("assistant", "b"), ("user", "c")])
            expected = tokens.control_count(test_prompts.build(prompts, tokens, plain).prompt_ids)
            special = sorted(
                {token.content for token in tokens.tokenizer.added_tokens_decoder.values() if token.special}
            )
            for form in (form for token in special for form in test_prompts.forms_of(token)):
                hostile = test_prompts.chat([("user", form), ("assistant", form), ("user", form)])
                became += tokens.control_count(test_prompts.build(prompts, tokens, hostile).prompt_ids) != expected
                prompts_made += 1
            for turns in test_prompts.CLEAN.values():
                messages = test_prompts.chat(turns)
                built = test_prompts.build(prompts, tokens, messages)
                equal += list(built.prompt_ids) == test_prompts.library_ids(tokens, messages)
                clean += 1
    return Outcome(
        "special-token injection: 0 control ids from content, every special token of every shipped template; 100 % of "
        "clean chats with equal ids",
        f"{len(names)} templates, {prompts_made:,} hostile prompts: {became} with other control ids; {equal} of "
        f"{clean} clean chats have the library's ids",
        not became and equal == clean,
        figures={"templates": len(names), "prompts": prompts_made, "became": became, "clean": clean, "equal": equal},
    )


def broken_files(_: Scale) -> Outcome:
    """Every broken file and template of the tests: refused, by name, in time, and nothing of it ran."""
    refused, slowest_s, slowest_template_s, in_all = 0, 0.0, 0.0, 0
    with tempfile.TemporaryDirectory() as name, closing(TemplateWorker()) as worker:
        folder = Path(name)
        canary = folder / "canary"
        for kind, read, cases in (
            ("m.gguf", read_gguf, test_gguf.BROKEN), ("m.safetensors", read_safetensors, test_formats.BROKEN),
        ):  # fmt: skip
            for content, _why in cases.values():
                (folder / kind).write_bytes(content)
                took_s, error = _refusal(lambda read=read, kind=kind: read(folder / kind))
                refused, slowest_s, in_all = refused + error, max(slowest_s, took_s), in_all + 1
        for number, suffix in enumerate((".bin", ".pt", ".pth", ".pkl", ".ckpt") * 2):
            pickles = folder / str(number)
            pickles.mkdir()
            (pickles / f"model{suffix}").write_bytes(_canary(canary, 2 + number % 4))
            took_s, error = _refusal(lambda pickles=pickles: model_files(pickles))
            refused, slowest_s, in_all = refused + error, max(slowest_s, took_s), in_all + 1
        for template in test_templates.HOSTILE.values():
            took_s, error = _refusal(lambda template=template: worker.render(template, test_templates.VARIABLES))
            refused, slowest_template_s, in_all = refused + error, max(slowest_template_s, took_s), in_all + 1
        ran = canary.exists()
    return Outcome(
        "30 broken GGUF + 20 safetensors + 10 pickles + 25 templates: 100 % refused by name within 1 s (templates "
        "2 s), 0 canary files",
        f"{len(test_gguf.BROKEN)} + {len(test_formats.BROKEN)} + 10 + {len(test_templates.HOSTILE)}: {refused} of "
        f"{in_all} refused, files within {slowest_s:.2f} s, templates {slowest_template_s:.2f} s, "
        f"{int(ran)} canary files",
        refused == in_all and slowest_s <= 1 and slowest_template_s <= 2 and not ran,
        figures={"refused": refused, "in_all": in_all, "slowest_s": slowest_s, "template_s": slowest_template_s},
    )


def _refusal(read: Any) -> tuple[float, bool]:
    """Seconds, and whether it was refused by a SnugError with a remedy."""
    started = time.perf_counter()
    try:
        read()
    except SnugError as error:
        return time.perf_counter() - started, bool(error.remedy)
    return time.perf_counter() - started, False


def _canary(path: Path, protocol: int) -> bytes:
    import pickle

    return pickle.dumps(test_formats.Canary(path), protocol=protocol)


FLOORS = {
    "gradio": "6.25", "starlette": "1.3.1", "python-multipart": "0.0.30", "transformers": "5.10", "torch": "2.10",
    "jinja2": "3.1.6", "pillow": "12.3.0",
}  # fmt: skip
BANNED = ("eval", "exec", "compile", "__import__")
# Names of secrets; comparing them with == tells their length and beginning by the time that it takes.
SECRETS = {"secret", "password", "api_key", "access_token"}
LOW = "S101,S603,S607,S311"  # what bandit itself ranks low: asserts, programs started by lists, plain random numbers
ALLOWED = {
    # file, what: why
    ("modules/yaml_files.py", "yaml.load"): "with a SafeLoader that also refuses aliases",
    ("modules/engine/host/wire.py", "pickle"): "between Snug and the engine process that it started itself",
    ("modules/engine/zero3/ranks.py", "pickle"): "between ranks that showed the same secret",
}


def code(_: Scale) -> Outcome:
    """Versions of the libraries, and what the code must not do."""
    old = [name for name, floor in FLOORS.items() if Version(metadata.version(name)) < Version(floor)]
    found = [fault for path in sorted((ROOT / "modules").rglob("*.py")) for fault in banned(path)]
    command = ["ruff", "check", "modules", "server.py", "--select", "S", "--ignore", LOW, "--output-format", "json"]
    lint = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    findings = len(json.loads(lint.stdout or "[]"))
    asked = {name: metadata.version(name) for name in FLOORS} | pinned()
    with package_index() as index:
        known = audit(asked, index)
    return Outcome(
        "dependency floors, pip-audit, bandit/semgrep: 0 high findings; 0 eval, exec, pickle.load, yaml.load, "
        "shell=True, == on secrets",
        f"{len(FLOORS)} floors, {len(old)} below; advisories of the package index, which pip-audit reads: "
        f"{len(known.flaws)} for {len(known.answered)} of {len(asked)} libraries{_not_told(known.unanswered)}; "
        f"bandit's rules (through ruff) {findings} findings above low; {len(found)} uses beside {len(ALLOWED)} "
        "that are told why",
        not (old or found or findings or known.flaws),
        not known.unanswered,
        {"old": old, "uses": found, "findings": findings, "flaws": known.flaws, "answered": len(known.answered),
         "unanswered": known.unanswered},
    )  # fmt: skip


def _not_told(names: list[str]) -> str:
    """Those that the index told nothing of, if they are few."""
    return f" (none told for {', '.join(names)})" if 0 < len(names) <= 5 else ""


def banned(path: Path) -> Iterator[str]:
    """What must not stand in a file."""
    return find_banned(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())


def find_banned(text: str, where: str) -> Iterator[str]:
    """Likewise, in the text of the module at `where`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            what = "pickle" if name.startswith("pickle.load") or name.endswith("Unpickler") else name
            shell = any(word.arg == "shell" and ast.unparse(word.value) != "False" for word in node.keywords)
            if (name in BANNED or what in ("pickle", "yaml.load") or shell) and (where, what) not in ALLOWED:
                yield f"{where}:{node.lineno} {name}"
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            sides = [node.left, *node.comparators]
            names = {ast.unparse(side).rpartition(".")[2].lstrip("_") for side in sides}
            secret = names & (SECRETS | {"token"} if where.startswith("modules/api/") else SECRETS)
            if secret and not any(isinstance(side, ast.Constant) for side in sides):
                yield f"{where}:{node.lineno} {ast.unparse(node)[:60]}"
