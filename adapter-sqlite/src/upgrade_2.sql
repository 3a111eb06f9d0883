-- From version 1 to version 2. Nothing that version 1 asks of a table is missing.
ALTER TABLE mcp_session ADD COLUMN updates BLOB NOT NULL DEFAULT x'';
ALTER TABLE mcp_session ADD COLUMN gone INTEGER NOT NULL DEFAULT 0;
ALTER TABLE mcp_stream ADD COLUMN holds BLOB NOT NULL DEFAULT x'';

ALTER TABLE mcp_deleted RENAME TO mcp_deleted_1;
DROP INDEX mcp_deleted_until;
CREATE TABLE mcp_deleted(
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL,
    creator BLOB NOT NULL,
    until INTEGER NOT NULL,
    UNIQUE (key, creator)
) STRICT;
INSERT INTO mcp_deleted(key, creator, until) SELECT key, creator, until FROM mcp_deleted_1;
DROP TABLE mcp_deleted_1;
CREATE INDEX mcp_deleted_until ON mcp_deleted(until);
