"""Tests of modules/accounts/: people, passwords, sessions, keys, the `users` command, and who guesses too often."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from modules.accounts import directory, passwords
from modules.accounts.attempts import LOCKED_S, WRONG_TRIES, Attempts, place_of
from modules.accounts.command import run_users
from modules.accounts.directory import DAY_S, SESSION_IDLE_S, SESSION_LIFE_S, TIDY_EVERY_S, Accounts
from modules.accounts.person import THE_ONE, Person, person_in
from modules.chat.store import Store
from modules.errors import BadFlag, BadName, BadValue, Forbidden, NotFound, TooManyAttempts, Unauthorized
from tests.store_rig import Clock, clock

__all__ = ["clock"]
WORD = "correct horse"


@pytest.fixture(autouse=True)
def _quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same hash with less work: its cost is argon2's own business."""
    monkeypatch.setattr(passwords, "_hasher", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))


@pytest.fixture
def accounts(tmp_path: Path, clock: Clock) -> Iterator[Accounts]:
    opened = Accounts(tmp_path / "users.db", now=clock)
    yield opened
    opened.close()


def test_the_first_person_is_an_administrator_and_has_what_was_there(accounts: Accounts) -> None:
    assert not accounts.exist()
    ana, ben = accounts.add("Ana", WORD), accounts.add("Ben", WORD)
    assert accounts.exist()
    assert (ana.admin, ana.owner) == (True, "")
    assert not ben.admin
    assert ben.owner == ben.id != ""


@pytest.mark.parametrize("name", ["ana", " ANA ", "\uff21na"])
def test_names_that_look_alike_are_the_same(accounts: Accounts, name: str) -> None:
    accounts.add("Ana", WORD)
    with pytest.raises((BadValue, BadName)):
        accounts.add(name, WORD)
    assert accounts.verify(name, WORD).name == "Ana"


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\nb", "x" * 300, "-rf", "CON", "\x00"])
def test_hostile_names_are_nobodys(accounts: Accounts, name: str) -> None:
    with pytest.raises(BadName):
        accounts.add(name, WORD)


@pytest.mark.parametrize("password", ["", "short", "aaaaaaaaaaaa", "Ana Conda", "x1y" * 400])
def test_passwords_that_nobody_should_have_are_refused(accounts: Accounts, password: str) -> None:
    with pytest.raises(BadValue, match="password"):
        accounts.add("ana conda", password)
    assert not accounts.exist()


def test_a_password_opens_only_its_own_account(accounts: Accounts) -> None:
    accounts.add("Ana", WORD)
    accounts.add("Ben", "pässwörd\u00e9 long")
    assert accounts.verify("Ben", "pässwörde\u0301 long").name == "Ben", "however a keyboard composes it"
    for name, password in (("Ana", "pässwörd\u00e9 long"), ("Nobody", WORD), ("Ana", ""), ("Ana", "x" * 10**6)):
        with pytest.raises(Unauthorized, match="do not belong together"):
            accounts.verify(name, password)


def test_sessions_end_by_logging_out_by_time_and_by_a_new_password(accounts: Accounts, clock: Clock) -> None:
    ana = accounts.add("Ana", WORD)
    kept, other, left = (accounts.begin_session(ana) for _ in range(3))
    accounts.end_session(left)
    assert accounts.by_session(left) is None
    person = accounts.by_session(kept)
    assert person == ana.person
    accounts.change_password(person, WORD, "battery staple")
    assert accounts.by_session(other) is None
    assert accounts.by_session(kept) == ana.person, "who changes it stays"
    clock.now += SESSION_IDLE_S - 10
    assert accounts.by_session(kept) is not None, "used, so it lasts"
    clock.now += SESSION_IDLE_S - 10
    assert accounts.by_session(kept) is not None
    clock.now += SESSION_IDLE_S + 10
    assert accounts.by_session(kept) is None


