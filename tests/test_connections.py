"""Tests of modules/api/doors/connections.py, with raw sockets against a real server whose patience is short."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from modules.api.doors.connections import MAX_HEADER_BYTES, Connection, plain_host

SHORT_S = 0.6
WAIT_S = 20.0


class Hasty(Connection):
    """The real one, in a hurry."""

    headers_s = SHORT_S
    body_grace_s = SHORT_S
    reading_s = SHORT_S


gone = threading.Event()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """The size of a body; at /names those of the headers, at /ends who speaks to whom; at /flood a stream that ends
    with its reader; at /refused an answer before the body is read."""
    if scope["type"] != "http":
        return
    if scope["path"] == "/refused":
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"no"})
        return
    if scope["path"] == "/flood":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            for _ in range(100_000):
                await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
        except OSError:
            pass
        finally:
            gone.set()
        return
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    told = b" ".join(name for name, _ in scope["headers"]) if scope["path"] == "/names" else str(size).encode()
    if scope["path"] == "/ends":
        told = f"{scope['client'][0]} {scope['server'][0]}".encode()
    length = (b"content-length", str(len(told)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": told})


@contextlib.contextmanager
def served(listener: socket.socket) -> Iterator[int]:
    config = uvicorn.Config(echo, http=Hasty, log_level="critical", lifespan="off", ws="none", timeout_keep_alive=0)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        thread.join(0.02)
    yield listener.getsockname()[1]
    server.should_exit = server.force_exit = True
    thread.join(20)
    listener.close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served(socket.create_server(("127.0.0.1", 0))) as number:
        yield number


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(WAIT_S)
        yield client


def until_closed(client: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(65_536):
            found += piece
    return found


def drip(client: socket.socket, byte: bytes) -> bytes:
    """Send a byte now and then until the server has enough; what it said."""
    client.settimeout(SHORT_S / 6)
    found, until = b"", time.monotonic() + WAIT_S
    while time.monotonic() < until:
        try:
            client.sendall(byte)
            piece = client.recv(1000)
        except TimeoutError:
            continue
        except ConnectionError:
            return found
        if not piece:
            return found
        found += piece
    raise AssertionError("the server waits for ever")


def test_a_connection_that_rests_is_kept_for_the_next_request(port: int) -> None:
    with connected(port) as client:
        for _ in range(2):
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"\r\n\r\n0"):
                piece = client.recv(1000)
                assert piece, "closed between two requests"
                answer += piece
            time.sleep(0.05)  # uvicorn's own patience, 0 s here, is over


@pytest.mark.parametrize("wish", [b"h2c", b"websocket", b"foo"])
def test_a_wish_for_another_protocol_leaves_the_body_a_body(port: int, wish: bytes) -> None:
    """Not the next request, which behind a proxy is another person's. Java's client sends the first of these."""
    inner = b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\n" % wish
    sized, chunked = b"Content-Length: %d\r\n\r\n" % len(inner), b"Transfer-Encoding: chunked\r\n\r\n"
    whole = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)
    with connected(port) as client:
        for pieces in ([head + sized + inner], [head[:-9], head[-9:] + sized, inner], [head + chunked, whole]):
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.02)
            answer = b""
            while not answer.endswith(b"\r\n\r\n%d" % len(inner)):
                piece = client.recv(1000)
                assert piece, answer
                answer += piece
        client.sendall((head + sized + inner) * 2 + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        sizes = [piece.split(b"\r\n\r\n")[1] for piece in until_closed(client).split(b"HTTP/1.1 200 OK")[1:]]
        assert sizes == [b"%d" % len(inner)] * 2 + [b"0"]


def test_no_tunnel_is_made(port: int) -> None:
    with connected(port) as client:
        client.sendall(b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\nGET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
        assert until_closed(client).startswith(b"HTTP/1.1 400 ")


def test_headers_that_drip_are_not_waited_for(port: int) -> None:
    with connected(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert drip(client, b"a").startswith(b"HTTP/1.1 408")


def test_a_connection_that_says_nothing_ends(port: int) -> None:
    with connected(port) as client:
        assert until_closed(client).startswith(b"HTTP/1.1 408")


def test_empty_lines_between_requests_hold_nothing(port: int) -> None:
    with connected(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        client.sendall(b"\r\n")
        assert until_closed(client).startswith(b"HTTP/1.1 408")


def test_a_body_that_drips_is_not_waited_for(port: int) -> None:
    with connected(port) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert drip(client, b"a").startswith(b"HTTP/1.1 408")


def test_a_body_that_comes_steadily_may_take_longer_than_the_grace(port: int) -> None:
    with connected(port) as client:
        size = 600_000
        client.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
        begun = time.monotonic()
        for _ in range(6):
            client.sendall(b"x" * (size // 6))
            threading.Event().wait(SHORT_S / 4)
        assert time.monotonic() - begun > SHORT_S
        assert client.recv(1000).endswith(b"600000")


PARTING = b"POST /refused HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


@pytest.mark.parametrize("ends", [b"Content-Length: 8000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_who_sends_on_behind_a_refusal_still_reads_it(port: int, ends: bytes) -> None:
    """urllib asks for the end of the connection each time, and sends all before it reads."""
    with connected(port) as client:
        client.sendall(PARTING + ends)
        for _ in range(80):
            client.sendall(b"x" * 100_000 if b"Length" in ends else b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
        client.sendall(b"" if b"Length" in ends else b"0\r\n\r\n")
        assert until_closed(client).endswith(b"\r\n\r\nno")


@pytest.mark.parametrize("expects", [b"", b"Expect: 100-continue\r\n"])
def test_who_stops_behind_a_refusal_hears_the_end_at_once(port: int, expects: bytes) -> None:
    with connected(port) as client:
        client.settimeout(SHORT_S / 2)
        client.sendall(PARTING + expects + b"Content-Length: 8\r\n\r\n")
        assert until_closed(client).endswith(b"\r\n\r\nno")


@pytest.mark.parametrize("more", [b"a", b"no chunk\r\n", b"1;x=" + b"a" * MAX_HEADER_BYTES])
def test_a_body_behind_a_refusal_is_not_waited_for(port: int, more: bytes) -> None:
    length = b"Content-Length: 1000000" if more == b"a" else b"Transfer-Encoding: chunked"
    with connected(port) as client:
        client.sendall(PARTING + length + b"\r\n\r\n")
        assert until_closed(client).endswith(b"\r\n\r\nno")
        until = time.monotonic() + WAIT_S
        with pytest.raises(ConnectionError):
            while time.monotonic() < until:
                client.sendall(more)
                threading.Event().wait(SHORT_S / 10)


@pytest.mark.parametrize(
    "headers",
    [b"X-Big: " + b"a" * MAX_HEADER_BYTES + b"\r\n", b"".join(b"X-%d: a\r\n" % number for number in range(500))],
)
def test_headers_that_are_too_large_or_too_many_are_refused(port: int, headers: bytes) -> None:
    with connected(port) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
        assert until_closed(client)[:12] in (b"HTTP/1.1 431", b"")


def test_headers_that_never_end_are_refused_without_being_kept(port: int) -> None:
    with connected(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Big: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                client.sendall(b"a" * 65_536)
            raise AssertionError("64 MiB of headers were taken")


CHUNKED = b"POST /names HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"


def test_what_stands_behind_a_body_is_no_header(port: int) -> None:
    """A proxy that passes it on says of it nothing, whatever it is called."""
    with connected(port) as client:
        client.sendall(CHUNKED + b"0\r\nX-Forwarded-For: 1.2.3.4\r\nAuthorization: Bearer x\r\n\r\n")
        assert until_closed(client).endswith(b"\r\n\r\nhost connection transfer-encoding")


@pytest.mark.parametrize("beside", [b"0\r\nx: ", b"1;x="])
def test_what_stands_beside_a_body_ends(port: int, beside: bytes) -> None:
    """The parser keeps a field that is not whole, and copies it at every read."""
    with connected(port) as client:
        client.sendall(CHUNKED + beside)
        assert drip(client, b"a" * MAX_HEADER_BYTES).startswith(b"HTTP/1.1 431 ")


def test_small_chunks_are_taken_whatever_stands_beside_them(port: int) -> None:
    with connected(port) as client:
        client.sendall(CHUNKED.replace(b"/names", b"/sizes") + b"1;x=yz\r\na\r\n" * 20_000 + b"0\r\nx: y\r\n\r\n")
        assert until_closed(client).endswith(b"\r\n\r\n20001")


def test_a_reader_that_is_frozen_is_let_go(port: int) -> None:
    gone.clear()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
        assert gone.wait(WAIT_S), "the stream goes on for nobody"


def test_two_hundred_slow_clients_keep_nobody_waiting(port: int) -> None:
    with contextlib.ExitStack() as held:
        for _ in range(200):
            held.enter_context(connected(port)).sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n")
        assert httpx.post(f"http://127.0.0.1:{port}/", content=b"123", timeout=WAIT_S).text == "3"


def crowd_above(most_open: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience without end, but for a crowd of more than `most_open` connections."""
    for patience in ("headers_s", "body_grace_s"):
        monkeypatch.setattr(Hasty, patience, 10 * WAIT_S)
    monkeypatch.setattr(Hasty, "hurry_s", SHORT_S)
    monkeypatch.setattr(Hasty, "most_open", most_open)


