"""`server.py users …`: who may log in, and the keys of their programs, from the terminal.

Works while a server runs: what changes counts at once. Passwords are asked for, or read from standard input, and never
stand on a command line.
"""

from __future__ import annotations

import argparse
import getpass
import hmac
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from modules.accounts.directory import FILE, MAX_KEY_DAYS, Accounts
from modules.chat.forgetting import forget_owner
from modules.errors import BadFlag, BadValue, SnugError, StoreFailed
from modules.files import home_of

STORE_FILE = "snug.db"
Deed = Callable[[Accounts, argparse.Namespace], None]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadFlag(message[0].upper() + message[1:] + ".", remedy="See python server.py users --help.")


def run_users(argv: Sequence[str]) -> int:
    """Do what `argv` asks; returns the exit code. Raises SnugError."""
    given = _parser().parse_args(argv)
    folder = Path(given.user_data_dir).expanduser()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreFailed(f"{folder} cannot be written: {error.strerror or error}.", remedy="Check it.") from error
    with closing(Accounts(folder / FILE)) as accounts:
        deed: Deed = given.deed
        deed(accounts, given)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="server.py users", description="Who may log in to this Snug, and the keys of their programs.")
    common = _Parser(add_help=False)
    common.add_argument("--user-data-dir", metavar="FOLDER", default="user_data", help="The server's, if it has one.")
    deeds = parser.add_subparsers(required=True, metavar="DEED", title="deeds")

    def deed(name: str, does: Deed, about: str, *, person: bool = True) -> argparse.ArgumentParser:
        made = deeds.add_parser(name, help=about, description=about, parents=[common])
        made.set_defaults(deed=does)
        if person:
            made.add_argument("name", metavar="NAME")
        return made

    deed("list", _list, "Everybody, and their keys.", person=False)
    deed("add", _add, "A new person; asks for the password. The first one is an administrator.").add_argument(
        "--admin", action="store_true", help="With the right of an administrator."
    )
    deed("password", _password, "Another password; whoever is logged in as NAME has to log in again.")
    deed("admin", _admin, "Give the right of an administrator, or take it.").add_argument(
        "right", choices=("yes", "no"), metavar="yes|no"
    )
    deed("remove", _remove, "Let a person in no more. Conversations stay, for `restore`.")
    deed("restore", _restore, "Let a removed person in again.")
    deed("forget", _forget, "Delete all that a removed person has, for good.").add_argument(
        "--yes", action="store_true", help="Do not ask."
    )
    key = deed("new-key", _new_key, "A key for a program of NAME; it is shown once.")
    key.add_argument("--for", dest="purpose", metavar="PROGRAM", required=True, help="What it is for.")
    key.add_argument("--admin", action="store_true", help="With the right to load models, download and the like.")
    key.add_argument("--days", type=int, metavar="N", help=f"How long it lasts, up to {MAX_KEY_DAYS}. Default: no end.")
    deed("revoke-key", _revoke, "End a key.", person=False).add_argument("key", metavar="KEY-ID")
    return parser


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - what the terminal is for


def _list(accounts: Accounts, _: argparse.Namespace) -> None:
    people = accounts.people()
    if not people:
        _say("Nobody has an account: this Snug is for one person. server.py users add NAME makes the first.")
    for account in people:
        facts = ["administrator"] if account.admin else []
        facts += ["removed"] if account.removed_at is not None else []
        _say(f"{account.name}{'  (' + ', '.join(facts) + ')' if facts else ''}")
        for key in accounts.keys(account.id):
            until = f", until {_day(key.expires_at)}" if key.expires_at else ""
            used = f", last used {_day(key.used_at)}" if key.used_at else ", never used"
            _say(f"    key {key.id}  {key.name} (…{key.hint}){', administrator' if key.admin else ''}{until}{used}")


def _add(accounts: Accounts, given: argparse.Namespace) -> None:
    first = not accounts.exist()
    account = accounts.add(given.name, _ask_password(given.name), admin=given.admin)
    _say(f"{account.name} can log in{' and is an administrator' if account.admin else ''}.")
    if first:
        _say("From now on everybody has to log in. The conversations that were here are this person's.")


def _password(accounts: Accounts, given: argparse.Namespace) -> None:
    account = accounts.named(given.name)
    accounts.set_password(account.id, _ask_password(account.name))
    _say(f"{account.name} has another password, and has to log in again everywhere.")


def _admin(accounts: Accounts, given: argparse.Namespace) -> None:
    account = accounts.named(given.name)
    accounts.set_admin(account.id, given.right == "yes")
    _say(f"{account.name} is {'an administrator' if given.right == 'yes' else 'no administrator'} now.")


def _remove(accounts: Accounts, given: argparse.Namespace) -> None:
    account = accounts.named(given.name)
    accounts.remove(account.id)
    _say(f"{account.name} cannot log in any more; keys have ended. `users restore` undoes it, but for the keys.")


def _restore(accounts: Accounts, given: argparse.Namespace) -> None:
    account = accounts.named(given.name)
    accounts.restore(account.id)
    _say(f"{account.name} can log in again.")


def _forget(accounts: Accounts, given: argparse.Namespace) -> None:
    account = accounts.named(given.name)
    if account.removed_at is None:
        raise BadValue(f"{account.name} can still log in.", remedy=f"First: server.py users remove {account.name}")
    if not given.yes and input(f"Delete all conversations of {account.name} for good? Type the name: ") != account.name:
        _say("Nothing was deleted.")
        return
    folder = Path(given.user_data_dir).expanduser()
    forget_owner(folder / STORE_FILE, account.owner)
    if account.owner:  # what lies in the folder itself is not one person's alone
        shutil.rmtree(home_of(folder, account.owner), ignore_errors=True)
    accounts.forget(account.id)
    _say(f"All that was {account.name}'s is deleted. The last seven daily backups keep it.")
    if not account.owner:
        _say(f"But for characters, personas and presets in {folder}: delete those there yourself.")


def _new_key(accounts: Accounts, given: argparse.Namespace) -> None:
    account = accounts.named(given.name)
    key, secret = accounts.make_key(account.id, given.purpose, admin=given.admin, days=given.days)
    _say(f"Key {key.id} for {key.name}. It is shown this once:\n{secret}")


def _revoke(accounts: Accounts, given: argparse.Namespace) -> None:
    accounts.revoke_key(given.key)
    _say("The key has ended.")


def _day(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds)) if seconds else "never"


def _ask_password(name: str) -> str:
    """From the terminal, twice and unseen; else the first line of standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    try:
        password = getpass.getpass(f"Password for {name}: ")
        if not hmac.compare_digest(getpass.getpass("Once more: ").encode(), password.encode()):
            raise BadValue("These were two different passwords.", remedy="Try again.")
    except EOFError as error:
        raise SnugError("No password was given.", remedy="Try again.") from error
    return password
