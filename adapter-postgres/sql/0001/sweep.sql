-- Counting, trimming and removing. Sweeping waits for nobody: a row that somebody
-- else has is left to the next round.

-- Tells what was in it; the counts of its session are the caller's to change.
CREATE FUNCTION {schema}.remove_stream_v1(p_stream bigint, OUT events bigint, OUT bytes bigint)
LANGUAGE plpgsql AS $$
DECLARE
    st stream;
    last bigint;
BEGIN
    DELETE FROM stream x WHERE x.id = p_stream RETURNING x.* INTO st;
    WITH old AS (
        DELETE FROM event e WHERE e.stream = p_stream RETURNING length(e.data) AS size, e.epoch
    )
    SELECT count(*), coalesce(sum(old.size), 0), max(old.epoch) INTO events, bytes, last FROM old;
    IF st.owner IS NULL THEN
        DELETE FROM shared_writer w WHERE w.stream = p_stream;
        -- Its ids are not given out again.
        UPDATE session s SET gone_epoch = greatest(s.gone_epoch, st.epoch, last)
        WHERE s.sid = st.sid;
    END IF;
END $$;

-- Takes what was removed off the counts of a session and of its principal.
CREATE FUNCTION {schema}.uncount_v1(p_sid bigint, p_principal bytea, p_events bigint,
    p_bytes bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF p_events > 0 THEN
        UPDATE session s SET events = s.events - p_events, bytes = s.bytes - p_bytes
        WHERE s.sid = p_sid;
        PERFORM count_principal_v1(p_principal, -p_bytes);
    END IF;
END $$;

-- Several, each once: those that count many at once all do so at their end and in this
-- order, and wait for none of each other in a circle.
CREATE FUNCTION {schema}.count_principals_v1(p_principal bytea[], p_bytes bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    r record;
BEGIN
    FOR r IN
        SELECT u.principal, sum(u.bytes)::bigint AS bytes
        FROM unnest(p_principal, p_bytes) u (principal, bytes)
        GROUP BY 1 HAVING sum(u.bytes) <> 0 ORDER BY 1
    LOOP
        PERFORM count_principal_v1(r.principal, r.bytes);
    END LOOP;
END $$;

-- Adds to the counts of sessions and their principals; tells the bytes after it.
CREATE FUNCTION {schema}.account_v1(p_key bytea[], p_events bigint[], p_bytes bigint[])
RETURNS TABLE (key bytea, total bigint)
LANGUAGE plpgsql AS $$
DECLARE
    r record;
    owner bytea;
    owners bytea[] := '{}';
    sums bigint[] := '{}';
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    FOR r IN
        SELECT * FROM unnest(p_key, p_events, p_bytes) u (key, events, bytes) ORDER BY u.key
    LOOP
        UPDATE session s SET events = s.events + r.events, bytes = s.bytes + r.bytes
        WHERE s.key = r.key
        RETURNING s.principal, s.bytes INTO owner, total;
        CONTINUE WHEN NOT FOUND;
        key := r.key;
        owners := owners || owner;
        sums := sums || r.bytes;
        RETURN NEXT;
    END LOOP;
    PERFORM count_principals_v1(owners, sums);
END $$;

-- What is stored for a session now.
CREATE FUNCTION {schema}.size_v1(p_sid bigint, OUT events bigint, OUT bytes bigint)
LANGUAGE plpgsql AS $$
BEGIN
    SELECT count(*), coalesce(sum(length(e.data)), 0) INTO events, bytes
    FROM stream st JOIN event e ON e.stream = st.id WHERE st.sid = p_sid;
END $$;

-- Brings a session under its bytes: the streams that ended first go first, then the
-- oldest events. Counts it anew, and returns what is left; NULL: no session.
CREATE FUNCTION {schema}.shrink_v1(p_key bytea, p_max bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    s session;
    r record;
    left_events bigint;
    left_bytes bigint;
    gone record;
    fewer boolean := false;
BEGIN
    SELECT * INTO s FROM session x WHERE x.key = p_key FOR NO KEY UPDATE;
    IF NOT FOUND OR s.expires <= clock_timestamp() THEN
        RETURN NULL;
    END IF;
    SELECT * INTO left_events, left_bytes FROM size_v1(s.sid);
    FOR r IN
        SELECT st.id FROM stream st WHERE st.sid = s.sid AND st.ended IS NOT NULL
        ORDER BY st.expires, st.id
    LOOP
        EXIT WHEN left_bytes <= p_max;
        SELECT * INTO gone FROM remove_stream_v1(r.id);
        left_bytes := left_bytes - gone.bytes;
        fewer := true;
    END LOOP;
    IF fewer THEN
        -- Writers have gone on meanwhile: what is left is counted again.
        SELECT * INTO left_events, left_bytes FROM size_v1(s.sid);
    END IF;
    IF left_bytes > p_max THEN
        WITH every AS MATERIALIZED (
            SELECT e.stream, e.epoch, e.seq, coalesce(length(e.data), 0) AS size,
                sum(coalesce(length(e.data), 0)) OVER (
                    ORDER BY e.stored DESC, e.stream DESC, e.epoch DESC, e.seq DESC
                    ROWS UNBOUNDED PRECEDING) > p_max AS old
            FROM stream st JOIN event e ON e.stream = st.id WHERE st.sid = s.sid
        ), removed AS (
            DELETE FROM event e USING every o
            WHERE o.old AND e.stream = o.stream AND e.epoch = o.epoch AND e.seq = o.seq
        ), floors AS (
            -- Where the tops were stays known.
            UPDATE stream st SET
                epoch = CASE WHEN (st.epoch, st.seq) >= (f.epoch, f.seq)
                    THEN st.epoch ELSE f.epoch END,
                seq = CASE WHEN (st.epoch, st.seq) >= (f.epoch, f.seq)
                    THEN st.seq ELSE f.seq END,
                events = st.events - f.events,
                bytes = st.bytes - f.bytes
            FROM (
                SELECT DISTINCT ON (o.stream) o.stream, o.epoch, o.seq,
                    count(*) OVER w AS events, (sum(o.size) OVER w)::bigint AS bytes
                FROM every o WHERE o.old WINDOW w AS (PARTITION BY o.stream)
                ORDER BY o.stream, o.epoch DESC, o.seq DESC
            ) f
            WHERE st.id = f.stream
        )
        SELECT count(*), coalesce(sum(o.size), 0) INTO left_events, left_bytes
        FROM every o WHERE NOT o.old;
    END IF;
    IF s.bytes <> left_bytes OR s.events <> left_events THEN
        UPDATE session x SET events = left_events, bytes = left_bytes WHERE x.sid = s.sid;
    END IF;
    IF s.bytes <> left_bytes THEN
        PERFORM count_principal_v1(s.principal, left_bytes - s.bytes);
    END IF;
    RETURN left_bytes;
END $$;

-- One step of sweeping: at most `p_budget` things are looked at. `removed` counts those
-- that had expired and those that belonged to the dead: a session with all that was in
-- it is one of them, and what it leaves behind is none.
CREATE FUNCTION {schema}.sweep_v1(p_budget bigint, p_dead bytea[], p_beat bigint[],
    p_lock bigint[], p_ttl bigint, p_ring boolean, OUT removed bigint, OUT more boolean)
LANGUAGE plpgsql AS $$
DECLARE
    t timestamptz := clock_timestamp();
    r record;
    st stream;
    gone record;
    n bigint;
    -- What is left of the budget.
    room bigint := p_budget;
    events bigint := 0;
    principals bytea[] := '{}';
    sums bigint[] := '{}';
    doors bytea[] := '{}';
    texts text[] := '{}';
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    removed := 0;
    more := false;
    -- What belongs to the dead. Their locks come first, as in every step.
    FOR r IN SELECT * FROM unnest(p_dead, p_beat, p_lock) u (instance, beat, lock) LOOP
        IF NOT pg_try_advisory_xact_lock(r.lock) THEN
            -- It has something under way, and is dead all the same until it beats.
            more := more OR r.beat IS NOT DISTINCT FROM (SELECT b.beat FROM beat b
                WHERE b.instance = r.instance AND b.expires > t);
            CONTINUE;
        END IF;
        CONTINUE WHEN NOT dead_v1(r.instance, r.beat);
        FOR st IN
            SELECT x.* FROM stream x JOIN session s ON s.sid = x.sid AND s.expires > t
            WHERE x.owner = r.instance AND x.ended IS NULL
            LIMIT room FOR NO KEY UPDATE OF x SKIP LOCKED
        LOOP
            PERFORM lose_owner_v1(st, p_ttl);
            removed := removed + 1;
            room := room - 1;
            IF st.holder IS NOT NULL THEN
                doors := doors || st.holder;
                texts := texts || (SELECT wake_v1(s.key, st.name) FROM session s
                    WHERE s.sid = st.sid);
            END IF;
        END LOOP;
        UPDATE request q SET outcome = 5, forget = t + q.kept * interval '1 microsecond'
        FROM (
            SELECT x.sid, x.id FROM request x JOIN session s ON s.sid = x.sid AND s.expires > t
            WHERE x.owner = r.instance AND x.outcome IS NULL AND x.due > t
            LIMIT room FOR UPDATE OF x SKIP LOCKED
        ) l
        WHERE q.sid = l.sid AND q.id = l.id;
        GET DIAGNOSTICS n = ROW_COUNT;
        removed := removed + n;
        room := room - n;
    END LOOP;
    -- Expired sessions; one that was used since is looked at when it is due again.
    FOR r IN
        SELECT s.sid, s.principal, s.bytes, s.expires FROM session s WHERE s.sweep_at <= t
        ORDER BY s.sweep_at LIMIT room FOR UPDATE SKIP LOCKED
    LOOP
        room := room - 1;
        IF r.expires > t THEN
            UPDATE session s SET sweep_at = s.expires WHERE s.sid = r.sid;
        ELSE
            PERFORM bury_v1(r.sid);
            principals := principals || r.principal;
            sums := sums || -r.bytes;
            removed := removed + 1;
        END IF;
    END LOOP;
    -- Streams that ended long enough ago, together with their session, for its counts.
    FOR r IN
        SELECT x.id, s.sid, s.principal FROM stream x JOIN session s ON s.sid = x.sid
        WHERE x.expires <= t
        ORDER BY x.expires LIMIT room
        FOR UPDATE OF x SKIP LOCKED FOR NO KEY UPDATE OF s SKIP LOCKED
    LOOP
        SELECT * INTO gone FROM remove_stream_v1(r.id);
        UPDATE session s SET events = s.events - gone.events, bytes = s.bytes - gone.bytes
        WHERE s.sid = r.sid AND gone.events > 0;
        principals := principals || r.principal;
        sums := sums || -gone.bytes;
        removed := removed + 1;
        room := room - 1;
        events := events + gone.events;
        EXIT WHEN events > 20000;
    END LOOP;
    -- Requests of which nobody asks any more.
    DELETE FROM request q USING (
        SELECT x.sid, x.id FROM request x JOIN session s ON s.sid = x.sid WHERE x.forget <= t
        ORDER BY x.forget LIMIT room FOR UPDATE OF x SKIP LOCKED
    ) l WHERE q.sid = l.sid AND q.id = l.id;
    GET DIAGNOSTICS n = ROW_COUNT;
    removed := removed + n;
    room := room - n;
    -- What sessions that are gone have left behind.
    FOR r IN
        SELECT g.sid FROM grave g ORDER BY g.sid LIMIT room FOR UPDATE SKIP LOCKED
    LOOP
        FOR st IN SELECT x.* FROM stream x WHERE x.sid = r.sid LIMIT room LOOP
            SELECT * INTO gone FROM remove_stream_v1(st.id);
            room := room - 1;
            events := events + gone.events;
            EXIT WHEN events > 20000;
        END LOOP;
        EXIT WHEN events > 20000 OR room <= 0;
        DELETE FROM request q USING (
            SELECT x.sid, x.id FROM request x WHERE x.sid = r.sid LIMIT room
        ) l WHERE q.sid = l.sid AND q.id = l.id;
        GET DIAGNOSTICS n = ROW_COUNT;
        room := room - n;
        EXIT WHEN room <= 0;
        DELETE FROM grave g WHERE g.sid = r.sid;
        room := room - 1;
        EXIT WHEN room <= 0;
    END LOOP;
    -- Small things, which are not counted.
    DELETE FROM tombstone d USING (
        SELECT x.key, x.creator FROM tombstone x WHERE x.expires <= t
        ORDER BY x.expires LIMIT p_budget FOR UPDATE SKIP LOCKED
    ) l WHERE d.key = l.key AND d.creator = l.creator;
    DELETE FROM knock k USING (
        SELECT x.id FROM knock x ORDER BY x.id LIMIT p_budget FOR UPDATE SKIP LOCKED
    ) l WHERE k.id = l.id AND k.expires <= t;
    DELETE FROM beat b USING (
        SELECT x.instance FROM beat x WHERE x.expires <= t FOR UPDATE SKIP LOCKED
    ) l WHERE b.instance = l.instance;
    DELETE FROM door d USING (
        SELECT x.instance FROM door x WHERE x.expires <= t FOR UPDATE SKIP LOCKED
    ) l WHERE d.instance = l.instance;
    PERFORM count_principals_v1(principals, sums);
    IF p_ring AND cardinality(doors) > 0 THEN
        PERFORM ring_v1(doors, texts);
    END IF;
    -- What somebody else has is still to be done. A session that is used does not count:
    -- its row is never free, perhaps.
    more := more OR room <= 0 OR events > 20000 OR EXISTS (SELECT FROM grave)
        OR EXISTS (SELECT FROM session s WHERE s.sweep_at <= t AND s.expires <= t)
        OR EXISTS (SELECT FROM stream x JOIN session s ON s.sid = x.sid WHERE x.expires <= t)
        OR EXISTS (SELECT FROM request q JOIN session s ON s.sid = q.sid WHERE q.forget <= t);
END $$;

-- Looks for events without a stream, from `p_from` on, and for principals without
-- a balance; an append that was under way when its session was deleted leaves such.
-- Returns where to go on; 0 at the end.
CREATE FUNCTION {schema}.tidy_v1(p_from bigint, p_steps bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    at bigint := p_from;
    r record;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    FOR step IN 1..p_steps LOOP
        SELECT e.stream INTO at FROM event e WHERE e.stream > at ORDER BY e.stream LIMIT 1;
        IF at IS NULL THEN
            FOR r IN
                SELECT p.principal FROM principal_bytes p
                GROUP BY p.principal HAVING sum(p.bytes) = 0 ORDER BY p.principal LIMIT 100
            LOOP
                PERFORM FROM principal_bytes p WHERE p.principal = r.principal
                ORDER BY p.shard FOR UPDATE;
                DELETE FROM principal_bytes p WHERE p.principal = r.principal AND 0 = (
                    SELECT sum(x.bytes) FROM principal_bytes x WHERE x.principal = r.principal);
            END LOOP;
            RETURN 0;
        END IF;
        -- One snapshot: an event is never seen before its stream.
        DELETE FROM event e
        WHERE e.stream = at AND NOT EXISTS (SELECT FROM stream s WHERE s.id = at);
    END LOOP;
    RETURN at;
END $$;

-- Sessions, streams, events, bytes, pending requests. Where there are many events
-- the counts of the sessions have to do, which writers bring up to date with their
-- sweeps; then it is not `exact`. `took`: microseconds.
CREATE FUNCTION {schema}.stats_v1(OUT sessions bigint, OUT streams bigint, OUT events bigint,
    OUT bytes bigint, OUT pending bigint, OUT exact boolean, OUT took bigint)
LANGUAGE plpgsql SET enable_seqscan = on SET enable_hashjoin = on SET enable_mergejoin = on AS $$
DECLARE
    t timestamptz := clock_timestamp();
BEGIN
    exact := pg_relation_size('event') < 32 * 1024 * 1024;
    SELECT count(*), coalesce(sum(greatest(s.events, 0)), 0), coalesce(sum(greatest(s.bytes, 0)), 0)
    INTO sessions, events, bytes
    FROM session s WHERE s.expires > t;
    IF exact THEN
        SELECT count(*), coalesce(sum(length(e.data)), 0) INTO events, bytes
        FROM event e JOIN stream x ON x.id = e.stream JOIN session s ON s.sid = x.sid
        WHERE s.expires > t AND (x.expires IS NULL OR x.expires > t);
    END IF;
    SELECT count(*) INTO streams FROM stream x JOIN session s ON s.sid = x.sid
    WHERE s.expires > t AND (x.expires IS NULL OR x.expires > t);
    SELECT count(*) INTO pending FROM request q JOIN session s ON s.sid = q.sid
    WHERE s.expires > t AND q.outcome IS NULL AND q.due > t;
    took := extract(epoch FROM clock_timestamp() - t) * 1000000;
END $$;
