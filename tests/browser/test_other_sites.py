"""Another site's page, open in the same browser, gets at nothing of Snug's and shows nothing of it (B4, B11)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser, Response, expect

from modules.messages import Conversation
from tests.browser.conftest import OpenPage
from tests.browser.test_chat import last_reply, send
from tests.fakes import Script
from tests.page_rig import Snug

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]
EVIL = """<!doctype html><title>Evil</title><body><script>
async function attack(snug) {
  const tried = {};
  const attempt = async (name, act) => { try { tried[name] = await act(); } catch { tried[name] = "refused"; } };
  const chat = JSON.stringify({ messages: [{ role: "user", content: "from elsewhere" }] });
  const file = '{"title": "x", "messages": [{"role": "user", "content": "y"}]}';
  const headers = { "content-type": "application/json" };
  const form = new FormData();
  form.append("files", new File(["x"], "canary.txt"));
  for (const credentials of ["omit", "include"]) {
    const read = (path, more = {}) => attempt(`${path} ${credentials}`, async () => {
      const answer = await fetch(snug + path, { credentials, ...more });
      return `read ${answer.status} ${await answer.text()}`;
    });
    const blind = (path, body) => attempt(`blind ${path} ${credentials}`,
      async () => (await fetch(snug + path, { method: "POST", mode: "no-cors", credentials, body })).type);
    await read("/");
    await read("/v1/models");
    await read("/v1/chat/completions", { method: "POST", body: chat, headers });
    await read("/v1/internal/model/unload", { method: "POST" });
    await blind("/gradio_api/upload", form);
    await blind("/v1/chat/completions", chat);
    await blind("/conversations", file);
    await blind("/logout");
  }
  const end = (part, more) => new Promise((done) => {
    Object.assign(part, { onload: () => done("loaded"), onerror: () => done("refused") }, more);
    document.body.append(part);
    setTimeout(() => done("nothing came"), 3000);
  });
  await attempt("img", () => end(document.createElement("img"), { src: `${snug}/favicon.ico` }));
  await attempt("script", () => end(document.createElement("script"), { src: `${snug}/config` }));
  await attempt("style", () => end(document.createElement("link"), { rel: "stylesheet", href: `${snug}/theme.css` }));
  await attempt("frame", async () => { await end(document.createElement("iframe"), { src: `${snug}/` }); });
  const target = document.createElement("iframe"), login = document.createElement("form");
  target.name = "hole";
  Object.assign(login, { method: "post", action: `${snug}/login`, target: "hole" });
  document.body.append(target, login);
  login.submit();
  await new Promise((done) => { target.onload = done; setTimeout(done, 3000); });
  return tried;
}
</script>"""


@pytest.fixture
def evil() -> Iterator[str]:
    """Where the other site is: this machine, another port, so that a browser takes it for nearly the same."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(EVIL.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def listed(snug: Snug) -> list[Conversation]:
    return list(snug.services.store.list(""))


def test_a_page_of_another_site_reads_changes_and_frames_nothing(start: Start, browser: Browser, evil: str) -> None:
    snug = start(Script(reply="secret"))
    before, statuses, asked = listed(snug), dict[str, int](), set[str]()
    context = browser.new_context()
    try:
        page = context.new_page()

        def note(response: Response) -> None:
            if response.url.startswith(snug.url):
                statuses[f"{response.request.method} {response.url.removeprefix(snug.url)}"] = response.status

        page.on("response", note)  # those that the browser did not take away before anybody could see them
        page.on("request", lambda request: asked.add(f"{request.method} {request.url.removeprefix(snug.url)}"))
        page.goto(evil)
        tried = page.evaluate("(snug) => attack(snug)", snug.url)
        framed = [frame.evaluate("document.body?.innerText ?? ''") for frame in page.frames[1:]]
    finally:
        context.close()
    assert len(tried) >= 16
    read = {name: what for name, what in tried.items() if str(what).startswith(("read", "loaded"))}
    assert read == {}
    assert statuses and set(statuses.values()) == {403}, statuses
    posted = {"/gradio_api/upload", "/v1/chat/completions", "/conversations", "/logout", "/login"}
    assert {f"POST {path}" for path in posted} <= asked, asked
    assert not any("Snug" in text and "Chat" in text for text in framed), framed
    assert listed(snug) == before and snug.services.models.state.status == "ready"


def test_a_page_that_a_link_opens_knows_nothing_of_the_one_that_it_came_from(
    start: Start, visit: OpenPage, evil: str
) -> None:
    snug = start(Script(reply=f"See [this]({evil}/there)."))
    page = visit(snug)
    send(page, "Where?")
    link = last_reply(page).get_by_role("link")
    expect(link).to_be_visible()
    with page.context.expect_page() as opened:
        link.click()
    other = opened.value
    other.wait_for_load_state()
    assert other.url == f"{evil}/there"
    assert other.evaluate("[window.opener, document.referrer]") == [None, ""]
    other.close()
