"""The Chat tab in a real browser: everything that people do with a conversation."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from modules.settings import LoadOptions
from tests.browser.conftest import OpenPage
from tests.fakes import Script
from tests.page_rig import Snug
from tests.test_host import until

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]
ENDLESS = Script(reply="and so on ", endless=True, tokens_per_s=40)
MARKDOWN = """Some **bold** text and $x^2$.

```python
print("hi")
```

| a | b |
|---|--:|
| 1 | 2 |
"""


def send(page: Page, text: str) -> None:
    """Write a message and press Enter."""
    page.fill("#snug-input", text)
    page.press("#snug-input", "Enter")


def replies(page: Page) -> Locator:
    """The finished replies on show."""
    return page.locator(".message.assistant:not(.streaming)")


def last_reply(page: Page) -> Locator:
    """The newest reply's text."""
    return page.locator(".message.assistant").last.locator(".body")


def grows(page: Page) -> None:
    """Wait until the newest reply is longer than now."""
    before = last_reply(page).inner_text()
    page.wait_for_function(
        "length => document.querySelector('.message.assistant:last-child .body').innerText.length > length",
        arg=len(before) + 5,
    )
    assert last_reply(page).inner_text().startswith(before)


def act(page: Page, name: str) -> None:
    """Press a button under the newest message."""
    page.locator(f'.message:last-child .actions [data-act="{name}"]').click()


def test_a_message_is_sent_with_enter_and_its_reply_appears_with_statistics(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="Hello to you."))
    page = visit(snug)
    page.fill("#snug-input", "Hi")
    page.press("#snug-input", "Shift+Enter")
    page.keyboard.type("there")
    page.press("#snug-input", "Enter")
    expect(last_reply(page)).to_have_text("Hello to you.")
    expect(page.locator(".message.user .body")).to_have_text("Hi\nthere")
    expect(page.locator(".message.assistant .stats")).to_contain_text("tok/s")
    expect(page.locator("#snug-input")).to_have_value("")
    assert "c=" in page.url
    expect(page.locator(".conversation.current")).to_have_text(re.compile("Hi"))


def test_a_reply_streams_and_escape_stops_it_with_its_text_kept(start: Start, visit: OpenPage) -> None:
    snug = start(ENDLESS)
    page = visit(snug)
    send(page, "Go on")
    expect(last_reply(page)).to_contain_text("and so on and so on")
    page.keyboard.press("Escape")
    expect(page.locator(".message.assistant .stats")).to_contain_text("stopped")
    expect(page.locator("#snug-send")).to_be_visible()
    stored = snug.services.store.path("", page.url.split("c=")[1])
    assert stored[-1].status == "stopped"
    expect(last_reply(page)).to_have_text(stored[-1].content.strip())


def test_a_reload_in_mid_reply_takes_the_stream_up_again(start: Start, visit: OpenPage) -> None:
    snug = start(ENDLESS)
    page = visit(snug)
    send(page, "Go on")
    expect(last_reply(page)).to_contain_text("and so on")
    page.reload()
    expect(page.locator("#snug-stop")).to_be_visible()
    grows(page)
    page.locator("#snug-stop").click()
    expect(page.locator(".message.assistant .stats")).to_contain_text("stopped")


def test_leaving_a_conversation_in_mid_reply_and_coming_back_shows_it_running(start: Start, visit: OpenPage) -> None:
    snug = start(ENDLESS)
    page = visit(snug)
    send(page, "First")
    expect(last_reply(page)).to_contain_text("and so on")
    page.click("#snug-new")
    expect(page.locator(".message")).to_have_count(0)
    page.locator(".conversation a", has_text="First").click()
    expect(page.locator("#snug-stop")).to_be_visible()
    grows(page)


def test_regenerating_makes_a_version_and_the_arrows_go_between_them(start: Start, visit: OpenPage) -> None:
    page = visit(start())
    send(page, "Hi")
    expect(replies(page)).to_have_count(1)
    act(page, "regenerate")
    expect(page.locator(".versions")).to_have_text("2/2")
    page.get_by_label("Earlier version").click()
    expect(page.locator(".versions")).to_have_text("1/2")


