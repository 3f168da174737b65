"""Characters, personas, modes, the exact prompt, thoughts and the gauge of the context, in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import FilePayload, Page, Route, expect

from modules.sampling import GenerationParams
from tests.browser.conftest import OpenPage
from tests.browser.test_chat import last_reply, replies, send
from tests.browser.test_tabs import open_tab
from tests.fakes import CHAT_TEMPLATE, Script
from tests.page_rig import Snug

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]
BO = {
    "spec": "chara_card_v2", "spec_version": "2.0",
    "data": {
        "name": "Bo <b>x</b>", "description": "A bear.", "first_mes": "Mrr, {{user}}.",
        "alternate_greetings": ["Second greeting."], "creator_notes": "<img src=x onerror=alert(1)>",
    },
}  # fmt: skip


def card_file(name: str = "bo.png") -> FilePayload:
    """A character card as a PNG."""
    info = PngInfo()
    info.add_text("chara", base64.b64encode(json.dumps(BO).encode()).decode())
    sink = io.BytesIO()
    Image.new("RGB", (60, 80), "#884422").save(sink, "PNG", pnginfo=info)
    return {"name": name, "mimeType": "image/png", "buffer": sink.getvalue()}


def talk_to(page: Page, ident: str) -> None:
    """From the gallery into a chat with somebody."""
    open_tab(page, "Characters")
    page.locator(f'[data-character="{ident}"]').click()
    page.locator("#snug-talk").click()
    expect(page.locator(".message.assistant").first).to_be_visible()


def prompt_of(page: Page, text: str) -> str:
    """What the model would be told with this as the next message, as the panel shows it."""
    page.fill("#snug-input", text)
    page.locator("#snug-setup").click()
    if not page.locator(".exact-text").is_visible():
        page.locator("#snug-exact summary").click()
    expect(page.locator(".exact-text")).to_contain_text(text)
    shown = page.locator(".exact-text").inner_text()
    page.keyboard.press("Escape")
    expect(page.locator(".setup-panel")).to_have_count(0)
    return shown


def echo_of(page: Page, text: str) -> str:
    """Send a message to an echoing model: the beginning of what it was told."""
    count = replies(page).count()
    send(page, text)
    expect(replies(page)).to_have_count(count + 1)
    return last_reply(page).inner_text()


def test_a_shipped_character_greets_and_is_told_to_the_model(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(echo=True)))
    open_tab(page, "Characters")
    expect(page.locator(".tile")).to_have_count(3)
    page.wait_for_function("[...document.querySelectorAll('.tile img')].every(i => i.complete && i.naturalWidth > 100)")
    talk_to(page, "Wren")
    expect(page.locator(".message .speaker")).to_have_text("Wren")
    expect(last_reply(page)).to_contain_text("Hello! I'm Wren.")
    told = prompt_of(page, "What is rain?")
    assert "Hello! I'm Wren." in told and told.rstrip().endswith("assistant")
    assert "You are Wren, a patient and friendly teacher." in echo_of(page, "What is rain?")
    expect(page.locator(".conversation.current")).to_have_text("What is rain?⋯")
    page.reload()
    expect(page.locator(".message .speaker").first).to_have_text("Wren")


def test_other_greetings_are_versions_of_the_first(start: Start, visit: OpenPage) -> None:
    page = visit(start())
    talk_to(page, "Wren")
    first = page.locator(".message.assistant").first
    expect(first.locator(".versions")).to_contain_text("1/3")
    expect(first.locator('[data-act="regenerate"]')).to_have_count(0)
    first.get_by_label("Later version").click()
    expect(first.locator(".versions")).to_contain_text("2/3")
    expect(first).to_contain_text("Shall we go on where you last got stuck?")


def test_a_card_is_imported_used_exported_deleted_and_brought_back(
    start: Start, visit: OpenPage, tmp_path: Path
) -> None:
    page = visit(start())
    open_tab(page, "Characters")
    page.locator("#snug-import").set_input_files(card_file())
    tile = page.locator(".tile", has_text="Bo <b>x</b>")
    expect(tile).to_be_visible()
    expect(page.locator(".toast")).to_contain_text("is here.")
    tile.click()
    with page.expect_download() as download:
        page.locator('[data-export="png"]').click()
    kept = tmp_path / "out.png"
    download.value.save_as(kept)
    image = Image.open(kept)
    image.load()
    assert json.loads(base64.b64decode(image.text["ccv3"]))["data"]["name"] == "Bo <b>x</b>"  # type: ignore[attr-defined]
    page.locator("[data-delete]").click()
    expect(tile).to_have_count(0)
    page.locator(".toast", has_text="is deleted").get_by_text("Undo").click()
    expect(tile).to_be_visible()
    page.locator("#snug-import").set_input_files(
        {"name": "bad.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\nnothing"}
    )
    expect(page.locator(".toast.bad")).to_contain_text("no picture that Snug can read")


def test_a_character_is_made_and_edited_by_hand(start: Start, visit: OpenPage) -> None:
    page = visit(start())
    open_tab(page, "Characters")
    page.locator("#snug-new-character").click()
    page.locator("#snug-save-person").click()
    expect(page.locator("dialog .problem")).to_contain_text("gives no name")
    page.fill("#edit-name", "Kai")
    page.fill("#edit-description", "A gardener.")
    page.fill("#edit-first_mes", "Mind the roses.")
    page.locator("#snug-save-person").click()
    page.locator('[data-character="Kai"]').click()
    page.get_by_role("button", name="Edit", exact=True).click()
    page.fill("#edit-first_mes", "Mind the tulips.")
    page.locator("#snug-save-person").click()
    talk_to(page, "Kai")
    expect(last_reply(page)).to_have_text("Mind the tulips.")


def test_a_persona_is_who_the_character_speaks_to(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(echo=True)))
    open_tab(page, "Characters")
    page.locator("#snug-new-persona").click()
    page.fill("#edit-name", "Kim")
    page.fill("#edit-description", "Kim sails alone.")
    page.locator("#snug-save-person").click()
    expect(page.locator('[data-persona="Kim"]')).to_have_attribute("aria-pressed", "true")
    talk_to(page, "Mira")
    told = prompt_of(page, "Hello")
    assert "Kim sails alone." in told and "Kim: Due to the fact" in told


def test_the_mode_is_changed_in_the_panel_and_stays(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(echo=True)))
    talk_to(page, "Wren")
    page.locator("#snug-setup").click()
    page.locator('[data-manner="chat-instruct"]').click()
    expect(page.locator('[data-manner="chat-instruct"]')).to_have_attribute("aria-checked", "true")
    page.keyboard.press("Escape")
    expect(page.locator(".setup-panel")).to_have_count(0)
    told = prompt_of(page, "What is rain?")
    assert 'Write a single reply for the character "Wren".' in told and told.rstrip().endswith("Wren:")
    page.reload()
    page.locator("#snug-setup").click()
    expect(page.locator('[data-manner="chat-instruct"]')).to_have_attribute("aria-checked", "true")
    page.locator('[data-manner="instruct"]').click()
    expect(page.locator(".speaker")).to_have_count(0)


def test_the_exact_prompt_and_a_template_of_ones_own(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(echo=True)))
    send(page, "Hello there")
    expect(replies(page)).to_have_count(1)
    page.locator("#snug-setup").click()
    page.locator("#snug-exact summary").click()
    expect(page.locator(".exact-text")).to_contain_text("<|im_start|>user\nHello there<|im_end|>")
    expect(page.locator(".exact .panel-help")).to_contain_text("of 4,096 tokens")
    page.locator("summary", has_text="Chat template").click()
    expect(page.locator("#setup-template")).to_have_value(CHAT_TEMPLATE)
    page.fill("#setup-template", "{% for x in %}")
    page.locator("#setup-template-use").click()
    expect(page.locator(".panel-fold .problem")).to_contain_text("The chat template cannot be used")
    page.fill("#setup-template", "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[go]")
    page.locator("#setup-template-use").click()
    expect(page.locator(".exact-text")).to_have_text("[user] Hello there\n[go]")
    page.keyboard.press("Escape")
    assert echo_of(page, "Again").startswith("[user] Hello there")


def test_a_template_that_fails_later_is_told_and_the_chat_goes_on(start: Start, visit: OpenPage) -> None:
    snug = start(Script(echo=True, tokens_per_s=100))
    page = visit(snug)
    assert "Hello" in echo_of(page, "Hello")
    page.locator("#snug-setup").click()
    page.locator("summary", has_text="Chat template").click()
    page.fill(
        "#setup-template",
        "{% for m in messages %}{% if 'boom' in m.content %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}{% endfor %}",
    )
    page.locator("#setup-template-use").click()
    expect(page.locator(".panel-fold")).to_contain_text(["template of its own", ""])
    page.keyboard.press("Escape")
    assert "<|im_start|>user" in echo_of(page, "boom")
    expect(page.locator(".thread-notice")).to_contain_text("own chat template failed")


def test_thoughts_are_folded_and_not_sent_back(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="<think>\nLet me count.\n</think>\n\nIt is **four**."))
    page = visit(snug)
    send(page, "2 + 2?")
    expect(last_reply(page)).to_have_text("It is four.")
    fold = page.locator(".message.assistant .thought")
    expect(fold.locator("summary")).to_contain_text("Thought for")
    expect(fold.locator(".thought-text")).to_be_hidden()
    fold.locator("summary").click()
    expect(fold.locator(".thought-text")).to_have_text("Let me count.")
    page.locator("#snug-setup").click()
    page.fill("#snug-input", "And 3 + 3?")
    page.locator("#snug-exact summary").click()
    expect(page.locator(".exact-text")).to_contain_text("It is **four**.")
    expect(page.locator(".exact-text")).not_to_contain_text("Let me count.")


def test_a_thinking_model_shows_its_thought_while_it_thinks(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(reply="<think>" + "hm " * 10_000, tokens_per_s=60)))
    send(page, "Hello")
    expect(page.locator(".thought-line")).to_have_text("Thinking")
    page.locator(".thought summary").click()
    page.wait_for_function("document.querySelector('.thought-text')?.innerText.length > 30")
    assert page.locator(".thought").evaluate("node => node.open")
    page.locator("#snug-stop").click()
    expect(page.locator(".thought-line")).to_contain_text("Thought")


def test_the_choice_of_thinking_is_there_where_the_template_has_one(start: Start, visit: OpenPage) -> None:
    template = CHAT_TEMPLATE + "{% if enable_thinking is false %}[quiet]{% endif %}"
    page = visit(start(Script(echo=True, chat_template=template)))
    assert "[quiet]" not in echo_of(page, "Hello")
    page.locator("#snug-setup").click()
    page.select_option("#setup-thinking", "off")
    page.keyboard.press("Escape")
    assert echo_of(page, "Hello").endswith("[quiet]")


def test_the_model_writes_the_users_next_message_into_the_composer(start: Start, visit: OpenPage) -> None:
    snug = start(Script(quote=True))
    page = visit(snug)
    send(page, "Hello")
    expect(replies(page)).to_have_count(1)
    page.fill("#snug-input", "Well, ")
    page.locator('[data-act="impersonate"]').click()
    expect(page.locator("#snug-input")).to_have_value(re.compile("user⏎$"))
    expect(page.locator("#snug-send")).to_be_enabled()
    written = page.locator("#snug-input").input_value()
    assert written.startswith("Well, ") and "«im_start»user" in written
    assert len(snug.services.store.path("", page.url.split("c=")[1])) == 2
    page.reload()
    assert page.locator("#snug-input").input_value() == written


def test_replies_begin_as_the_panel_says(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(reply=" and so on.")))
    page.locator("#snug-setup").click()
    page.fill("#setup-start", "Certainly")
    page.keyboard.press("Escape")
    send(page, "Hello")
    expect(last_reply(page)).to_have_text("Certainly and so on.")
    expect(replies(page)).to_have_count(1)


def test_the_gauge_tells_what_will_be_left_out_before_it_is_sent(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="Fine. " * 30, tokens_per_s=200))
    page = visit(snug)
    context = snug.services.models.engine().info.context_tokens
    for _ in range(3):
        count = replies(page).count()
        send(page, "word " * (context // 40))
        expect(replies(page)).to_have_count(count + 1)
    expect(page.locator("#snug-gauge-text")).to_contain_text(f"of {context:,} tokens")
    expect(page.locator(".message.left-out")).to_have_count(0)
    room = context - min(GenerationParams().max_new_tokens, context // 4)
    page.fill("#snug-input", "x" * (room - context // 4))
    expect(page.locator("#snug-gauge-text")).to_contain_text("will be left out")
    marked = page.locator(".message.left-out").count()
    assert marked > 0
    page.locator("#snug-input").press("Enter")
    expect(page.locator(".thread-notice")).to_contain_text(f"The {marked} oldest messages did not fit")


def test_the_gallery_and_the_panel_fit_a_phone(start: Start, visit: OpenPage) -> None:
    page = visit(start(), viewport={"width": 390, "height": 844}, has_touch=True)
    for title in ("Chat", "Characters", "Notebook", "Compare", "Model", "Parameters"):
        expect(page.get_by_role("tab", name=title)).to_be_visible()
    talk_to(page, "Otto")
    page.locator("#snug-setup").click()
    box = page.locator(".setup-panel").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_two_choices_at_once_on_a_slow_link_are_both_kept(start: Start, visit: OpenPage) -> None:
    snug = start()
    page = visit(snug)
    send(page, "Hello")
    expect(replies(page)).to_have_count(1)
    chat = page.url.split("c=")[1]
    page.locator("#snug-setup").click()
    expect(page.locator(".modes")).to_be_visible()
    held: list[Route] = []

    def hold(route: Route) -> None:
        if not held and "set_setup" in (route.request.post_data or ""):
            held.append(route)
        else:
            route.continue_()

    page.route("**/component_server/", hold)
    with page.expect_request(lambda request: "set_setup" in (request.post_data or "")):
        page.locator('[data-manner="chat"]').click()
    page.fill("#setup-start", "Certainly")
    page.locator("#setup-start").blur()
    with page.expect_response(lambda response: "Certainly" in (response.request.post_data or "")):
        held[0].continue_()
    expect(page.locator('[data-manner="chat"]')).to_have_attribute("aria-checked", "true")
    setup = snug.services.store.get("", chat).setup
    assert (setup.manner, setup.reply_start) == ("chat", "Certainly")