def test_a_password_that_was_looked_at_before_it_changed_opens_nothing(accounts: Accounts) -> None:
    accounts.add("Ana", WORD)
    ben = accounts.add("Ben", WORD)
    looked_at = accounts.verify("Ben", WORD)  # takes a tenth of a second, in which it may change
    accounts.set_password(ben.id, "battery staple")
    with pytest.raises(Unauthorized):
        accounts.begin_session(looked_at)
    with pytest.raises(BadValue, match="meanwhile"):
        accounts.set_password(ben.id, WORD, before=looked_at)
    assert accounts.verify("Ben", "battery staple"), "what an administrator gave stays"

    looked_at = accounts.verify("Ben", "battery staple")
    accounts.remove(ben.id)
    with pytest.raises(Unauthorized):
        accounts.begin_session(looked_at)


def test_no_session_lasts_for_ever(accounts: Accounts, clock: Clock) -> None:
    token, began = accounts.begin_session(accounts.add("Ana", WORD)), clock.now
    while clock.now < began + SESSION_LIFE_S:
        assert accounts.by_session(token) is not None
        clock.now += SESSION_IDLE_S / 2
    clock.now += 1
    assert accounts.by_session(token) is None


def test_the_old_password_can_be_guessed_ten_times(accounts: Accounts) -> None:
    ana = accounts.add("Ana", WORD).person
    for number in range(WRONG_TRIES):
        with pytest.raises(BadValue, match="old password"):
            accounts.change_password(ana, f"wrong {number}", "battery staple")
    with pytest.raises(TooManyAttempts):
        accounts.change_password(ana, WORD, "battery staple")


def test_keys_have_their_own_rights_and_ends(accounts: Accounts, clock: Clock) -> None:
    ana, ben = accounts.add("Ana", WORD), accounts.add("Ben", WORD)
    key, plain = accounts.make_key(ana.id, "script")
    _, mighty = accounts.make_key(ana.id, "loader", admin=True, days=2)
    found, with_right = accounts.by_key(plain), accounts.by_key(mighty)
    assert found is not None and not found.admin, "an administrator's key is not one by itself"
    assert with_right is not None and with_right.admin
    with pytest.raises(BadValue, match="no administrator"):
        accounts.make_key(ben.id, "loader", admin=True)
    with pytest.raises(NotFound):
        accounts.revoke_key(key.id, of=ben.id)
    assert accounts.by_key(plain) is not None, "another person cannot end it"
    accounts.revoke_key(key.id)
    assert accounts.by_key(plain) is None
    clock.now += 2 * DAY_S + 1
    assert accounts.by_key(mighty) is None
    for wrong in ("", "snug-", plain[:-1], "ключ", "x" * 10**6):
        assert accounts.by_key(wrong) is None


def test_who_loses_the_right_has_no_key_with_it(accounts: Accounts) -> None:
    accounts.add("Ana", WORD)
    ben = accounts.add("Ben", WORD, admin=True)
    _, secret = accounts.make_key(ben.id, "loader", admin=True)
    accounts.set_admin(ben.id, False)
    person = accounts.by_key(secret)
    assert person is not None and not person.admin


def test_who_lost_the_right_just_before_gives_it_to_nobody(accounts: Accounts) -> None:
    ana, ben = accounts.add("Ana", WORD), accounts.add("Ben", WORD, admin=True)
    key, _ = accounts.make_key(ana.id, "hers")
    accounts.set_admin(ben.id, admin=False, by=ana.person)
    deeds: tuple[Callable[[], object], ...] = (
        lambda: accounts.add("Cyd", WORD, admin=True, by=ben.person),
        lambda: accounts.set_admin(ben.id, admin=True, by=ben.person),
        lambda: accounts.set_password(ana.id, "battery staple", by=ben.person),
        lambda: accounts.remove(ana.id, by=ben.person),
        lambda: accounts.restore(ben.id, by=ben.person),
        lambda: accounts.revoke_key(key.id, by=ben.person),
    )
    before = accounts.people(), accounts.keys()
    for deed in deeds:
        with pytest.raises(Forbidden):
            deed()
    assert (accounts.people(), accounts.keys()) == before
    accounts.verify("Ana", WORD)
    session = accounts.by_session(accounts.begin_session(accounts.named("Ana")))
    assert session is not None
    accounts.set_admin(ben.id, admin=True, by=session)
    accounts.set_password(ana.id, "battery staple")
    with pytest.raises(Forbidden):  # whoever has the session that ended with the old password
        accounts.add("Cyd", WORD, admin=True, by=session)


