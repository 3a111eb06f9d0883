-- Names the file and its history.
CREATE TABLE mcp_file(
    one INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL,
    -- Random, for good.
    id BLOB NOT NULL,
    -- Of this history: raised where acknowledged writes may be missing.
    epoch INTEGER NOT NULL,
    -- The file and the start of the system under which the history goes on.
    inode INTEGER NOT NULL,
    boot TEXT NOT NULL,
    -- Whether anybody wrote without waiting for the disk.
    relaxed INTEGER NOT NULL
) STRICT;

-- Counts, and up to which id of the log they and all heads go.
CREATE TABLE mcp_total(
    one INTEGER PRIMARY KEY CHECK (one = 1),
    mark INTEGER NOT NULL DEFAULT 0,
    sessions INTEGER NOT NULL DEFAULT 0,
    streams INTEGER NOT NULL DEFAULT 0,
    events INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0,
    pending INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE mcp_principal(
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    sessions INTEGER NOT NULL,
    bytes INTEGER NOT NULL
) STRICT;

CREATE TABLE mcp_session(
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    principal INTEGER NOT NULL,
    creator BLOB NOT NULL,
    -- The history in which it was created.
    born INTEGER NOT NULL,
    idle INTEGER NOT NULL,
    hard INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    record BLOB NOT NULL,
    -- The names of the updates that made the last revisions, in their order.
    updates BLOB NOT NULL DEFAULT x'',
    -- The last epoch of its shared stream that is gone: no later one begins before.
    gone INTEGER NOT NULL DEFAULT 0
) STRICT;

-- What changes with each use, apart from the record: narrow rows, many of which
-- share a page.
CREATE TABLE mcp_used(
    session INTEGER PRIMARY KEY,
    -- When it was used last.
    at INTEGER NOT NULL,
    events INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    -- When to look at it: not after its deadline. Use does not move it.
    due INTEGER NOT NULL
) STRICT;
CREATE INDEX mcp_used_due ON mcp_used(due);

-- Who created what is deleted: a create that was held up brings nothing back. A key
-- may have had several creators, one after another.
CREATE TABLE mcp_deleted(
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL,
    creator BLOB NOT NULL,
    until INTEGER NOT NULL,
    UNIQUE (key, creator)
) STRICT;
CREATE INDEX mcp_deleted_until ON mcp_deleted(until);

CREATE TABLE mcp_stream(
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    name TEXT NOT NULL,
    owner BLOB,
    request BLOB,
    cancelled INTEGER NOT NULL DEFAULT 0,
    ended INTEGER,
    expires INTEGER,
    holder BLOB,
    number INTEGER NOT NULL,
    began BLOB,
    released BLOB,
    -- Of the shared stream: where its last holds began.
    holds BLOB NOT NULL DEFAULT x'',
    UNIQUE (session, name)
) STRICT;
CREATE INDEX mcp_stream_expires ON mcp_stream(expires) WHERE expires IS NOT NULL;
CREATE INDEX mcp_stream_owner ON mcp_stream(owner) WHERE ended IS NULL AND owner IS NOT NULL;

-- Where each stream stood at the mark.
CREATE TABLE mcp_head(
    stream INTEGER PRIMARY KEY,
    head BLOB NOT NULL
) STRICT;

-- The log of all events. It is appended to and has no index; each event names
-- the one before it in its stream.
CREATE TABLE mcp_event(
    id INTEGER PRIMARY KEY,
    entry BLOB NOT NULL,
    data BLOB NOT NULL
) STRICT;

-- Last events of streams that are gone: what is linked to them is to be removed.
CREATE TABLE mcp_trash(
    id INTEGER PRIMARY KEY,
    last INTEGER NOT NULL
) STRICT;

-- Of a shared stream: the last number of each writer whose event was evicted.
CREATE TABLE mcp_writer(
    stream INTEGER NOT NULL,
    instance BLOB NOT NULL,
    gone INTEGER NOT NULL,
    PRIMARY KEY (stream, instance)
) STRICT, WITHOUT ROWID;

CREATE TABLE mcp_request(
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    rpc BLOB NOT NULL,
    token BLOB NOT NULL,
    owner BLOB NOT NULL,
    -- The deadline while it is pending; afterwards, when it is forgotten.
    due INTEGER NOT NULL,
    ttl INTEGER NOT NULL,
    outcome INTEGER,
    payload BLOB,
    attempt BLOB,
    -- Waiters that were replaced, and tries that ended what they waited for.
    replaced BLOB NOT NULL,
    won BLOB NOT NULL,
    UNIQUE (session, rpc)
) STRICT;
CREATE INDEX mcp_request_due ON mcp_request(due);
CREATE INDEX mcp_request_owner ON mcp_request(owner) WHERE outcome IS NULL;

CREATE TABLE mcp_beat(
    instance BLOB PRIMARY KEY,
    count INTEGER NOT NULL,
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Wake-ups: a door is an instance, or all.
CREATE TABLE mcp_knock(
    id INTEGER PRIMARY KEY,
    door BLOB,
    at INTEGER NOT NULL,
    knocks BLOB NOT NULL
) STRICT;

-- Sessions that were changed in another way than by an append: what others
-- remember of them is out of date.
CREATE TABLE mcp_change(
    id INTEGER PRIMARY KEY,
    session INTEGER NOT NULL
) STRICT;
