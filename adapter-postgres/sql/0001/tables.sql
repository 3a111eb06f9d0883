-- Tables. `sid` and `stream.id` are surrogate keys, never cursors: a session that
-- is created again under its old key shares nothing with the former one.

-- One row: which history of the data this is, and the epoch in which shared
-- streams are written in it.
CREATE TABLE {schema}.meta (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    -- System, timeline and table that the incarnation was made for.
    identity text NOT NULL,
    started timestamptz NOT NULL,
    -- A commit may be acknowledged before it is on disk.
    lossy boolean NOT NULL,
    incarnation text NOT NULL,
    epoch bigint NOT NULL
);
INSERT INTO {schema}.meta VALUES (true, '', '-infinity', false, '', 1);

-- `expires` changes with use and is in no index, so that sliding it touches no
-- index; `sweep_at` is never later than it.
CREATE TABLE {schema}.session (
    key bytea PRIMARY KEY,
    sid bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    principal bytea NOT NULL,
    creator bytea NOT NULL,
    record bytea NOT NULL,
    revision bigint NOT NULL,
    -- The updates that won last, the newest first: it made this revision, the one
    -- behind it that less one.
    updates bytea[],
    -- Microseconds. A use is recorded once per `slack`.
    idle bigint NOT NULL,
    slack bigint NOT NULL,
    hard timestamptz,
    expires timestamptz NOT NULL,
    sweep_at timestamptz NOT NULL,
    -- The epoch of shared streams when it was created.
    epoch bigint NOT NULL,
    -- The highest epoch of a standalone stream that is gone; 0: there was none.
    gone_epoch bigint NOT NULL DEFAULT 0,
    events bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 70, {vacuum});
CREATE INDEX session_sweep ON {schema}.session (sweep_at);

-- The creators of deleted sessions: a create that comes late brings none back.
CREATE TABLE {schema}.tombstone (
    key bytea NOT NULL,
    creator bytea NOT NULL,
    expires timestamptz NOT NULL,
    PRIMARY KEY (key, creator)
) WITH ({vacuum});
CREATE INDEX tombstone_sweep ON {schema}.tombstone (expires);

-- Sessions that are gone, whose streams and requests are still to be removed.
CREATE TABLE {schema}.grave (
    sid bigint PRIMARY KEY
) WITH ({vacuum});

-- `epoch` and `seq` are a floor of the top: the events may stand higher.
--
-- `fresh` is a lease: a time, in microseconds, until which an append that names it
-- need look at nothing else. Its writer is the only one that knows it, its session
-- lives, and its use is recorded. Whatever changes one of these changes `fresh`.
CREATE TABLE {schema}.stream (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sid bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    owner bytea,
    request bytea,
    fresh bigint NOT NULL DEFAULT 0,
    epoch bigint NOT NULL DEFAULT 0,
    seq bigint NOT NULL DEFAULT 0,
    ended smallint,
    expires timestamptz,
    cancelled boolean NOT NULL DEFAULT false,
    holder bytea,
    number bigint NOT NULL DEFAULT 0,
    began_epoch bigint NOT NULL DEFAULT 0,
    began_seq bigint NOT NULL DEFAULT 0,
    released_epoch bigint,
    released_seq bigint,
    -- Of the standalone stream, where its last holds began, the newest last: number,
    -- epoch and seq of each.
    holds bigint[],
    -- Counted for shared streams only.
    events bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    UNIQUE (sid, name)
) WITH (fillfactor = 80, {vacuum});
CREATE INDEX stream_open ON {schema}.stream (sid) WHERE ended IS NULL AND owner IS NOT NULL;
CREATE INDEX stream_owner ON {schema}.stream (owner) WHERE ended IS NULL AND owner IS NOT NULL;
CREATE INDEX stream_sweep ON {schema}.stream (expires) WHERE expires IS NOT NULL;

-- The log. The place is chosen by the writer; the primary key makes a repeat one.
CREATE TABLE {schema}.event (
    stream bigint NOT NULL,
    epoch bigint NOT NULL,
    seq bigint NOT NULL,
    stored timestamptz NOT NULL DEFAULT now(),
    data bytea,
    prev_epoch bigint,
    prev_seq bigint,
    writer bytea,
    tag bigint,
    PRIMARY KEY (stream, epoch, seq)
) WITH ({vacuum});
ALTER TABLE {schema}.event ALTER COLUMN data SET STORAGE EXTERNAL;

-- The last number of each writer of a shared stream.
CREATE TABLE {schema}.shared_writer (
    stream bigint NOT NULL,
    writer bytea NOT NULL,
    tag bigint NOT NULL,
    epoch bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (stream, writer)
) WITH (fillfactor = 70, {vacuum});

CREATE TABLE {schema}.request (
    sid bigint NOT NULL,
    id bytea NOT NULL,
    token bytea NOT NULL,
    -- Waiters that it replaced, and the tries that ended those.
    former bytea[] NOT NULL DEFAULT '{}',
    won bytea[] NOT NULL DEFAULT '{}',
    owner bytea NOT NULL,
    due timestamptz NOT NULL,
    kept bigint NOT NULL,
    outcome smallint,
    payload bytea,
    attempt bytea,
    forget timestamptz NOT NULL,
    PRIMARY KEY (sid, id)
) WITH (fillfactor = 70, {vacuum});
ALTER TABLE {schema}.request ALTER COLUMN payload SET STORAGE EXTERNAL;
CREATE INDEX request_pending ON {schema}.request (sid) WHERE outcome IS NULL;
CREATE INDEX request_owner ON {schema}.request (owner) WHERE outcome IS NULL;
CREATE INDEX request_sweep ON {schema}.request (forget);

-- Bytes per principal, in shards, so that backends do not wait for each other.
CREATE TABLE {schema}.principal_bytes (
    principal bytea NOT NULL,
    shard smallint NOT NULL,
    bytes bigint NOT NULL,
    PRIMARY KEY (principal, shard)
) WITH (fillfactor = 50, {vacuum});

CREATE TABLE {schema}.beat (
    instance bytea PRIMARY KEY,
    beat bigint NOT NULL,
    expires timestamptz NOT NULL
) WITH (fillfactor = 50, {vacuum});

-- Who can be knocked at: through its channel, or, without one, by a row.
CREATE TABLE {schema}.door (
    instance bytea PRIMARY KEY,
    channel text,
    expires timestamptz NOT NULL
) WITH (fillfactor = 50, {vacuum});

-- Knocks for who polls. Hints: they need not survive a crash.
CREATE UNLOGGED TABLE {schema}.knock (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    instance bytea NOT NULL,
    payload text NOT NULL,
    expires timestamptz NOT NULL
) WITH ({vacuum});
CREATE INDEX knock_door ON {schema}.knock (instance, id);
