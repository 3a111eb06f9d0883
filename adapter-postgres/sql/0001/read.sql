-- Reads and holders.

-- Several cursors, each with all of its rows from one moment; `holds` comes with the
-- first of them. `p_touch` slides those sessions.
CREATE FUNCTION {schema}.read_v1(p_key bytea[], p_name text[], p_epoch bigint[], p_seq bigint[],
    p_events bigint[], p_bytes bigint[], p_touch bytea[])
RETURNS TABLE (i bigint, alive boolean, id bigint, top_epoch bigint, top_seq bigint,
    first_epoch bigint, first_seq bigint, ended smallint, owner bytea,
    holder bytea, number bigint, cancelled boolean, holds bigint[],
    epoch bigint, seq bigint, prev_epoch bigint, prev_seq bigint, data bytea)
LANGUAGE plpgsql AS $$
DECLARE
    t timestamptz := clock_timestamp();
BEGIN
    IF cardinality(p_touch) > 0 THEN
        UPDATE session s SET expires =
            least(t + (s.idle + s.slack) * interval '1 microsecond', s.hard)
        FROM (
            SELECT x.sid FROM session x
            WHERE x.key = ANY (p_touch) AND x.expires > t
                AND x.expires < least(t + x.idle * interval '1 microsecond', x.hard)
            ORDER BY x.key FOR NO KEY UPDATE
        ) l
        WHERE s.sid = l.sid;
        t := clock_timestamp();
    END IF;
    RETURN QUERY
    SELECT c.i, s.sid IS NOT NULL, st.id,
        CASE WHEN (st.epoch, st.seq) >= (l.epoch, l.seq) OR l.epoch IS NULL
            THEN st.epoch ELSE l.epoch END,
        CASE WHEN (st.epoch, st.seq) >= (l.epoch, l.seq) OR l.epoch IS NULL
            THEN st.seq ELSE l.seq END,
        f.epoch, f.seq, st.ended, st.owner, st.holder, st.number, st.cancelled,
        CASE WHEN e.n > 1 THEN NULL ELSE st.holds END,
        e.epoch, e.seq, e.prev_epoch, e.prev_seq, e.data
    FROM unnest(p_key, p_name, p_epoch, p_seq, p_events, p_bytes) WITH ORDINALITY
        c (key, name, epoch, seq, events, bytes, i)
    LEFT JOIN LATERAL (
        SELECT x.sid FROM session x WHERE x.key = c.key AND x.expires > t LIMIT 1
    ) s ON true
    LEFT JOIN LATERAL (
        SELECT x.* FROM stream x WHERE x.sid = s.sid AND x.name = c.name
            AND (x.expires IS NULL OR x.expires > t) LIMIT 1
    ) st ON true
    LEFT JOIN LATERAL (
        SELECT x.epoch, x.seq FROM event x WHERE x.stream = st.id
        ORDER BY x.epoch DESC, x.seq DESC LIMIT 1
    ) l ON true
    LEFT JOIN LATERAL (
        SELECT x.epoch, x.seq FROM event x WHERE x.stream = st.id
        ORDER BY x.epoch, x.seq LIMIT 1
    ) f ON true
    LEFT JOIN LATERAL (
        SELECT w.* FROM (
            SELECT p.*, row_number() OVER o AS n,
                sum(greatest(coalesce(length(p.data), 0), 1)) OVER o AS size
            FROM (
                SELECT x.epoch, x.seq, x.prev_epoch, x.prev_seq, x.data FROM event x
                WHERE x.stream = st.id AND (x.epoch, x.seq) > (c.epoch, c.seq)
                ORDER BY x.epoch, x.seq LIMIT c.events
            ) p
            WINDOW o AS (ORDER BY p.epoch, p.seq ROWS UNBOUNDED PRECEDING)
        ) w
        WHERE w.n = 1 OR w.size <= c.bytes
    ) e ON c.events > 0;
END $$;

-- Kinds: 0 take, 1 take from, 2 release, 3 continue. Codes: 0 done, 1 busy,
-- 2 no stream, 3 no session, 4 another hold began since.
CREATE FUNCTION {schema}.hold_v1(p_key bytea, p_name text, p_standalone boolean, p_me bytea,
    p_kind smallint, p_from bytea, p_number bigint, p_epoch bigint, p_seq bigint,
    OUT code smallint, OUT held bigint, OUT former bytea, OUT at_epoch bigint, OUT at_seq bigint,
    OUT top_epoch bigint, OUT top_seq bigint, OUT first_epoch bigint, OUT first_seq bigint,
    OUT ended smallint, OUT owner bytea, OUT holder bytea, OUT number bigint,
    OUT cancelled boolean, OUT holds bigint[])