def test_continue_lengthens_a_reply(start: Start, visit: OpenPage) -> None:
    page = visit(start(ENDLESS))
    send(page, "Go on")
    expect(last_reply(page)).to_contain_text("and so on")
    page.click("#snug-stop")
    expect(page.locator("#snug-send")).to_be_visible()
    act(page, "continue")
    expect(page.locator("#snug-stop")).to_be_visible()
    grows(page)
    page.keyboard.press("Escape")
    expect(page.locator(".message")).to_have_count(2)


def test_both_sides_messages_can_be_edited(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="An answer."))
    page = visit(snug)
    send(page, "A question")
    expect(last_reply(page)).to_have_text("An answer.")
    act(page, "edit")
    page.fill(".edit-area", "A **better** answer.")
    page.get_by_role("button", name="Save").click()
    expect(last_reply(page).locator("strong")).to_have_text("better")
    page.locator(".message.user").hover()
    page.locator('.message.user [data-act="edit"]').click()
    page.fill(".edit-area", "A better question")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".message.user .body")).to_have_text("A better question")
    stored = snug.services.store.path("", page.url.split("c=")[1])
    assert [message.content for message in stored] == ["A better question", "A **better** answer."]


def test_deleting_the_last_exchange_gives_the_question_back(start: Start, visit: OpenPage) -> None:
    page = visit(start())
    send(page, "A question")
    expect(replies(page)).to_have_count(1)
    act(page, "delete")
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator("#snug-input")).to_have_value("A question")


def test_conversations_are_searched_in_their_text_renamed_and_deleted(start: Start, visit: OpenPage) -> None:
    snug = start()
    page = visit(snug)
    for text in ("About apples", "About pears"):
        page.click("#snug-new")
        send(page, text)
        expect(replies(page)).to_have_count(1)
    expect(page.locator(".conversation")).to_have_count(2)
    page.fill("#snug-search", "apples")
    expect(page.locator(".conversation")).to_have_text([re.compile("About apples")])
    page.fill("#snug-search", "nothing like it")
    expect(page.locator(".empty-list")).to_have_text("Nothing found.")
    page.fill("#snug-search", "")
    pears = page.locator(".conversation", has_text="pears")
    pears.hover()
    pears.locator(".more").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.fill(".rename", "Fruit")
    page.press(".rename", "Enter")
    fruit = page.locator(".conversation", has_text="Fruit")
    expect(fruit).to_have_count(1)
    fruit.hover()
    fruit.locator(".more").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(fruit).to_have_count(0)
    expect(page.locator(".message")).to_have_count(0)
    assert [item.title for item in snug.services.store.list("")] == ["About apples"]


def test_a_killed_engine_shows_an_error_card_and_the_next_message_works(start: Start, visit: OpenPage) -> None:
    snug = start(ENDLESS, processes=True)
    page = visit(snug)
    send(page, "Go on")
    expect(last_reply(page)).to_contain_text("and so on")
    pid = snug.services.models.engine().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    expect(page.locator(".problem")).to_be_visible()
    expect(last_reply(page)).to_contain_text("and so on")
    send(page, "Once more")
    expect(page.locator(".message")).to_have_count(4)
    expect(last_reply(page)).to_contain_text("and so on")


def test_without_a_model_nothing_is_lost_and_the_card_leads_to_the_model_tab(start: Start, visit: OpenPage) -> None:
    snug = start(loaded=False)
    page = visit(snug)
    expect(page.locator("#snug-model")).to_have_text("No model loaded")
    send(page, "Too early")
    expect(page.locator(".problem")).to_contain_text("No model")
    expect(page.locator(".message.user .body")).to_have_text("Too early")
    page.locator(".problem").get_by_role("button", name="Open Model").click()
    page.locator("#snug-models [data-model=tiny]").click()
    page.locator("#snug-load").click()
    expect(page.locator("#snug-model")).to_have_text("tiny")
    page.get_by_role("tab", name="Chat").click()
    page.locator('.problem [data-act="regenerate"]').click()
    expect(replies(page).locator(".stats")).to_contain_text("tok/s")