def test_in_a_crowd_who_asks_for_nothing_gives_way_and_who_asks_does_not(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd_above(8, monkeypatch)
    with contextlib.ExitStack() as held:
        asks = held.enter_context(connected(port))
        asks.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n")
        early = [held.enter_context(connected(port)) for _ in range(5)]
        late = [held.enter_context(connected(port)) for _ in range(20)]
        assert b" 408 " in until_closed(late[-1]), "one too many, that says nothing"
        time.sleep(SHORT_S)
        for number in range(3):
            with httpx.Client(timeout=WAIT_S) as client:
                told = client.post(f"http://127.0.0.1:{port}/", content=b"x" * number).text
            assert told == str(number), "while the others are held"
        crowd = [held.enter_context(connected(port)) for _ in range(20)]
        assert until_closed(early[0]) == b"", "the oldest gave way"
        assert b" 408 " in until_closed(crowd[-1])
        asks.sendall(b"123456789")
        assert asks.recv(1000).endswith(b"9")


def test_in_a_crowd_a_body_that_does_not_come_is_waited_for_no_longer_than_headers(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd_above(4, monkeypatch)
    with contextlib.ExitStack() as held:
        for _ in range(12):
            slow = held.enter_context(connected(port))
            slow.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n1")
        assert b" 408 " in until_closed(slow)
        assert httpx.post(f"http://127.0.0.1:{port}/", content=b"123", timeout=WAIT_S).text == "3"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_who_comes_by_ipv4_to_a_socket_for_both_is_known_by_that_address() -> None:
    with served(socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)) as number:
        for host, name in (("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")):
            assert httpx.get(f"http://{host}:{number}/ends").text == f"{name} {name}"


@pytest.mark.parametrize(
    ("host", "plain"),
    [("::ffff:192.0.2.1", "192.0.2.1"), ("::ffff:0:0:1", "::ffff:0:0:1"), ("fe80::1%e", "fe80::1%e")],
)
def test_only_ipv4_addresses_are_written_as_such(host: str, plain: str) -> None:
    assert plain_host(host) == plain