LANGUAGE plpgsql AS $$
DECLARE
    t timestamptz;
    s session;
    st stream;
    made record;
    again boolean;
BEGIN
    SELECT * INTO s FROM session x WHERE x.key = p_key FOR KEY SHARE;
    t := clock_timestamp();
    IF NOT FOUND OR s.expires <= t THEN
        code := 3;
        RETURN;
    END IF;
    IF p_standalone THEN
        SELECT * INTO made FROM standalone_v1(s.sid, p_name, t);
        st := made.its_row;
        PERFORM uncount_v1(s.sid, s.principal, made.gone, made.gone_bytes);
    ELSE
        SELECT * INTO st FROM stream x WHERE x.sid = s.sid AND x.name = p_name FOR NO KEY UPDATE;
    END IF;
    IF st.id IS NULL OR st.expires <= t THEN
        code := 2;
        RETURN;
    END IF;
    SELECT y.epoch, y.seq INTO top_epoch, top_seq FROM top_v1(st.id, st.epoch, st.seq) y;
    SELECT x.epoch, x.seq INTO first_epoch, first_seq FROM event x WHERE x.stream = st.id
    ORDER BY x.epoch, x.seq LIMIT 1;
    code := 0;
    IF p_kind = 2 THEN
        IF st.holder = p_me AND st.number = p_number THEN
            st.holder := NULL;
            UPDATE stream x SET holder = NULL, fresh = x.fresh + 1,
                released_epoch = CASE WHEN (p_epoch, p_seq) < (top_epoch, top_seq)
                    THEN p_epoch ELSE top_epoch END,
                released_seq = CASE WHEN (p_epoch, p_seq) < (top_epoch, top_seq)
                    THEN p_seq ELSE top_seq END
            WHERE x.id = st.id;
        END IF;
        held := p_number;
        at_epoch := p_epoch;
        at_seq := p_seq;
    ELSIF p_kind = 1 AND st.holder IS NOT NULL
            AND (st.holder, st.number) IS DISTINCT FROM (p_from, p_number)
        OR p_kind = 3 AND (p_number = 0 OR p_number <> st.number) THEN
        IF st.holder = p_me THEN
            held := st.number;
            at_epoch := st.began_epoch;
            at_seq := st.began_seq;
        ELSE
            code := CASE p_kind WHEN 1 THEN 1 ELSE 4 END;
        END IF;
    ELSE
        former := st.holder;
        -- Who takes again may not have got the answer to the first time.
        again := p_kind = 3 OR st.holder IS NOT DISTINCT FROM p_me;
        IF NOT again THEN
            IF st.number = 0 THEN
                st.began_epoch := 0;
                st.began_seq := 0;
            ELSE
                st.began_epoch := coalesce(st.released_epoch, top_epoch);
                st.began_seq := coalesce(st.released_seq, top_seq);
            END IF;
        END IF;
        st.holder := p_me;
        st.number := st.number + 1;
        IF st.owner IS NULL THEN
            IF again THEN
                st.holds := st.holds[:cardinality(st.holds) - 3];
            END IF;
            st.holds := st.holds || ARRAY[st.number, st.began_epoch, st.began_seq];
            st.holds := st.holds[greatest(1, cardinality(st.holds) + 1 - 3 * {remembered}):];
        END IF;
        UPDATE stream x SET holder = p_me, number = st.number, released_epoch = NULL,
            released_seq = NULL, began_epoch = st.began_epoch, began_seq = st.began_seq,
            holds = st.holds, fresh = x.fresh + 1
        WHERE x.id = st.id;
        held := st.number;
        at_epoch := st.began_epoch;
        at_seq := st.began_seq;
    END IF;
    ended := st.ended;
    owner := st.owner;
    holder := st.holder;
    number := st.number;
    cancelled := st.cancelled;
    holds := st.holds;
END $$;

