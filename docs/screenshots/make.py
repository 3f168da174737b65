"""Make the pictures in docs/screenshots/ from the real app: server.py, the starter model, Chromium.

Run it from the repository's root: `python docs/screenshots/make.py`, with names of parts for those alone. It needs the
starter model and a Chromium, and leaves nothing behind but the pictures.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from docx import Document
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, FilePayload, Page, sync_playwright

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from modules.settings import Settings  # noqa: E402
from tests.big_gguf import big_gguf  # noqa: E402
from tests.fake_hub import FakeHub, repository, serve  # noqa: E402
from tests.fakes import Script  # noqa: E402
from tests.page_rig import start_snug  # noqa: E402

MODEL = "SmolLM2-135M-Instruct"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WAIT_MS = 180_000
CHATS = (
    ("Give me three names for a sleepy grey cat.",),
    ("What is a KV cache, in two sentences?",),
    (
        "Why is the sky blue?",
        "Write a Python function that counts the words in a text.",
    ),
)


@contextmanager
def snug(*flags: str, hub: str = "") -> Iterator[str]:
    """A server of its own with an empty user data folder; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "server.py", "--listen-port", str(port), "--user-data-dir", folder, "--model", MODEL]
        environment = {**os.environ, "HF_ENDPOINT": hub} if hub else None
        server = subprocess.Popen([*command, *flags], cwd=ROOT, env=environment)
        try:
            yield _wait_for(f"http://127.0.0.1:{port}")
        finally:
            server.terminate()
            server.wait(20)


def _wait_for(address: str) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return address
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(f"{address} does not answer")


def open_page(
    browser: Browser, address: str, *, dark: bool = False, phone: bool = False, locale: str = "en-US"
) -> Page:
    """A page in a fresh profile, whose browser asks for the language of `locale`."""
    context = browser.new_context(
        viewport={"width": 390, "height": 844} if phone else {"width": 1440, "height": 900},
        color_scheme="dark" if dark else "light",
        locale=locale,
        has_touch=phone,
        device_scale_factor=2 if phone else 1.5,
    )
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(address)
    page.wait_for_selector(".model-pill.ready")
    return page


def talk(page: Page, prompts: tuple[str, ...]) -> None:
    """A new conversation with these questions, each answered."""
    page.click("#snug-new")
    for number, prompt in enumerate(prompts, start=1):
        page.fill("#snug-input", prompt)
        page.press("#snug-input", "Enter")
        page.wait_for_function(
            "count => document.querySelectorAll('.message.assistant:not(.streaming)').length === count", arg=number
        )


def tab(page: Page, title: str) -> None:
    """Go to a tab and let it settle; on the Model tab until all is counted and measured."""
    page.get_by_role("tab", name=title).click()
    if title == "Model":
        page.wait_for_selector(".plan-truth")
        page.wait_for_timeout(3000)  # by then a dry run has begun, where one is needed
        page.wait_for_selector("#snug-plan:not(.counting)", state="attached")
    page.wait_for_timeout(1500)


