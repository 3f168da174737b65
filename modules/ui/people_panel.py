"""Who somebody is, on the page: name, password, keys for programs; for administrators everybody and their keys.

Where nobody has an account the page shows none of it. Every answer is JSON for static/people.js.
"""

from __future__ import annotations

from dataclasses import asdict

import gradio as gr
from pydantic import Field

from modules.accounts.directory import MAX_KEY_DAYS, MAX_KEY_NAME, Account, Accounts
from modules.accounts.passwords import MAX_CHARACTERS
from modules.accounts.person import Person
from modules.errors import Forbidden, NotFound
from modules.services import Services
from modules.ui.views import Json, printable
from modules.ui.widgets import Body, Nothing, Pick, personal_door


class NewPassword(Body):
    """One's own password, changed."""

    old: str = Field(max_length=MAX_CHARACTERS)
    new: str = Field(max_length=MAX_CHARACTERS)


class NewKey(Body):
    """A key for a program."""

    name: str = Field(max_length=MAX_KEY_NAME)
    admin: bool = False
    days: int | None = Field(default=None, ge=1, le=MAX_KEY_DAYS)


class NewPerson(Body):
    """Somebody who is to be let in."""

    name: str = Field(max_length=200)
    password: str = Field(max_length=MAX_CHARACTERS)
    admin: bool = False


class Right(Pick):
    """Whether somebody is an administrator."""

    admin: bool


class Given(Pick):
    """A password that an administrator gives to somebody."""

    password: str = Field(max_length=MAX_CHARACTERS)


class PeopleDoors:
    """What the page may ask for."""

    def __init__(self, services: Services) -> None:
        self._file = services.accounts

    @property
    def _accounts(self) -> Accounts:
        if self._file is None:
            raise NotFound("Nobody has an account here.", remedy="server.py users add NAME makes the first.")
        return self._file

    def who(self, person: Person, _: Nothing) -> Json:
        """Who asks; without a name on a machine for one."""
        return {"name": printable(person.name), "admin": person.admin}

    def account(self, person: Person, _: Nothing) -> Json:
        """One's own keys; for administrators everybody, and everybody's keys."""
        everybody = self._accounts.people() if person.admin else ()
        keys = self._accounts.keys(None if person.admin else person.id)
        return {
            "keys": [asdict(key) | {"own": key.person == person.name} for key in keys],
            "people": [_person_view(account, person) for account in everybody],
        }

    def change_password(self, person: Person, body: NewPassword) -> Json:
        """Another password of one's own; every other browser has to log in again."""
        self._accounts.change_password(person, body.old, body.new)
        return {"done": True}

    def make_key(self, person: Person, body: NewKey) -> Json:
        """A key of one's own, which this answer alone holds. A key makes no keys: it would outlast itself."""
        accounts = self._accounts
        if not person.session:
            raise Forbidden("A key cannot make keys.", remedy="Log in, and make it on the page.")
        if body.admin:
            person.require_admin("A key with the right of an administrator")
        _, secret = accounts.make_key(person.id, body.name, admin=body.admin, days=body.days)
        return {"secret": secret} | self.account(person, Nothing())

    def revoke_key(self, person: Person, body: Pick) -> Json:
        """End a key: one's own, or as an administrator any."""
        if person.admin:
            self._accounts.revoke_key(body.id, by=person)
        else:
            self._accounts.revoke_key(body.id, of=person.id)
        return self.account(person, Nothing())

    def add_person(self, person: Person, body: NewPerson) -> Json:
        """Let somebody in."""
        _require_login(person)
        self._accounts.add(body.name, body.password, admin=body.admin, by=person)
        return self.account(person, Nothing())

    def set_right(self, person: Person, body: Right) -> Json:
        """Give or take the right of an administrator."""
        _require_login(person)
        self._accounts.set_admin(body.id, body.admin, by=person)
        return self.account(person, Nothing())

    def give_password(self, person: Person, body: Given) -> Json:
        """A new password for somebody who forgot theirs."""
        _require_login(person)
        self._accounts.set_password(body.id, body.password, by=person)
        return self.account(person, Nothing())

    def remove_person(self, person: Person, body: Pick) -> Json:
        """Let somebody in no more."""
        self._accounts.remove(body.id, by=person)
        return self.account(person, Nothing())

    def restore_person(self, person: Person, body: Pick) -> Json:
        """Let somebody in again."""
        _require_login(person)
        self._accounts.restore(body.id, by=person)
        return self.account(person, Nothing())


def _require_login(person: Person) -> None:
    """Raise Forbidden for who came by a key: whom it let in would outlast it."""
    if not person.session:
        raise Forbidden("A key cannot say who may come in.", remedy="Log in, and do it on the page.")


def _person_view(account: Account, person: Person) -> Json:
    return {
        "id": account.id,
        "name": printable(account.name),
        "admin": account.admin,
        "removed": account.removed_at is not None,
        "you": account.id == person.id,
    }


def build(services: Services) -> None:
    """What the page's script needs; it draws nothing before somebody asks."""
    doors, deed = PeopleDoors(services), "Saying who may come in"
    gr.HTML(
        js_on_load="snug.mountPeople(server)",
        apply_default_css=False,
        elem_classes=["channel"],
        server_functions=[
            personal_door(Nothing, "who", doors.who),
            personal_door(Nothing, "account", doors.account),
            personal_door(NewPassword, "change_password", doors.change_password),
            personal_door(NewKey, "make_key", doors.make_key),
            personal_door(Pick, "revoke_key", doors.revoke_key),
            personal_door(NewPerson, "add_person", doors.add_person, admin=deed),
            personal_door(Right, "set_right", doors.set_right, admin=deed),
            personal_door(Given, "give_password", doors.give_password, admin=deed),
            personal_door(Pick, "remove_person", doors.remove_person, admin=deed),
            personal_door(Pick, "restore_person", doors.restore_person, admin=deed),
        ],
    )
