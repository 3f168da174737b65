"""The tables of the accounts: people, their sessions in browsers, their keys for programs. SQL only.

Of secrets only hashes lie here: argon2 of passwords, SHA-256 of what is random and long. A person who was removed
keeps a row, so that nobody else can come by what is theirs.
"""

from __future__ import annotations

from modules.chat.database import Layout

LAYOUT = Layout(
    application_id=0x536E7575,  # "Snuu", in the file's header
    label="users",
    noun="users",
    # One entry a version, as in chat/schema.py. Never edit one that was released; add one.
    migrations=(
        """
        CREATE TABLE people (
            id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            folded TEXT NOT NULL UNIQUE,
            owner TEXT NOT NULL UNIQUE,
            admin INTEGER NOT NULL,
            password TEXT NOT NULL,
            created_at REAL NOT NULL,
            removed_at REAL
        );
        CREATE TABLE sessions (
            hash BLOB PRIMARY KEY,
            person_id TEXT NOT NULL REFERENCES people (id) ON DELETE CASCADE,
            created_at REAL NOT NULL,
            seen_at REAL NOT NULL
        );
        CREATE INDEX sessions_by_person ON sessions (person_id);
        CREATE TABLE keys (
            id TEXT PRIMARY KEY,
            hash BLOB NOT NULL UNIQUE,
            person_id TEXT NOT NULL REFERENCES people (id) ON DELETE CASCADE,
            name TEXT NOT NULL,
            hint TEXT NOT NULL,
            admin INTEGER NOT NULL,
            created_at REAL NOT NULL,
            expires_at REAL,
            used_at REAL
        );
        CREATE INDEX keys_by_person ON keys (person_id);
        """,
    ),
)