def shoot(page: Page, name: str) -> None:
    """Save what the page shows."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)
    page.screenshot(path=HERE / f"{name}.png")
    print(f"docs/screenshots/{name}.png")


def attach(page: Page) -> None:
    """A message with files, about to be sent."""
    page.click("#snug-new")
    sheet = "\n".join(
        ["day,steps,minutes", *(f"2026-10-{day:02},{4000 + day * 137},{30 + day}" for day in range(1, 31))]
    )
    document, sink = Document(), io.BytesIO()
    document.add_heading("Notes on the harbour walk", 1)
    for _ in range(4):
        document.add_paragraph("Fog until nine, then sun. The ferry was late, and two seals slept on the pier.")
    document.save(sink)
    files: list[FilePayload] = [
        {"name": "Harbour walk.docx", "mimeType": "", "buffer": sink.getvalue()},
        {"name": "steps.csv", "mimeType": "", "buffer": sheet.encode()},
        {
            "name": "server.log",
            "mimeType": "",
            "buffer": b"".join(b"GET /walk/%d 200 in 12 ms\n" % n for n in range(9000)),
        },
    ]
    page.set_input_files("#snug-files", files)
    page.fill("#snug-input", "On which day did I walk furthest, and what did I see?")
    page.wait_for_function("document.querySelectorAll('.file-chip:not(.busy-file) .file-line').length === 3")
    page.wait_for_timeout(2000)
    shoot(page, "attachments")
    while page.locator(".file-remove").count():
        page.locator(".file-remove").first.click()
    page.fill("#snug-input", "")


def look_at_a_picture(browser: Browser) -> None:
    """A chat about a picture. No model that sees comes with the repository, so the reply is a script's."""
    reply = (
        "A small sailing boat on calm water, early or late in the day: the sun stands low over the horizon, and its "
        "light lies on the sea as a path towards us. Two clouds, no land in sight."
    )
    folder = Path(tempfile.mkdtemp())
    settings = Settings(model_dir=folder / "models", user_data_dir=folder / "user_data")
    for path in (settings.model_dir, settings.user_data_dir):
        path.mkdir()
    with ExitStack() as parts:
        parts.callback(shutil.rmtree, folder, ignore_errors=True)
        page = open_page(browser, start_snug(settings, parts, Script(sees=True, reply=reply, tokens_per_s=45)).url)
        page.set_input_files("#snug-files", [{"name": "Evening.png", "mimeType": "", "buffer": _evening()}])
        page.wait_for_selector(".file-thumb")
        page.fill("#snug-input", "What do you see?")
        page.press("#snug-input", "Enter")
        page.wait_for_selector(".message.assistant:not(.streaming)")
        page.set_input_files("#snug-files", [{"name": "The same, larger.png", "mimeType": "", "buffer": _evening(4)}])
        page.fill("#snug-input", "And in this one?")
        page.wait_for_selector(".file-cut")
        page.wait_for_timeout(1500)
        shoot(page, "picture")