def test_two_tabs_on_one_conversation_lose_nothing(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="Yes."))
    first = visit(snug)
    send(first, "One")
    expect(replies(first)).to_have_count(1)
    second = visit(snug, "/" + first.url.split("/", 3)[3], context=first.context)
    expect(replies(second)).to_have_count(1)
    send(first, "Two")
    expect(replies(second)).to_have_count(2)
    send(second, "Three")
    expect(replies(first)).to_have_count(3)


def test_a_message_below_one_that_was_deleted_elsewhere_stays_in_the_composer(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="Yes."))
    page = visit(snug)
    expect(page.locator(".suggestion").first).to_be_visible()
    page.route(
        "**/component_server/", lambda route: None if "pulse" in (route.request.post_data or "") else route.continue_()
    )
    send(page, "One")
    expect(replies(page)).to_have_count(1)
    conversation = page.url.split("c=")[1]
    snug.services.chat.delete_last("", conversation)
    send(page, "Two")
    expect(page.locator(".toast")).to_be_visible()
    expect(page.locator("#snug-input")).to_have_value("Two")
    expect(page.locator(".message")).to_have_count(0)


def test_what_is_sent_while_its_conversation_still_opens_is_sent_to_it_then(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="Yes."))
    page = visit(snug)
    send(page, "One")
    expect(replies(page)).to_have_count(1)
    conversation = page.url.split("c=")[1]
    page.locator("#snug-new").click()
    release = hold(page, "open")
    page.locator(f'.conversation[data-id="{conversation}"] > a').click()
    send(page, "Two")
    release()
    expect(replies(page)).to_have_count(2)
    expect(page.locator(".message.user").last).to_contain_text("Two")
    expect(page.locator("#snug-input")).to_have_value("")


def test_a_double_click_on_send_stores_one_message(start: Start, visit: OpenPage) -> None:
    snug = start()
    page = visit(snug)
    page.fill("#snug-input", "Once")
    page.locator("#snug-send").dblclick()
    expect(replies(page)).to_have_count(1)
    stored = snug.services.store.path("", page.url.split("c=")[1])
    assert [message.role for message in stored] == ["user", "assistant"]


def kept_system_prompt(snug: Snug) -> str:
    """That of the conversation used last."""
    store = snug.services.store
    return store.get("", store.list("")[0].id).system_prompt


def test_a_system_prompt_belongs_to_its_conversation(start: Start, visit: OpenPage) -> None:
    snug = start()
    page = visit(snug)
    page.click("#snug-system")
    page.fill(".system-prompt .edit-area", "Be brief.")
    page.get_by_role("button", name="Save").click()
    send(page, "Hi")
    expect(replies(page)).to_have_count(1)
    assert kept_system_prompt(snug) == "Be brief."
    expect(page.locator("#snug-system")).to_have_text("Be brief.")
    page.click("#snug-new")
    expect(page.locator("#snug-system")).to_have_text("Add a system prompt")


def test_markdown_code_and_maths_are_rendered_and_code_is_copied(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(reply=MARKDOWN)), permissions=["clipboard-read", "clipboard-write"])
    send(page, "Show me")
    expect(last_reply(page).locator("math")).to_have_count(1)
    expect(last_reply(page).locator("pre .nb")).to_have_text("print")
    expect(last_reply(page).locator("td.right")).to_have_text("2")
    last_reply(page).locator(".copy-code").click()
    assert page.evaluate("navigator.clipboard.readText()") == 'print("hi")\n'


def test_without_streaming_the_reply_appears_when_it_is_complete(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(reply="word " * 40, tokens_per_s=100), no_stream=True))
    send(page, "Hi")
    expect(page.locator(".message.streaming .waiting")).to_be_visible()
    assert last_reply(page).inner_text() == ""
    expect(replies(page).locator(".body")).to_contain_text("word word")


