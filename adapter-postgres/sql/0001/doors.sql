-- Histories, heartbeats and wake-ups.

-- System, timeline and table. A restored copy has another timeline, and a dump
-- that was read in again another table. Where the server hides one of them the
-- rest has to do.
CREATE FUNCTION {schema}.identity_v1() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    system text := '?';
    line text := '?';
BEGIN
    BEGIN
        SELECT system_identifier::text INTO system FROM pg_control_system();
    EXCEPTION WHEN insufficient_privilege OR undefined_function OR feature_not_supported THEN
        NULL;
    END;
    BEGIN
        line := substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8);
    EXCEPTION WHEN insufficient_privilege OR undefined_function OR feature_not_supported THEN
        NULL;
    END;
    RETURN system || '/' || line || '/' || 'event'::regclass::oid;
END $$;

-- How long the log is. What was acknowledged is in it, and a crash does not make it
-- shorter; an older copy does.
CREATE FUNCTION {schema}.lsn_v1() RETURNS bigint LANGUAGE sql AS $$
    SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint
$$;

-- Tells the incarnation, and makes a new one where the data may have lost
-- acknowledged writes: another identity, a restart of a server that acknowledges
-- before the disk has it, or a log that is shorter than the caller has seen it.
CREATE FUNCTION {schema}.attach_v1(p_incarnation text, p_lsn bigint, p_lossy boolean,
    OUT incarnation text, OUT epoch bigint, OUT lsn bigint)
LANGUAGE plpgsql AS $$
DECLARE
    id text := identity_v1();
    born timestamptz := pg_postmaster_start_time();
    m meta;
    other boolean;
BEGIN
    lsn := lsn_v1();
    SELECT * INTO m FROM meta;
    IF p_lossy AND NOT m.lossy THEN
        UPDATE meta SET lossy = true;
    END IF;
    LOOP
        other := m.identity <> id
            OR (m.incarnation = p_incarnation AND lsn < p_lsn)
            OR (m.lossy AND m.started <> born);
        IF NOT other THEN
            IF m.started <> born THEN
                UPDATE meta SET started = born;
            END IF;
            EXIT;
        END IF;
        SELECT * INTO m FROM meta FOR UPDATE;
        other := m.identity <> id
            OR (m.incarnation = p_incarnation AND lsn < p_lsn)
            OR (m.lossy AND m.started <> born);
        CONTINUE WHEN NOT other;
        -- Two copies of one history must not give out the same epoch.
        UPDATE meta SET identity = id, started = born, incarnation = gen_random_uuid()::text,
            epoch = meta.epoch + 1
                + ('x' || substr(md5(gen_random_uuid()::text), 1, 4))::bit(16)::integer
        RETURNING * INTO m;
    END LOOP;
    incarnation := m.incarnation;
    epoch := m.epoch;
END $$;