def _evening(scale: int = 1) -> bytes:
    """A boat before the sun, drawn here."""
    width, height = 640, 420
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    for y in range(height):
        share = y / 260
        sky = (int(70 + 170 * share), int(80 + 90 * share), int(140 - 30 * share))
        deep = (y - 260) / 160
        sea = (int(150 - 110 * deep), int(110 - 50 * deep), int(110 - 10 * deep))
        draw.line((0, y, width, y), fill=sky if y < 260 else sea)
    draw.ellipse((395, 190, 485, 280), fill=(255, 196, 120))
    for y in range(260, height):
        deep = (y - 260) / 160
        draw.line((0, y, width, y), fill=(int(150 - 110 * deep), int(110 - 50 * deep), int(110 - 10 * deep)))
    for row, y in enumerate(range(268, 410, 9)):
        half = 12 + row * 3 + (row * 37) % 23
        draw.line((440 - half, y, 440 + half, y), fill=(255, 190, 120), width=2)
    for left, top in ((70, 70), (250, 40)):
        for dx, dy, size in ((0, 12, 40), (28, 0, 54), (66, 14, 38)):
            draw.ellipse((left + dx, top + dy, left + dx + size, top + dy + size // 2 + 6), fill=(214, 190, 190))
    draw.polygon(((150, 300), (290, 300), (262, 330), (178, 330)), fill=(60, 34, 40))
    draw.line((220, 300, 220, 150), fill=(50, 30, 34), width=4)
    draw.polygon(((226, 156), (226, 288), (300, 288)), fill=(244, 232, 222))
    draw.polygon(((214, 170), (214, 288), (158, 288)), fill=(226, 206, 196))
    sink = io.BytesIO()
    image.resize((width * scale, height * scale)).save(sink, "PNG")
    return sink.getvalue()


def keep_in_order(page: Page) -> None:
    """Two folders, and a search with the places found."""
    for title, folder in (("KV cache", "Learning"), ("sleepy grey cat", "Home")):
        row = page.locator(".conversation", has_text=title)
        row.hover()
        row.locator(".more").click()
        page.get_by_role("menuitem", name="Move to folder").click()
        page.get_by_role("menuitem", name="New folder").click()
        page.fill(".dialog-input", folder)
        page.press(".dialog-input", "Enter")
        page.wait_for_selector("dialog", state="detached")
    page.fill("#snug-search", "the")
    page.locator(".snippet").first.click()
    page.wait_for_selector(".message.found")
    page.wait_for_timeout(2600)
    shoot(page, "conversations")
    page.fill("#snug-search", "")


def shoot_parameters(page: Page) -> None:
    """A preset with something changed, one group open."""
    tab(page, "Parameters")
    page.select_option("#snug-preset", "Creative")
    page.wait_for_selector("#param-min_p.changed")
    page.fill("#param-temperature input[type=number]", "1.3")
    page.press("#param-temperature input[type=number]", "Tab")
    page.click('[data-fold="heat"]')
    page.wait_for_selector("#snug-preset-back:not([hidden])")
    shoot(page, "parameters")
    page.click("#snug-reset")
    page.click('[data-fold="heat"]')


def picture_downloads(browser: Browser) -> None:
    """A model on a hub of this machine looked at, while another one is on its way."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        shutil.copytree(ROOT / "models" / MODEL, models / MODEL)
        header = big_gguf(Path(folder), "8B")
        whole = header.stat().st_size
        with header.open("rb") as file:
            start = file.read(8 * 2**20)
        shares = {"Q2_K": 0.65, "Q3_K_M": 0.82, "Q4_K_M": 1.0, "Q5_K_M": 1.17, "Q6_K": 1.34, "Q8_0": 1.74}
        sizes = {f"Llama-8B-{kind}.gguf": int(share * whole) for kind, share in shares.items()}
        hub = FakeHub(repository(models / MODEL), repo="example/Fox-135M", drip_s=0.005)
        with serve(hub), snug("--model-dir", str(models), hub=hub.endpoint) as address:
            page = open_page(browser, address)
            tab(page, "Model")
            page.fill("#snug-hub-name", "example/Fox-135M")
            page.click("#snug-hub-look")
            page.click("#snug-hub-download")
            page.wait_for_function("document.querySelector('.download-line')?.textContent.includes('left')")
            hub.repo, hub.sizes, hub.license = "example/Llama-8B-Instruct-GGUF", sizes, "llama3.1"
            hub.files = dict.fromkeys(sizes, start)
            page.fill("#snug-hub-name", "example/Llama-8B-Instruct-GGUF")
            page.click("#snug-hub-look")
            page.wait_for_selector(".offer .plan-device")
            page.evaluate("document.activeElement.blur()")
            page.wait_for_timeout(2500)
            shoot(page, "download")


def lorebook(page: Page) -> None:
    """The lorebook of somebody who is being talked to; with a chat about it open."""
    entries: list[dict[str, object]] = [
        {
            "key": ["Marrow", "the island"],
            "content": "An island of forty houses; the ferry comes on Tuesdays.",
        },
        {
            "key": ["lamp", "lens"],
            "content": "The lamp burns paraffin; its lens was made in Paris in 1871.",
        },
        {
            "key": ["wreck", "Halcyon"],
            "content": "The Halcyon ran aground in the fog of 1923.",
        },
        {"key": [], "constant": True, "comment": "His dog", "content": "Otto's dog is called Pepper and fears gulls."},
    ]
    tab(page, "Characters")
    page.click('[data-character="Otto"]')
    page.click("#snug-talk")
    page.wait_for_selector(".message .speaker")
    page.fill("#snug-input", "Tell me about the wreck of the Halcyon, and your lamp.")
    tab(page, "Characters")
    page.click('[data-character="Otto"]')
    page.click("#snug-lorebook")
    world = json.dumps({"entries": {str(at): entry for at, entry in enumerate(entries)}}).encode()
    page.set_input_files("#snug-lore-file", FilePayload(name="world.json", mimeType="", buffer=world))
    page.wait_for_selector(".lore-row >> nth=3")
    page.locator(".toasts .icon-button").first.click()
    page.wait_for_selector(".toast", state="detached")
    page.evaluate("document.activeElement.blur()")
    shoot(page, "lorebook")
    page.click("#snug-lore-close")
    tab(page, "Chat")
    page.fill("#snug-input", "")


def compare(browser: Browser, address: str) -> None:
    """The loaded model beside itself in 4 bits."""
    page = open_page(browser, address)
    tab(page, "Compare")
    page.fill("#snug-compare-prompt", "Why do leaves turn red in autumn? Answer in two sentences.")
    page.wait_for_function("document.getElementById('snug-compare-plan').textContent")
    page.click("#snug-compare-go")
    page.wait_for_selector("#snug-compare-go:not([hidden])")
    page.wait_for_function("document.querySelectorAll('.stage-dot.at-done').length === 2")
    shoot(page, "compare")


def german(browser: Browser, address: str) -> None:
    """The Model tab as a German browser gets it."""
    page = open_page(browser, address, locale="de-DE")
    tab(page, "Model")
    shoot(page, "german")


def extensions(browser: Browser) -> None:
    """A reply coloured by how sure the model was, and the extensions' tab."""
    names = ("perplexity_colors", "speech", "gallery", "character_bias")
    with snug("--extensions", *names) as address:
        page = open_page(browser, address)
        talk(page, ("What do bees do at night?",))
        page.wait_for_selector(".speak")
        shoot(page, "colours")
        tab(page, "Extensions")
        page.wait_for_selector(".extension-card")
        shoot(page, "extensions")


def chat(browser: Browser, address: str) -> None:
    """A conversation, the list, files; in light, dark and on a phone."""
    page = open_page(browser, address)
    for prompts in CHATS:
        talk(page, prompts)
    shoot(page, "chat")
    conversation = page.url
    keep_in_order(page)
    attach(page)
    shoot(open_page(browser, conversation, dark=True), "chat-dark")
    shoot(open_page(browser, conversation, phone=True), "phone")


def people(browser: Browser, address: str) -> None:
    """The gallery, a lorebook, a conversation's setup."""
    page = open_page(browser, address)
    tab(page, "Characters")
    page.wait_for_function("[...document.querySelectorAll('.tile img')].every(image => image.complete)")
    page.click("#snug-new-persona")
    page.fill("#edit-name", "Kim")
    page.fill("#edit-description", "Kim repairs boats and drinks too much coffee.")
    page.click("#snug-save-person")
    page.wait_for_selector("[data-persona]")
    shoot(page, "characters")
    lorebook(page)
    tab(page, "Characters")
    page.click('[data-character="Wren"]')
    page.click("#snug-talk")
    page.wait_for_selector(".message .speaker")
    page.fill("#snug-input", "Why is the sky blue?")
    page.press("#snug-input", "Enter")
    page.wait_for_function("document.querySelectorAll('.message.assistant:not(.streaming)').length === 2")
    page.click("#snug-setup")
    page.click("#snug-exact summary")
    page.wait_for_selector(".exact-text")
    shoot(page, "setup")


def model(browser: Browser, address: str) -> None:
    """What a model needs, in light, dark and on a phone; the parameters."""
    page = open_page(browser, address)
    tab(page, "Model")
    shoot(page, "model")
    shoot_parameters(page)
    dark = open_page(browser, address, dark=True)
    tab(dark, "Model")
    dark.locator("#snug-strip").click()
    shoot(dark, "model-dark")
    phone = open_page(browser, address, phone=True)
    tab(phone, "Model")
    phone.locator("#snug-plan .verdict").wait_for(timeout=WAIT_MS)
    shoot(phone, "model-phone")


def notebook(browser: Browser, address: str) -> None:
    """A text by its tokens."""
    page = open_page(browser, address)
    tab(page, "Notebook")
    page.fill("#snug-notebook", "The lighthouse keeper had not spoken to anyone for a year. One evening,")
    page.click("#snug-generate")
    page.wait_for_function(
        "(([text, stop]) => text.value.length > 700 || (text.value.length > 200 && stop.hidden))"
        "(['snug-notebook', 'snug-notebook-stop'].map(id => document.getElementById(id)))"
    )
    if page.locator("#snug-notebook-stop").is_visible():
        page.click("#snug-notebook-stop")
    page.wait_for_selector("#snug-undo:not([disabled])")
    page.click("#snug-token-view")
    page.locator(".tok.l3, .tok.l4").nth(4).click()
    page.wait_for_selector(".token-choice")
    shoot(page, "notebook")


PARTS = {"chat": chat, "people": people, "model": model, "notebook": notebook, "compare": compare, "german": german}
ALONE = {
    "download": picture_downloads,
    "extensions": extensions,
    "picture": look_at_a_picture,
}  # with servers of their own


def main(asked: list[str]) -> None:
    """All pictures, or those of the parts named: `python docs/screenshots/make.py people extensions`."""
    wanted = asked or [*PARTS, *ALONE]
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        with snug() if set(wanted) & set(PARTS) else nullcontext("") as address:
            for name in wanted:
                if name in PARTS:
                    PARTS[name](browser, address)
        for name in wanted:
            if name in ALONE:
                ALONE[name](browser)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