def test_a_reply_that_gives_way_says_so_below_its_text_until_it_goes_on(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(reply="Seven words come, and then it waits.", fault="wait", fault_at=20)))
    send(page, "Hi")
    waiting = page.locator(".message.streaming .waiting")
    expect(waiting).to_have_text("You are next")
    expect(waiting).to_be_visible()
    assert last_reply(page).inner_text().startswith("Seven words")
    expect(last_reply(page)).to_contain_text("it waits.")
    expect(page.locator(".waiting")).to_have_count(0)


def show_all(page: Page, messages: int) -> None:
    """A long conversation opens with its last 60 messages; the button above them brings up to 100 more."""
    shown = 60
    expect(page.locator(".message")).to_have_count(shown)
    while shown < messages:
        page.locator("#snug-earlier").click()
        shown = min(shown + 100, messages)
        expect(page.locator(".message")).to_have_count(shown)


def test_many_replies_later_the_page_is_still_quick(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="Quick."))
    store = snug.services.store
    conversation = store.create("", title="Long")
    parent = None
    for number in range(100):
        question = store.append("", conversation.id, parent, "user", f"Question {number}", op_id=f"operation-{number}")
        answer = store.append("", conversation.id, question.id, "assistant", MARKDOWN, op_id=f"reply-to-{number}")
        parent = answer.id
    page = visit(snug, f"/?c={conversation.id}")
    show_all(page, 200)
    send(page, "One more")
    expect(last_reply(page)).to_have_text("Quick.")


def test_parameters_reach_the_engine(start: Start, visit: OpenPage) -> None:
    page = visit(start(ENDLESS))
    page.get_by_role("tab", name="Parameters").click()
    page.locator("#param-max_new_tokens input[type=number]").fill("20")
    page.locator("#param-max_new_tokens input[type=number]").press("Tab")
    expect(page.locator("#param-max_new_tokens")).to_have_class(re.compile("changed"))
    page.get_by_role("tab", name="Chat").click()
    send(page, "Go on")
    expect(page.locator(".message.assistant .stats")).to_contain_text("20 tokens")
    expect(page.locator(".message.assistant .stats")).to_contain_text("length limit")


def hold(page: Page, door: str) -> Callable[[], None]:
    """Let the page's next request to `door` wait until the function returned is called."""
    held: list[Route] = []

    def catch(route: Route) -> None:
        if f'"{door}"' in (route.request.post_data or "") and not held:
            held.append(route)
        else:
            route.continue_()

    page.route("**/component_server/", catch)

    def release() -> None:
        deadline = time.monotonic() + 10
        while not held and time.monotonic() < deadline:
            page.wait_for_timeout(10)  # lets playwright hand the request over
        held[0].continue_()

    return release


def test_text_written_while_a_message_is_sent_stays_in_the_composer(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(reply="Yes.")))
    release = hold(page, "send")
    send(page, "One")
    page.keyboard.type(" and a half")
    release()
    expect(replies(page)).to_have_count(1)
    expect(page.locator(".message.user .body")).to_have_text("One")
    expect(page.locator("#snug-input")).to_have_value("and a half")
    page.reload()
    expect(page.locator("#snug-input")).to_have_value("and a half")


def test_a_suggestion_leaves_what_is_in_the_composer_alone(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(reply="Yes.")))
    page.fill("#snug-input", "My own words")
    page.locator(".suggestion").first.click()
    expect(replies(page)).to_have_count(1)
    expect(page.locator("#snug-input")).to_have_value("My own words")


def test_an_edit_that_is_not_saved_outlives_another_message(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(reply="Yes.")))
    send(page, "One")
    expect(replies(page)).to_have_count(1)
    act(page, "edit")
    page.fill(".messages .edit-area", "A better reply")
    send(page, "Two")
    expect(replies(page)).to_have_count(2)
    expect(page.locator(".messages .edit-area")).to_have_value("A better reply")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".message.assistant .body").first).to_have_text("A better reply")


