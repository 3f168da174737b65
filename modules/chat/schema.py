"""The tables of the chat store, as steps from one version to the next. SQL only; database.py runs them."""

from __future__ import annotations

APPLICATION_ID = 0x536E7567  # "Snug", in the file's header

# One entry a version: MIGRATIONS[n] leads from user_version n to n + 1. Never edit one that was released; add one.
#
# `sequence` is the rowid: it grows with every message of the store and never comes back, whatever the clock does.
# The tree is deleted by a recursive query, not by cascades: SQLite lets triggers nest 1,000 deep only.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE conversations (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        title TEXT NOT NULL,
        renamed INTEGER NOT NULL,
        mode TEXT NOT NULL,
        system_prompt TEXT NOT NULL,
        head_id TEXT,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        touched INTEGER NOT NULL
    );
    CREATE INDEX conversations_by_use ON conversations (owner, touched DESC);
    CREATE TABLE messages (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        owner TEXT NOT NULL,
        parent_id TEXT REFERENCES messages (id) DEFERRABLE INITIALLY DEFERRED,
        role TEXT NOT NULL,
        content TEXT NOT NULL,
        created_at REAL NOT NULL,
        status TEXT NOT NULL,
        stats TEXT,
        error TEXT NOT NULL DEFAULT '',
        op_id TEXT,
        UNIQUE (conversation_id, op_id)
    );
    CREATE INDEX messages_by_conversation ON messages (conversation_id, sequence);
    CREATE INDEX messages_by_parent ON messages (parent_id);
    CREATE INDEX messages_streaming ON messages (status) WHERE status = 'streaming';
    CREATE TABLE notebooks (
        owner TEXT PRIMARY KEY,
        content TEXT NOT NULL
    );
    """,
    "ALTER TABLE conversations ADD COLUMN setup TEXT NOT NULL DEFAULT '{}'",
)