def test_the_last_administrator_stays_one(accounts: Accounts) -> None:
    ana, _ = accounts.add("Ana", WORD), accounts.add("Ben", WORD)
    with pytest.raises(BadValue, match="administrator"):
        accounts.set_admin(ana.id, False)
    with pytest.raises(BadValue, match="administrator"):
        accounts.remove(ana.id)
    assert accounts.verify("Ana", WORD).admin


def test_who_was_removed_is_out_and_nobody_gets_their_things(accounts: Accounts) -> None:
    accounts.add("Ana", WORD)
    ben = accounts.add("Ben", WORD)
    token, (_, secret) = accounts.begin_session(ben), accounts.make_key(ben.id, "script")
    accounts.remove(ben.id)
    assert accounts.by_session(token) is None
    assert accounts.by_key(secret) is None
    with pytest.raises(Unauthorized):
        accounts.verify("Ben", WORD)
    with pytest.raises(BadValue, match="called 'Ben' already"):
        accounts.add("Ben", WORD)
    accounts.restore(ben.id)
    assert accounts.verify("Ben", WORD).owner == ben.owner
    assert accounts.by_key(secret) is None


def test_nobody_left_is_not_everybody_let_in(accounts: Accounts) -> None:
    ana = accounts.add("Ana", WORD)
    accounts.remove(ana.id)
    assert accounts.exist()
    ben = accounts.add("Ben", WORD)
    assert ben.admin, "or nobody could do anything any more"
    assert ben.owner != ana.owner


def test_no_secret_lies_in_the_file_or_its_backups(tmp_path: Path, accounts: Accounts) -> None:
    ana = accounts.add("Ana", WORD)
    token, (_, secret) = accounts.begin_session(ana), accounts.make_key(ana.id, "script")
    accounts.close()
    for path in tmp_path.rglob("*"):
        held = path.read_bytes() if path.is_file() else b""
        assert not any(canary.encode() in held for canary in (WORD, token, secret)), path
    with sqlite3.connect(tmp_path / "users.db") as file:
        assert file.execute("SELECT password FROM people").fetchone()[0].startswith("$argon2id$")


def test_a_session_outlives_a_restart(tmp_path: Path, accounts: Accounts, clock: Clock) -> None:
    token = accounts.begin_session(accounts.add("Ana", WORD))
    accounts.close()
    again = Accounts(tmp_path / "users.db", now=clock)
    assert again.by_session(token) is not None
    again.close()


def test_of_many_sessions_those_end_that_were_unused_longest(
    accounts: Accounts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "MAX_SESSIONS", 2)
    ana, ben = accounts.add("Ana", WORD), accounts.add("Ben", WORD)
    others = accounts.begin_session(ben)
    tokens = []
    for _ in range(3):
        clock.now += 10
        tokens.append(accounts.begin_session(ana))
    assert [accounts.by_session(token) is not None for token in tokens] == [False, True, True]
    assert accounts.by_session(others) is not None


def test_wrong_tries_are_counted_by_who_sends_them() -> None:
    now = [0.0]
    attempts = Attempts(lambda: now[0])
    for number in range(WRONG_TRIES):
        attempts.wrong(["10.0.0.1"], [f"{number}".encode()])
    with pytest.raises(TooManyAttempts, match="Wait 60 s"):
        attempts.check(["10.0.0.1", "name ana"])
    attempts.check(["10.0.0.2"])
    now[0] += LOCKED_S + 1
    attempts.check(["10.0.0.1"])
    for _ in range(5 * WRONG_TRIES):
        attempts.wrong(["10.0.0.3"], [b"the same stale one"])
    attempts.check(["10.0.0.3"])


def test_a_right_password_undoes_no_guesses_at_another_name() -> None:
    attempts = Attempts(lambda: 0.0)
    for number in range(WRONG_TRIES):
        attempts.wrong(["10.0.0.1"], [f"ana {number}".encode()], at="ana")
        attempts.right(["10.0.0.1"], at="ben")
    with pytest.raises(TooManyAttempts):
        attempts.check(["10.0.0.1"])


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
    ],
)
def test_an_address_that_a_guesser_can_change_at_will_is_one_place(address: str, place: str) -> None:
    assert place_of(address) == place