def test_a_system_prompt_being_written_outlives_a_message(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="Yes."))
    page = visit(snug)
    page.click("#snug-system")
    page.fill(".system-prompt .edit-area", "Be brief.")
    send(page, "One")
    expect(replies(page)).to_have_count(1)
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#snug-system")).to_have_text("Be brief.")
    assert kept_system_prompt(snug) == "Be brief."


def test_a_deleted_question_goes_above_what_the_composer_holds(start: Start, visit: OpenPage) -> None:
    page = visit(start())
    send(page, "A question")
    expect(replies(page)).to_have_count(1)
    page.fill("#snug-input", "More")
    act(page, "delete")
    expect(page.locator("#snug-input")).to_have_value("A question\n\nMore")


def test_a_question_cannot_be_edited_to_nothing(start: Start, visit: OpenPage) -> None:
    page = visit(start())
    send(page, "A question")
    expect(replies(page)).to_have_count(1)
    page.locator(".message.user").hover()
    page.locator('.message.user [data-act="edit"]').click()
    page.fill(".edit-area", "  ")
    page.get_by_role("button", name="Save").click()
    expect(page.locator(".toast")).to_contain_text("needs some text")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".message.user .body")).to_have_text("A question")


def test_what_another_tab_edits_creates_and_renames_arrives(start: Start, visit: OpenPage) -> None:
    snug = start()
    page = visit(snug)
    send(page, "A question")
    expect(replies(page)).to_have_count(1)
    store = snug.services.store
    conversation = store.list("")[0]
    store.edit("", store.path("", conversation.id)[0].id, "Another question")
    expect(page.locator(".message.user .body")).to_have_text("Another question")
    store.create("", title="From elsewhere")
    store.rename("", conversation.id, "Renamed")
    expect(page.locator(".conversation")).to_have_count(2)
    expect(page.locator(".conversation.current")).to_contain_text("Renamed")
    expect(page).to_have_title("Renamed · Snug")


def test_an_edit_elsewhere_between_a_reply_and_the_look_after_it_arrives(start: Start, visit: OpenPage) -> None:
    snug = start()
    page = visit(snug)
    held: list[Route] = []
    hold = True

    def hold_pulses(route: Route) -> None:
        if hold and "pulse" in (route.request.post_data or ""):
            held.append(route)
        else:
            route.continue_()

    page.route("**/component_server/", hold_pulses)
    send(page, "A question")
    expect(replies(page)).to_have_count(1)
    store = snug.services.store
    store.edit("", store.path("", store.list("")[0].id)[0].id, "Another question")
    hold = False
    for route in held:
        route.continue_()
    expect(page.locator(".message.user .body")).to_have_text("Another question")


def test_a_rename_is_in_the_title_of_the_browser_tab_at_once(start: Start, visit: OpenPage) -> None:
    page = visit(start())
    send(page, "A question")
    expect(replies(page)).to_have_count(1)
    page.route(
        "**/component_server/", lambda route: None if "pulse" in (route.request.post_data or "") else route.continue_()
    )
    page.locator(".conversation.current .more").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.fill(".rename", "Fruit")
    page.press(".rename", "Enter")
    expect(page).to_have_title("Fruit · Snug")


def test_a_reply_that_ends_while_another_tab_is_on_show_leaves_the_chat_whole(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="A line.\n\n" * 60, tokens_per_s=300))
    page = visit(snug)
    send(page, "Go on")
    expect(last_reply(page)).to_contain_text("A line.")
    page.get_by_role("tab", name="Parameters").click()
    until(lambda: snug.services.store.path("", page.url.split("c=")[1])[-1].status == "complete")
    expect(replies(page)).to_have_count(1)
    page.get_by_role("tab", name="Chat").click()
    page.wait_for_function("document.getElementById('snug-input').clientHeight > 20")
    page.wait_for_function(
        "(() => { const s = document.getElementById('snug-scroller');"
        " return s.scrollHeight > s.clientHeight && s.scrollHeight - s.scrollTop - s.clientHeight < 5; })()"
    )