-- Fails where this is not the history that the caller has attached to.
CREATE FUNCTION {schema}.same_history_v1(p_incarnation text, p_lsn bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    m meta;
BEGIN
    IF p_incarnation IS NULL THEN
        RETURN;
    END IF;
    SELECT * INTO m FROM meta;
    IF m.incarnation <> p_incarnation OR lsn_v1() < p_lsn OR m.identity <> identity_v1() THEN
        RAISE EXCEPTION 'another history' USING ERRCODE = 'MA002';
    END IF;
END $$;

-- The text of a wake-up of a stream; the adapter writes the same.
CREATE FUNCTION {schema}.wake_v1(p_key bytea, p_name text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT 'w' || translate(encode(p_key, 'base64'), E'+/=\n', '-_') || p_name
$$;

-- Hands payloads to doors. An instance of NULL is all of them. Where nobody is,
-- nothing is sent.
CREATE FUNCTION {schema}.send_v1(p_all text, p_to bytea[], p_payload text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    t timestamptz := clock_timestamp();
BEGIN
    FOR n IN 1..cardinality(p_to) LOOP
        IF p_to[n] IS NULL THEN
            PERFORM pg_notify(p_all, p_payload[n])
            WHERE EXISTS (SELECT FROM door d WHERE d.channel IS NOT NULL AND d.expires > t);
            INSERT INTO knock (instance, payload, expires)
            SELECT d.instance, p_payload[n], t + interval '1 minute'
            FROM door d WHERE d.channel IS NULL AND d.expires > t;
        ELSE
            PERFORM pg_notify(d.channel, p_payload[n]) FROM door d
            WHERE d.instance = p_to[n] AND d.channel IS NOT NULL AND d.expires > t;
            IF NOT FOUND THEN
                INSERT INTO knock (instance, payload, expires)
                SELECT d.instance, p_payload[n], t + interval '1 minute'
                FROM door d WHERE d.instance = p_to[n] AND d.channel IS NULL AND d.expires > t;
            END IF;
        END IF;
    END LOOP;
END $$;

-- Knocks with short texts: one payload per door, and one more for each 7000 bytes.
CREATE FUNCTION {schema}.ring_v1(p_to bytea[], p_text text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    doors bytea[];
    payloads text[];
BEGIN
    IF cardinality(p_to) = 1 THEN
        PERFORM send_v1(NULL, p_to, p_text);
        RETURN;
    END IF;
    SELECT array_agg(m.door), array_agg(m.payload) INTO doors, payloads
    FROM (
        SELECT c.door, string_agg(c.text, E'\n' ORDER BY c.i) AS payload
        FROM (
            SELECT k.door, k.text, k.i,
                sum(length(k.text) + 1) OVER (PARTITION BY k.door ORDER BY k.i) / 7000 AS part
            FROM (
                SELECT u.door, u.text, min(u.i) AS i
                FROM unnest(p_to, p_text) WITH ORDINALITY u (door, text, i)
                WHERE u.door IS NOT NULL
                GROUP BY u.door, u.text
            ) k
        ) c
        GROUP BY c.door, c.part
        ORDER BY c.door, c.part
    ) m;
    IF doors IS NOT NULL THEN
        PERFORM send_v1(NULL, doors, payloads);
    END IF;
END $$;

CREATE FUNCTION {schema}.knock_v1(p_all text, p_to bytea[], p_payload text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- A hint need not wait for the disk, and the lock of the queue of
    -- notifications is held until the commit is through.
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM send_v1(p_all, p_to, p_payload);
END $$;

-- Opens a door; without a channel its owner polls. What was put before it while its
-- owner's link was down stays: a signal is in no log.
CREATE FUNCTION {schema}.door_v1(p_me bytea, p_channel text, p_ttl bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    until timestamptz := clock_timestamp() + p_ttl * interval '1 microsecond';
BEGIN
    INSERT INTO door VALUES (p_me, p_channel, until)
    ON CONFLICT (instance) DO UPDATE SET channel = p_channel, expires = until;
END $$;

-- Takes what was put before the door of who polls.
CREATE FUNCTION {schema}.poll_v1(p_me bytea) RETURNS TABLE (payload text)
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM knock k WHERE k.instance = p_me) THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH taken AS (DELETE FROM knock k WHERE k.instance = p_me RETURNING k.id, k.payload)
    SELECT taken.payload FROM taken ORDER BY taken.id;
END $$;

CREATE FUNCTION {schema}.heartbeat_v1(p_me bytea, p_beat bigint, p_ttl bigint)
RETURNS TABLE (instance bytea, beat bigint, lsn bigint)
LANGUAGE plpgsql AS $$
DECLARE
    t timestamptz := clock_timestamp();
    until timestamptz := t + p_ttl * interval '1 microsecond';
    seen bigint := lsn_v1();
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    -- A late repeat takes no life away.
    INSERT INTO beat AS b VALUES (p_me, p_beat, until)
    ON CONFLICT ON CONSTRAINT beat_pkey
        DO UPDATE SET beat = greatest(b.beat, p_beat), expires = until;
    UPDATE door d SET expires = until
    WHERE d.instance = p_me AND d.expires < t + p_ttl / 2 * interval '1 microsecond';
    RETURN QUERY SELECT b.instance, b.beat, seen FROM beat b WHERE b.expires > t;
END $$;

-- Whether an instance is dead, that is, its counter stands where it stood. Until
-- the end of the transaction it cannot prove that it lives.
CREATE FUNCTION {schema}.dead_v1(p_instance bytea, p_beat bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    stands bigint;
BEGIN
    SELECT b.beat INTO stands FROM beat b
    WHERE b.instance = p_instance AND b.expires > clock_timestamp() FOR SHARE;
    RETURN stands IS NOT DISTINCT FROM p_beat;
END $$;
