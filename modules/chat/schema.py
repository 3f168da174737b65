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
    # Folders, pins, the search index, what was deleted of late, and a number that grows with every change of the lists.
    # An index row holds its message's text as searching.fold gives it: messages that are being written have none yet,
    # nor have those that were there before the index, until indexing.py has come to them.
    """
    CREATE TABLE folders (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        name TEXT NOT NULL,
        created_at REAL NOT NULL
    );
    ALTER TABLE conversations ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE conversations ADD COLUMN folder_id TEXT REFERENCES folders (id) ON DELETE SET NULL;
    DROP INDEX conversations_by_use;
    CREATE INDEX conversations_by_use ON conversations (owner, pinned DESC, touched DESC, updated_at DESC);
    CREATE INDEX conversations_by_folder ON conversations (folder_id, pinned DESC, touched DESC, updated_at DESC);
    CREATE INDEX conversations_by_time ON conversations (owner, updated_at, touched);
    CREATE INDEX conversations_by_touch ON conversations (touched);

    CREATE VIRTUAL TABLE message_texts USING fts5 (text, tokenize = 'trigram case_sensitive 1', detail = none);
    CREATE TRIGGER messages_said AFTER INSERT ON messages WHEN new.status <> 'streaming' BEGIN
        INSERT INTO message_texts (rowid, text) VALUES (new.sequence, fold(new.content));
    END;
    CREATE TRIGGER messages_changed AFTER UPDATE OF content, status ON messages WHEN new.status <> 'streaming' BEGIN
        DELETE FROM message_texts WHERE rowid = new.sequence;
        INSERT INTO message_texts (rowid, text) VALUES (new.sequence, fold(new.content));
    END;
    CREATE TRIGGER messages_gone AFTER DELETE ON messages BEGIN
        DELETE FROM message_texts WHERE rowid = old.sequence;
    END;

    CREATE TABLE deletions (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        conversation_id TEXT NOT NULL,
        title TEXT NOT NULL,
        head_id TEXT,
        deleted_at REAL NOT NULL
    );
    CREATE INDEX deletions_by_time ON deletions (deleted_at);
    CREATE INDEX deletions_by_conversation ON deletions (conversation_id);
    CREATE TABLE deleted_rows (
        deletion_id TEXT NOT NULL REFERENCES deletions (id) ON DELETE CASCADE,
        place TEXT NOT NULL,
        row TEXT NOT NULL
    );
    CREATE INDEX deleted_rows_by_deletion ON deleted_rows (deletion_id);

    CREATE TABLE revisions (owner TEXT PRIMARY KEY, number INTEGER NOT NULL);
    CREATE TRIGGER conversations_made AFTER INSERT ON conversations BEGIN
        INSERT INTO revisions VALUES (new.owner, 1) ON CONFLICT (owner) DO UPDATE SET number = number + 1;
    END;
    CREATE TRIGGER conversations_changed AFTER UPDATE OF title, touched, pinned, folder_id ON conversations BEGIN
        INSERT INTO revisions VALUES (new.owner, 1) ON CONFLICT (owner) DO UPDATE SET number = number + 1;
    END;
    CREATE TRIGGER conversations_gone AFTER DELETE ON conversations BEGIN
        INSERT INTO revisions VALUES (old.owner, 1) ON CONFLICT (owner) DO UPDATE SET number = number + 1;
    END;
    CREATE TRIGGER folders_made AFTER INSERT ON folders BEGIN
        INSERT INTO revisions VALUES (new.owner, 1) ON CONFLICT (owner) DO UPDATE SET number = number + 1;
    END;
    CREATE TRIGGER folders_changed AFTER UPDATE ON folders BEGIN
        INSERT INTO revisions VALUES (new.owner, 1) ON CONFLICT (owner) DO UPDATE SET number = number + 1;
    END;
    CREATE TRIGGER folders_gone AFTER DELETE ON folders BEGIN
        INSERT INTO revisions VALUES (old.owner, 1) ON CONFLICT (owner) DO UPDATE SET number = number + 1;
    END;
    """,
    # The texts of files that came with messages. Those without a message wait for theirs to be sent.
    """
    CREATE TABLE attachments (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        message_id TEXT REFERENCES messages (id) ON DELETE CASCADE,
        place INTEGER NOT NULL DEFAULT 0,
        name TEXT NOT NULL,
        kind TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        characters INTEGER NOT NULL,
        about TEXT NOT NULL,
        cut TEXT NOT NULL,
        created_at REAL NOT NULL,
        text TEXT NOT NULL
    );
    CREATE INDEX attachments_by_message ON attachments (message_id, place);
    CREATE INDEX attachments_waiting ON attachments (created_at) WHERE message_id IS NULL;
    CREATE VIRTUAL TABLE attachment_texts USING fts5 (text, tokenize = 'trigram case_sensitive 1', detail = none);
    CREATE TRIGGER attachments_made AFTER INSERT ON attachments BEGIN
        INSERT INTO attachment_texts (rowid, text) VALUES (new.number, fold(new.name || char(10) || new.text));
    END;
    CREATE TRIGGER attachments_gone AFTER DELETE ON attachments BEGIN
        DELETE FROM attachment_texts WHERE rowid = old.number;
    END;
    """,
    # The notebook's history: a tree of changes, of which `content` shows the head. A step of kind "open" is a
    # completion that is being written: `content` lacks what it `added`. Runs are what the model wrote, by token.
    """
    ALTER TABLE notebooks ADD COLUMN head_id INTEGER;
    ALTER TABLE notebooks ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE notebook_steps (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        owner TEXT NOT NULL,
        parent_id INTEGER REFERENCES notebook_steps (id) ON DELETE CASCADE,
        next_id INTEGER,
        kind TEXT NOT NULL,
        position INTEGER NOT NULL,
        removed TEXT NOT NULL,
        added TEXT NOT NULL,
        spans TEXT NOT NULL,
        run_id INTEGER
    );
    CREATE INDEX notebook_steps_by_parent ON notebook_steps (parent_id);
    CREATE INDEX notebook_steps_by_owner ON notebook_steps (owner);
    CREATE TABLE notebook_runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        owner TEXT NOT NULL,
        tokens BLOB NOT NULL,
        facts TEXT NOT NULL
    );
    CREATE INDEX notebook_runs_by_owner ON notebook_runs (owner);
    """,
    # What extensions made of a message: of a question what the model reads, of a reply what is shown.
    "ALTER TABLE messages ADD COLUMN modified TEXT",
    # A picture is kept as Snug drew it anew; it has no text.
    """
    ALTER TABLE attachments ADD COLUMN width INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE attachments ADD COLUMN height INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE attachments ADD COLUMN media_type TEXT NOT NULL DEFAULT '';
    ALTER TABLE attachments ADD COLUMN picture BLOB;
    """,
    # Messages older than the search index, up to the one `remaining`; without a row every message is in the index.
    """
    CREATE TABLE index_debts (
        whole INTEGER NOT NULL,
        remaining INTEGER NOT NULL
    );
    INSERT INTO index_debts SELECT newest, newest
        FROM (SELECT max(sequence) AS newest, sum(status <> 'streaming') AS amount FROM messages)
        WHERE amount > (SELECT count(*) FROM message_texts);
    """,
)