-- Waits until those appends of a writer are through that are under way. They may not
-- have seen who holds a stream by now, and wake whoever held it before. Appends that
-- come meanwhile wait as well, so this gives up soon.
CREATE FUNCTION {schema}.let_through_v1(p_lock bigint, p_patience text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM set_config('lock_timeout', p_patience, true);
    PERFORM pg_advisory_xact_lock(p_lock);
END $$;

-- Marks the one open stream of a request, and tells its name. 0 marked, 1 not running,
-- 2 ambiguous, NULL no session.
CREATE FUNCTION {schema}.cancel_v1(p_key bytea, p_request bytea, p_ring boolean,
    OUT code smallint, OUT name text)
LANGUAGE plpgsql AS $$
DECLARE
    s session;
    st stream;
    found bigint[];
BEGIN
    SELECT * INTO s FROM session x WHERE x.key = p_key;
    IF s.sid IS NULL OR s.expires <= clock_timestamp() THEN
        RETURN;
    END IF;
    code := 1;
    SELECT array_agg(x.id) INTO found FROM stream x
    WHERE x.sid = s.sid AND x.ended IS NULL AND x.owner IS NOT NULL AND x.request = p_request;
    IF found IS NULL THEN
        RETURN;
    END IF;
    IF cardinality(found) > 1 THEN
        code := 2;
        RETURN;
    END IF;
    UPDATE stream x SET cancelled = true WHERE x.id = found[1] AND x.ended IS NULL
    RETURNING x.* INTO st;
    IF st.id IS NULL THEN
        RETURN;
    END IF;
    code := 0;
    name := st.name;
    IF p_ring THEN
        PERFORM ring_v1(ARRAY[st.owner], ARRAY[wake_v1(p_key, st.name)]);
    END IF;
END $$;

-- The lock of an instance, alone. Who is writing has it as well: then this waits until
-- that is through, what comes meanwhile waits behind it, and so it gives up soon.
CREATE FUNCTION {schema}.lock_alone_v1(p_lock bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    before text := current_setting('lock_timeout');
BEGIN
    IF pg_try_advisory_xact_lock(p_lock) THEN
        RETURN true;
    END IF;
    BEGIN
        PERFORM set_config('lock_timeout', '200ms', true);
        PERFORM pg_advisory_xact_lock(p_lock);
        PERFORM set_config('lock_timeout', before, true);
        RETURN true;
    EXCEPTION WHEN lock_not_available THEN
        RETURN false;
    END;
END $$;

-- Ends streams of dead owners; returns how many.
CREATE FUNCTION {schema}.claim_v1(p_key bytea[], p_name text[], p_dead bytea[], p_beat bigint[],
    p_lock bigint[], p_ttl bigint[], p_ring boolean)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    t timestamptz := clock_timestamp();
    r record;
    st stream;
    top record;
    claimed bigint := 0;
    doors bytea[] := '{}';
    texts text[] := '{}';
BEGIN
    FOR r IN
        SELECT * FROM unnest(p_key, p_name, p_dead, p_beat, p_lock, p_ttl)
            u (key, name, dead, beat, lock, ttl)
        ORDER BY u.key, u.name
    LOOP
        -- What it has under way is stored before its stream ends; where that takes
        -- long the next round asks again.
        CONTINUE WHEN NOT lock_alone_v1(r.lock);
        CONTINUE WHEN NOT dead_v1(r.dead, r.beat);
        SELECT x.* INTO st FROM stream x JOIN session s ON s.sid = x.sid
        WHERE s.key = r.key AND s.expires > t AND x.name = r.name
            AND x.ended IS NULL AND x.owner = r.dead
        FOR NO KEY UPDATE OF x;
        CONTINUE WHEN NOT FOUND;
        PERFORM lose_owner_v1(st, r.ttl);
        claimed := claimed + 1;
        IF st.holder IS NOT NULL THEN
            doors := doors || st.holder;
            texts := texts || wake_v1(r.key, r.name);
        END IF;
    END LOOP;
    IF p_ring AND cardinality(doors) > 0 THEN
        PERFORM ring_v1(doors, texts);
    END IF;
    RETURN claimed;
END $$;

-- A new epoch, so that whatever the owner still writes is behind it. Writers begin
-- with 1, whether they have written or not.
CREATE FUNCTION {schema}.lose_owner_v1(p_stream {schema}.stream, p_ttl bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    top record;
BEGIN
    SELECT * INTO top FROM top_v1(p_stream.id, p_stream.epoch, p_stream.seq);
    UPDATE stream SET ended = 2, epoch = greatest(top.epoch, 1) + 1, seq = 0, fresh = 0,
        expires = clock_timestamp() + p_ttl * interval '1 microsecond'
    WHERE id = p_stream.id;
END $$;
