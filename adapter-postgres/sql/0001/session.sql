-- Sessions.

CREATE FUNCTION {schema}.micros_v1(t timestamptz) RETURNS bigint
LANGUAGE sql STABLE AS $$ SELECT (extract(epoch FROM t) * 1000000)::bigint $$;

-- Removes a session: all that belongs to it is out of reach with its row, and is
-- removed by sweeping.
CREATE FUNCTION {schema}.bury_v1(p_sid bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM session WHERE sid = p_sid;
    INSERT INTO grave VALUES (p_sid);
END $$;

CREATE FUNCTION {schema}.count_principal_v1(p_principal bytea, p_bytes bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_bytes = 0 THEN
        RETURN;
    END IF;
    INSERT INTO principal_bytes AS p VALUES (p_principal, pg_backend_pid() % 16, p_bytes)
    ON CONFLICT (principal, shard) DO UPDATE SET bytes = p.bytes + p_bytes;
END $$;

CREATE FUNCTION {schema}.create_v1(p_key bytea, p_principal bytea, p_record bytea, p_creator bytea,
    p_idle bigint, p_slack bigint, p_hard bigint)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    t timestamptz;
    s session;
    until timestamptz;
    last timestamptz;
BEGIN
    LOOP
        SELECT * INTO s FROM session WHERE key = p_key FOR UPDATE;
        t := clock_timestamp();
        IF FOUND THEN
            IF s.expires > t THEN
                RETURN s.creator = p_creator;
            END IF;
            PERFORM bury_v1(s.sid);
            PERFORM count_principal_v1(s.principal, -s.bytes);
        END IF;
        last := t + p_hard * interval '1 microsecond';
        until := least(t + (p_idle + p_slack) * interval '1 microsecond', last);
        INSERT INTO session (key, principal, creator, record, revision, idle, slack, hard,
            expires, sweep_at, epoch)
        SELECT p_key, p_principal, p_creator, p_record, 1, p_idle, p_slack, last,
            until, until, m.epoch
        FROM meta m
        ON CONFLICT (key) DO NOTHING;
        EXIT WHEN FOUND;
    END LOOP;
    -- After the insert: whoever deleted a former one has committed by now.
    IF EXISTS (SELECT FROM tombstone d
        WHERE d.key = p_key AND d.creator = p_creator AND d.expires > t) THEN
        DELETE FROM session WHERE key = p_key;
        RETURN false;
    END IF;
    RETURN true;
END $$;

-- 0: entered; 1: no session; 2: too many streams; 3: quota. `p_uncounted`: bytes of the
-- session that the caller has stored and not counted yet.
CREATE FUNCTION {schema}.enter_v1(p_key bytea, p_principal bytea, p_name text, p_owner bytea,
    p_request bytea, p_max_open bigint, p_max_bytes bigint, p_uncounted bigint,
    OUT code smallint, OUT record bytea, OUT revision bigint,
    OUT id bigint, OUT lasts bigint, OUT bytes bigint, OUT fresh bigint)
LANGUAGE plpgsql AS $$
DECLARE
    t timestamptz;
    s session;
    former stream;
    gone record;
    until timestamptz;
BEGIN
    code := 1;
    IF p_name IS NULL THEN
        SELECT * INTO s FROM session WHERE key = p_key AND principal = p_principal;
    ELSE
        SELECT * INTO s FROM session WHERE key = p_key AND principal = p_principal
        FOR NO KEY UPDATE;
    END IF;
    t := clock_timestamp();
    IF s.sid IS NULL OR s.expires <= t THEN
        RETURN;
    END IF;
    IF p_name IS NOT NULL THEN
        SELECT * INTO former FROM stream st WHERE st.sid = s.sid AND st.name = p_name;
        -- One whose time is over is none, swept or not.
        IF former.id IS NULL OR former.expires <= t THEN
            IF p_max_open <= (SELECT count(*) FROM (
                SELECT FROM stream st
                WHERE st.sid = s.sid AND st.ended IS NULL AND st.owner IS NOT NULL
                LIMIT p_max_open) o) THEN
                code := 2;
                RETURN;
            END IF;
            IF p_max_bytes < p_uncounted + (SELECT coalesce(sum(p.bytes), 0)
                FROM principal_bytes p WHERE p.principal = p_principal) THEN
                code := 3;
                RETURN;
            END IF;
            IF former.id IS NOT NULL THEN
                SELECT * INTO gone FROM remove_stream_v1(former.id);
                PERFORM uncount_v1(s.sid, s.principal, gone.events, gone.bytes);
                s.bytes := s.bytes - gone.bytes;
            END IF;
            until := least(t + s.slack * interval '1 microsecond', s.hard);
            INSERT INTO stream (sid, name, owner, request, fresh, holder, number)
            VALUES (s.sid, p_name, p_owner, p_request, micros_v1(until), p_owner, 1)
            RETURNING stream.id, stream.fresh INTO id, fresh;
            lasts := extract(epoch FROM until - t) * 1000000;
        END IF;
    END IF;
    IF s.expires < least(t + s.idle * interval '1 microsecond', s.hard) THEN
        UPDATE session SET expires =
            least(t + (s.idle + s.slack) * interval '1 microsecond', session.hard)
        WHERE sid = s.sid;
        IF NOT FOUND THEN
            -- Deleted meanwhile: read without a lock.
            RETURN;
        END IF;
    END IF;
    code := 0;
    record := s.record;
    revision := s.revision;
    bytes := s.bytes;
END $$;

-- The revision that it made, now or by an earlier try; 0: another one is stored; NULL:
-- no session.
CREATE FUNCTION {schema}.update_v1(p_key bytea, p_principal bytea, p_revision bigint,
    p_record bytea, p_attempt bytea)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    s session;
    place integer;
BEGIN
    SELECT * INTO s FROM session WHERE key = p_key AND principal = p_principal
    FOR NO KEY UPDATE;
    IF NOT FOUND OR s.expires <= clock_timestamp() THEN
        RETURN NULL;
    END IF;
    place := array_position(s.updates, p_attempt);
    IF place IS NOT NULL THEN
        RETURN s.revision - place + 1;
    END IF;
    IF s.revision <> p_revision THEN
        RETURN 0;
    END IF;
    UPDATE session SET record = p_record, revision = p_revision + 1,
        updates = (array_prepend(p_attempt, s.updates))[1:{remembered}]
    WHERE sid = s.sid;
    RETURN p_revision + 1;
END $$;

-- Who is to be told; NULL: no such session.
CREATE FUNCTION {schema}.delete_v1(p_key bytea, p_principal bytea, p_tombstone bigint)
RETURNS bytea[] LANGUAGE plpgsql AS $$
DECLARE
    t timestamptz;
    s session;
    parties bytea[];
BEGIN
    SELECT * INTO s FROM session WHERE key = p_key AND principal = p_principal FOR UPDATE;
    t := clock_timestamp();
    IF NOT FOUND OR s.expires <= t THEN
        RETURN NULL;
    END IF;
    SELECT array_agg(DISTINCT p.instance) INTO parties
    FROM (
        SELECT owner AS instance FROM stream
        WHERE sid = s.sid AND ended IS NULL AND owner IS NOT NULL
        UNION ALL
        SELECT holder FROM stream
        WHERE sid = s.sid AND holder IS NOT NULL AND (expires IS NULL OR expires > t)
        UNION ALL
        SELECT owner FROM request WHERE sid = s.sid AND outcome IS NULL AND due > t
    ) p;
    INSERT INTO tombstone VALUES (p_key, s.creator, t + p_tombstone * interval '1 microsecond')
    ON CONFLICT (key, creator) DO UPDATE SET expires = excluded.expires;
    -- Writers that do not look at the session are to look.
    UPDATE stream SET fresh = 0
    WHERE sid = s.sid AND ended IS NULL AND owner IS NOT NULL;
    PERFORM bury_v1(s.sid);
    PERFORM count_principal_v1(s.principal, -s.bytes);
    RETURN coalesce(parties, '{}');
END $$;