def test_nobody_asks_unless_somebody_let_them_in() -> None:
    scopes: list[dict[str, object]] = [{}, {"state": {}}, {"state": {"person": {"admin": True}}}]
    for scope in scopes:
        with pytest.raises(Unauthorized):
            person_in(scope)
    with pytest.raises(Forbidden, match="Loading a model is for administrators, and Ben is none"):
        Person("1", "Ben", "1", False).require_admin("Loading a model")
    THE_ONE.require_admin("Anything")


class Terminal:
    """`server.py users` with what is typed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys

    def __call__(self, *words: str, typed: str = "") -> str:
        self.monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert run_users([*words, "--user-data-dir", str(self.folder)]) == 0
        return self.capsys.readouterr().out


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(tmp_path / "data", monkeypatch, capsys)


def test_the_command_does_all_that_is_to_be_done_with_people(users: Terminal) -> None:
    assert "for one person" in users("list")
    assert "everybody has to log in" in users("add", "Ana", typed=f"{WORD}\n")
    users("add", "Ben", typed=f"{WORD}\n")
    made = users("new-key", "Ben", "--for", "curl", "--days", "3")
    secret, ident = made.split()[-1], made.split()[1]
    listed = users("list")
    assert secret not in listed
    assert f"key {ident}  curl (…{secret[-4:]})" in listed
    users("admin", "Ben", "yes")
    users("password", "Ben", typed="another long one\n")
    users("revoke-key", ident)
    assert "key" not in users("list")
    users("remove", "Ben")
    assert "Ben  (administrator, removed)" in users("list")
    users("restore", "Ben")
    with pytest.raises(BadFlag):
        users("promote", "Ben")
    with pytest.raises(NotFound):
        users("remove", "Cy")


def test_forgetting_somebody_takes_all_that_is_theirs_and_nothing_else(users: Terminal) -> None:
    users("add", "Ana", typed=f"{WORD}\n")
    users("add", "Ben", typed=f"{WORD}\n")
    accounts = Accounts(users.folder / "users.db")
    ben = accounts.named("Ben")
    accounts.close()
    store = Store(users.folder / "snug.db")
    owners = {"": "ana's words", ben.owner: "ben's words"}
    for owner, text in owners.items():
        conversation = store.create(owner)
        parent = None
        for number in range(3):
            parent = store.append(owner, conversation.id, parent, "user", text, op_id=f"operation {number}").id
        if owner:
            store.append(owner, conversation.id, parent, "user", "qzx", op_id="operation qzx")
        for step in range(40):
            store.notebooks.save(owner, text * step)
        store.shelf.make_folder(owner, text)
    store.close()
    with pytest.raises(BadValue, match="can still log in"):
        users("forget", "Ben", "--yes")
    users("remove", "Ben")
    users("forget", "Ben", "--yes")
    with sqlite3.connect(users.folder / "snug.db") as file:
        tables = [row[0] for row in file.execute("SELECT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) p "
                                                 "WHERE m.type = 'table' AND p.name = 'owner'")]  # fmt: skip
        assert len(tables) >= 8
        for table in tables:
            assert file.execute(f"SELECT count(*) FROM {table} WHERE owner = ?", (ben.owner,)).fetchone()[0] == 0, table
        assert file.execute("SELECT count(*) FROM messages WHERE owner = ''").fetchone()[0] == 3
        blocks = [block for (block,) in file.execute("SELECT block FROM message_texts_data")]
        assert not any(b"qzx" in block for block in blocks), "the search index knows no word of it"
    users("add", "Ben", typed=f"{WORD}\n")


def test_who_is_forgotten_leaves_the_log_too_while_the_server_runs(
    accounts: Accounts, clock: Clock, tmp_path: Path
) -> None:
    def written(text: str) -> list[str]:
        return [path.name for path in tmp_path.glob("users.db*") if text.encode() in path.read_bytes()]

    accounts.add("Ana", WORD)
    accounts.tidy()
    for name in ("Dora", "Emil"):
        old = accounts.add(name, WORD)
        accounts.set_password(old.id, "another staple")
        accounts.remove(old.id)
        with closing(Accounts(tmp_path / "users.db")) as terminal:
            terminal.forget(old.id)
        assert written(name), "the log keeps what it was given"
        clock.now += TIDY_EVERY_S
        accounts.tidy()
        assert not written(name) and not written(old.kept), name
    assert accounts.verify("Ana", WORD).name == "Ana"