def test_an_error_card_offers_the_model_tab_as_long_as_no_model_answers(start: Start, visit: OpenPage) -> None:
    snug = start(ENDLESS)
    page = visit(snug)
    send(page, "Go on")
    expect(last_reply(page)).to_contain_text("and so on")
    snug.services.models.unload()
    button = page.locator(".problem").get_by_role("button", name="Open Model")
    expect(button).to_be_visible()
    snug.services.models.load(LoadOptions.model_validate({"model": "tiny"}))
    expect(button).to_have_count(0)
    expect(page.locator(".problem")).to_be_visible()


def test_a_conversations_menu_goes_by_keys_and_gives_the_focus_back(start: Start, visit: OpenPage) -> None:
    page = visit(start())
    send(page, "Hello")
    expect(replies(page)).to_have_count(1)
    more = page.locator(".conversation .more")
    more.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("menuitem", name="Rename")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.get_by_role("menuitem", name="Pin")).to_be_focused()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("menuitem", name="Delete")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("menu")).to_have_count(0)
    expect(more).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    page.keyboard.type("By keys alone")
    page.keyboard.press("Enter")
    expect(page.locator(".conversation a")).to_have_text("By keys alone")
    expect(page.locator(".conversation a")).to_be_focused()
    send(page, "More")
    page.locator(".conversation a").focus()
    expect(replies(page)).to_have_count(2)
    page.evaluate("snug.refreshConversations()")
    expect(page.locator(".conversation a")).to_be_focused()


def test_a_list_that_changes_under_an_open_menu_waits_for_its_end(start: Start, visit: OpenPage) -> None:
    snug = start()
    page = visit(snug)
    send(page, "Hello")
    expect(replies(page)).to_have_count(1)
    more = page.locator(".conversation .more")
    more.click()
    store = snug.services.store
    store.rename("", store.list("")[0].id, "From elsewhere")
    page.evaluate("snug.refreshConversations()")
    expect(page.get_by_role("menu")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator(".conversation a")).to_have_text("From elsewhere")
    expect(more).to_be_focused()


def test_on_a_phone_escape_closes_the_sidebar(start: Start, visit: OpenPage) -> None:
    page = visit(start(), viewport={"width": 390, "height": 844})
    page.get_by_label("Show the sidebar").press("Enter")
    expect(page.get_by_label("Hide the sidebar")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#snug-sidebar")).not_to_be_visible()
    expect(page.get_by_label("Show the sidebar")).to_be_focused()


def test_escape_for_something_else_does_not_stop_the_reply(start: Start, visit: OpenPage) -> None:
    page = visit(start(ENDLESS))
    send(page, "Go on and on")
    grows(page)
    page.locator("#snug-strip").click()
    page.keyboard.press("Escape")
    expect(page.locator(".strip-sheet")).to_have_count(0)
    page.locator("#snug-search").focus()
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Model").click()
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Chat").click()
    grows(page)
    page.locator("#snug-input").focus()
    page.keyboard.press("Escape")
    expect(page.locator(".message.assistant .stats")).to_contain_text("stopped")


def test_the_jump_to_the_latest_message_arrives_there_in_a_long_conversation(start: Start, visit: OpenPage) -> None:
    snug = start()
    store = snug.services.store
    conversation, parent = store.create("", title="Long"), None
    for number in range(100):
        asked = store.append("", conversation.id, parent, "user", f"Question {number}", op_id=f"question-{number}")
        text = "\n\n".join(["A paragraph."] * (1 + number % 9))
        parent = store.append("", conversation.id, asked.id, "assistant", text, op_id=f"answer-{number}").id
    page = visit(snug, f"/?c={conversation.id}")
    show_all(page, 200)
    page.evaluate("document.querySelector('#snug-scroller').scrollTop = 0")
    page.locator(".jump.shown").click()
    expect(page.locator(".jump.shown")).to_have_count(0)
    expect(page.locator(".message").last).to_be_in_viewport()
