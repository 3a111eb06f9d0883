-- Appends: a batch is one statement.

-- The top of a stream: its floor or its last event, whichever is higher.
CREATE FUNCTION {schema}.top_v1(p_stream bigint, p_epoch bigint, p_seq bigint,
    OUT epoch bigint, OUT seq bigint)
LANGUAGE plpgsql AS $$
BEGIN
    SELECT e.epoch, e.seq INTO epoch, seq FROM event e
    WHERE e.stream = p_stream AND (e.epoch, e.seq) > (p_epoch, p_seq)
    ORDER BY e.epoch DESC, e.seq DESC LIMIT 1;
    IF NOT FOUND THEN
        epoch := p_epoch;
        seq := p_seq;
    END IF;
END $$;

-- The standalone stream, locked; made where there is none or its time is over. What is
-- `gone` with the former one is still to be taken off the counts.
--
-- One that is made again begins in an epoch above those of the former ones: its first
-- place follows the top, which is there.
CREATE FUNCTION {schema}.standalone_v1(p_sid bigint, p_name text, p_now timestamptz,
    OUT its_row {schema}.stream, OUT gone bigint, OUT gone_bytes bigint)
LANGUAGE plpgsql AS $$
DECLARE
    st stream;
BEGIN
    gone := 0;
    gone_bytes := 0;
    LOOP
        SELECT * INTO st FROM stream x WHERE x.sid = p_sid AND x.name = p_name FOR NO KEY UPDATE;
        IF FOUND THEN
            its_row := st;
            EXIT WHEN st.expires IS NULL OR st.expires > p_now;
            SELECT * INTO gone, gone_bytes FROM remove_stream_v1(st.id);
        END IF;
        INSERT INTO stream (sid, name, epoch)
        SELECT p_sid, p_name, CASE WHEN s.gone_epoch > 0 THEN s.gone_epoch + 1 ELSE 0 END
        FROM session s WHERE s.sid = p_sid
        ON CONFLICT (sid, name) DO NOTHING;
    END LOOP;
END $$;

-- One append, with all checks. Codes: 0 stored, 1 fenced, 2 finished, 3 no stream,
-- 4 no session, 5 a repeat. `gone` and `gone_bytes`: what was removed for it.
CREATE FUNCTION {schema}.append_one_v1(p_key bytea, p_name text, p_shared boolean, p_writer bytea,
    p_epoch bigint, p_seq bigint, p_event boolean, p_data bytea,
    p_prev_epoch bigint, p_prev_seq bigint, p_finish bigint, p_end smallint,
    p_keep_events bigint, p_keep_bytes bigint, p_trim_epoch bigint, p_trim_seq bigint,
    OUT code smallint, OUT epoch bigint, OUT seq bigint, OUT holder bytea,
    OUT id bigint, OUT lasts bigint, OUT session_bytes bigint,
    OUT gone bigint, OUT gone_bytes bigint, OUT fresh bigint)
LANGUAGE plpgsql AS $$
DECLARE
    t timestamptz;
    s session;
    st stream;
    w shared_writer;
    e event;
    top record;
    made record;
    until timestamptz;
BEGIN
    gone := 0;
    gone_bytes := 0;
    -- It cannot be deleted from here on.
    SELECT * INTO s FROM session WHERE key = p_key FOR KEY SHARE;
    t := clock_timestamp();
    IF NOT FOUND OR s.expires <= t THEN
        code := 4;
        RETURN;
    END IF;
    session_bytes := s.bytes;
    IF p_shared THEN
        SELECT * INTO made FROM standalone_v1(s.sid, p_name, t);
        st := made.its_row;
        gone := made.gone;
        gone_bytes := made.gone_bytes;
    ELSE
        SELECT * INTO st FROM stream x WHERE x.sid = s.sid AND x.name = p_name FOR NO KEY UPDATE;
    END IF;
    IF st.id IS NULL OR st.expires <= t THEN
        code := 3;
        RETURN;
    END IF;
    id := st.id;
    holder := st.holder;
    SELECT * INTO top FROM top_v1(st.id, st.epoch, st.seq);
    -- Repeats first.
    IF NOT p_shared THEN
        IF st.owner IS DISTINCT FROM p_writer THEN
            code := 1;
            RETURN;
        END IF;
        IF NOT p_event AND st.ended IS NOT NULL AND p_epoch >= top.epoch THEN
            code := 5;
            epoch := top.epoch;
            seq := top.seq;
        ELSIF p_event AND p_epoch = top.epoch AND p_seq <= top.seq
            OR p_event AND p_epoch < top.epoch AND EXISTS (SELECT FROM event x
                WHERE x.stream = st.id AND x.epoch = p_epoch AND x.seq = p_seq) THEN
            code := 5;
            epoch := p_epoch;
            seq := p_seq;
        ELSIF p_epoch < top.epoch OR st.ended = 2 THEN
            code := 1;
            RETURN;
        ELSIF st.ended IS NOT NULL THEN
            code := 2;
            RETURN;
        ELSE
            code := 0;
            epoch := p_epoch;
            seq := p_seq;
        END IF;
    ELSE
        IF st.owner IS NOT NULL THEN
            code := 1;
            RETURN;
        END IF;
        IF p_event THEN
            SELECT * INTO w FROM shared_writer x WHERE x.stream = st.id AND x.writer = p_writer;
        END IF;
        IF w.tag >= p_seq THEN
            code := 5;
            SELECT * INTO e FROM event x
            WHERE x.stream = st.id AND x.writer = p_writer AND x.tag = p_seq;
            IF NOT FOUND THEN
                -- It is no longer kept, and neither is what is before the oldest.
                SELECT * INTO e FROM event x WHERE x.stream = st.id
                ORDER BY x.epoch, x.seq LIMIT 1;
                e.seq := e.seq - 1;
            END IF;
            epoch := coalesce(e.epoch, top.epoch);
            seq := coalesce(e.seq, top.seq);
        ELSIF st.ended IS NOT NULL THEN
            IF p_event THEN
                code := 2;
                RETURN;
            END IF;
            code := 5;
            epoch := top.epoch;
            seq := top.seq;
        ELSIF NOT p_event THEN
            code := 0;
            epoch := top.epoch;
            seq := top.seq;
        ELSE
            code := 0;
            SELECT m.epoch INTO epoch FROM meta m;
            IF top.epoch >= epoch THEN
                epoch := top.epoch;
                seq := top.seq + 1;
            ELSE
                seq := 1;
            END IF;
            -- What former histories, and streams that are gone, gave out last nobody
            -- knows.
            IF seq = 1 AND s.epoch < epoch THEN
                p_prev_epoch := epoch - 1;
                p_prev_seq := -1;
            END IF;
        END IF;
    END IF;
    IF code = 0 THEN
        IF p_event THEN
            INSERT INTO event (stream, epoch, seq, data, prev_epoch, prev_seq, writer, tag)
            VALUES (st.id, append_one_v1.epoch, append_one_v1.seq, p_data,
                p_prev_epoch, p_prev_seq,
                CASE WHEN p_shared THEN p_writer END, CASE WHEN p_shared THEN p_seq END)
            ON CONFLICT DO NOTHING;
            IF NOT FOUND THEN
                -- A repeat that was under way at the same time.
                code := 5;
            END IF;
        END IF;
        IF p_shared AND p_event THEN
            INSERT INTO shared_writer AS x
            VALUES (st.id, p_writer, p_seq, append_one_v1.epoch, append_one_v1.seq)
            ON CONFLICT (stream, writer)
                DO UPDATE SET tag = excluded.tag, epoch = excluded.epoch, seq = excluded.seq;
            st.events := st.events + 1;
            st.bytes := st.bytes + length(p_data);
            WHILE st.events > 1 AND (st.events > p_keep_events OR st.bytes > p_keep_bytes) LOOP
                DELETE FROM event x WHERE (x.stream, x.epoch, x.seq) = (
                    SELECT o.stream, o.epoch, o.seq FROM event o WHERE o.stream = st.id
                    ORDER BY o.epoch, o.seq LIMIT 1)
                RETURNING x.* INTO e;
                EXIT WHEN NOT FOUND;
                st.events := st.events - 1;
                st.bytes := st.bytes - coalesce(length(e.data), 0);
                gone := gone + 1;
                gone_bytes := gone_bytes + coalesce(length(e.data), 0);
            END LOOP;
        ELSIF p_trim_epoch IS NOT NULL THEN
            WITH old AS (
                DELETE FROM event x
                WHERE x.stream = st.id AND (x.epoch, x.seq) <= (p_trim_epoch, p_trim_seq)
                RETURNING length(x.data) AS size
            )
            SELECT count(*), coalesce(sum(size), 0) INTO gone, gone_bytes FROM old;
        END IF;
    END IF;
    -- Use: recorded once per slack.
    IF s.expires < least(t + s.idle * interval '1 microsecond', s.hard) THEN
        UPDATE session SET expires =
            least(t + (s.idle + s.slack) * interval '1 microsecond', session.hard)
        WHERE sid = s.sid;
    END IF;
    until := least(t + s.slack * interval '1 microsecond', s.hard);
    IF code = 0 AND p_finish IS NOT NULL THEN
        IF NOT p_shared AND (append_one_v1.epoch, append_one_v1.seq) > (top.epoch, top.seq) THEN
            st.epoch := append_one_v1.epoch;
            st.seq := append_one_v1.seq;
        ELSIF NOT p_event THEN
            st.epoch := top.epoch;
            st.seq := top.seq;
            epoch := top.epoch;
            seq := top.seq;
        END IF;
        UPDATE stream x SET ended = p_end, expires = t + p_finish * interval '1 microsecond',
            epoch = st.epoch, seq = st.seq, events = st.events, bytes = st.bytes, fresh = 0
        WHERE x.id = st.id;
    ELSIF p_shared THEN
        UPDATE stream x SET events = st.events, bytes = st.bytes
        WHERE x.id = st.id AND code = 0;
    ELSIF st.ended IS NULL THEN
        -- A new lease; what still comes with the former one is refused.
        UPDATE stream x SET fresh = greatest(micros_v1(until), x.fresh + 1)
        WHERE x.id = st.id
        RETURNING x.fresh INTO fresh;
        lasts := extract(epoch FROM until - t) * 1000000;
    END IF;
END $$;

-- Events of streams of which the writer has the lease: `l_` are these streams, each
-- once and in their order. They are stored in one go, or the batch fails with MA001,
-- which names those streams whose lease is over. All leases are compared as one: a
-- join looks each event's stream up by itself, at nearly three times the price.
CREATE FUNCTION {schema}.store_v1(l_id bigint[], l_fresh bigint[],
    f_id bigint[], f_epoch bigint[], f_seq bigint[], f_data bytea[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    now_micros bigint := micros_v1(clock_timestamp());
BEGIN
    INSERT INTO event (stream, epoch, seq, data)
    SELECT u.id, u.epoch, u.seq, u.data
    FROM unnest(f_id, f_epoch, f_seq, f_data) u (id, epoch, seq, data)
    WHERE (l_fresh, true) = (
        SELECT array_agg(l.fresh), min(l.fresh) > now_micros
        FROM (SELECT x.fresh FROM stream x WHERE x.id = ANY (l_id) ORDER BY x.id) l);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'a lease is over' USING ERRCODE = 'MA001', DETAIL = (
            SELECT coalesce(string_agg(u.id::text, ' '), '')
            FROM unnest(l_id, l_fresh) u (id, fresh)
            LEFT JOIN stream st ON st.id = u.id AND st.fresh = u.fresh
            WHERE st.id IS NULL OR u.fresh <= now_micros);
    END IF;
END $$;

-- A batch of nothing else, which most are: each argument costs.
CREATE FUNCTION {schema}.append_quick_v1(p_locks bigint[], l_id bigint[], l_fresh bigint[],
    f_id bigint[], f_epoch bigint[], f_seq bigint[], f_data bytea[],
    w_to bytea[], w_payload text[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(l) FROM unnest(p_locks) l;
    PERFORM store_v1(l_id, l_fresh, f_id, f_epoch, f_seq, f_data);
    IF cardinality(w_to) > 0 THEN
        PERFORM send_v1(NULL, w_to, w_payload);
    END IF;
END $$;

-- Any batch. The arrays `l_` and `f_` are appends to streams of which the writer has
-- the lease, each behind the last that it knows of; where a lease is over they come
-- again as `s_`. `e_` ends streams of `f_`, `t_` trims them. The writer sorts all by
-- stream, so that batches do not wait for each other in a circle.
--
-- Rows of kind 0 answer `s_`; those of kind 2 count what was trimmed.
--
-- `p_alone`: of a stream in `s_` an append with a lease may still be under way. It
-- is over before this begins, or comes after it, when the lease is another one.
CREATE FUNCTION {schema}.append_v1(p_locks bigint[], p_alone boolean,
    p_incarnation text, p_lsn bigint,
    l_id bigint[], l_fresh bigint[],
    f_id bigint[], f_epoch bigint[], f_seq bigint[], f_data bytea[],
    e_id bigint[], e_epoch bigint[], e_seq bigint[], e_end smallint[], e_ttl bigint[],
    t_id bigint[], t_epoch bigint[], t_seq bigint[],
    s_key bytea[], s_name text[], s_shared boolean[], s_writer bytea[],
    s_epoch bigint[], s_seq bigint[], s_event boolean[], s_data bytea[],
    s_prev_epoch bigint[], s_prev_seq bigint[], s_finish bigint[], s_end smallint[],
    s_keep_events bigint[], s_keep_bytes bigint[], s_trim_epoch bigint[], s_trim_seq bigint[],
    w_to bytea[], w_payload text[])
RETURNS TABLE (kind smallint, i bigint, code smallint, epoch bigint, seq bigint,
    holder bytea, id bigint, lasts bigint, bytes bigint, fresh bigint)
LANGUAGE plpgsql AS $$
DECLARE
    t timestamptz;
    r record;
    o record;
    ended bigint;
BEGIN
    -- Whoever ends the streams of a dead writer waits until its statements that are
    -- under way are through, and those that come later see the end.
    IF p_alone THEN
        PERFORM pg_advisory_xact_lock(l) FROM unnest(p_locks) l;
    ELSE
        PERFORM pg_advisory_xact_lock_shared(l) FROM unnest(p_locks) l;
    END IF;
    IF cardinality(s_key) > 0 THEN
        IF true = ANY (s_shared) THEN
            PERFORM same_history_v1(p_incarnation, p_lsn);
        END IF;
        FOR r IN
            SELECT * FROM unnest(s_key, s_name, s_shared, s_writer, s_epoch, s_seq, s_event,
                s_data, s_prev_epoch, s_prev_seq, s_finish, s_end, s_keep_events, s_keep_bytes,
                s_trim_epoch, s_trim_seq) WITH ORDINALITY
                u (key, name, shared, writer, epoch, seq, event, data, prev_epoch, prev_seq,
                    finish, end_, keep_events, keep_bytes, trim_epoch, trim_seq, i)
        LOOP
            SELECT * INTO o FROM append_one_v1(r.key, r.name, r.shared, r.writer, r.epoch, r.seq,
                r.event, r.data, r.prev_epoch, r.prev_seq, r.finish, r.end_, r.keep_events,
                r.keep_bytes, r.trim_epoch, r.trim_seq);
            kind := 0;
            i := r.i;
            code := o.code;
            epoch := o.epoch;
            seq := o.seq;
            holder := o.holder;
            id := o.id;
            lasts := o.lasts;
            fresh := o.fresh;
            bytes := o.session_bytes;
            RETURN NEXT;
            IF o.gone > 0 THEN
                kind := 2;
                code := 1;
                seq := o.gone;
                bytes := o.gone_bytes;
                RETURN NEXT;
            END IF;
        END LOOP;
    END IF;
    IF cardinality(f_id) > 0 THEN
        PERFORM store_v1(l_id, l_fresh, f_id, f_epoch, f_seq, f_data);
        t := clock_timestamp();
        IF cardinality(e_id) > 0 THEN
            UPDATE stream st SET ended = u.end_, epoch = u.epoch, seq = u.seq,
                expires = t + u.ttl * interval '1 microsecond', fresh = 0
            FROM unnest(e_id, e_epoch, e_seq, e_end, e_ttl) u (id, epoch, seq, end_, ttl)
            WHERE st.id = u.id AND st.ended IS NULL;
            GET DIAGNOSTICS ended = ROW_COUNT;
            IF ended < cardinality(e_id) THEN
                RAISE EXCEPTION 'a lease is over' USING ERRCODE = 'MA001', DETAIL = '';
            END IF;
        END IF;
        IF cardinality(t_id) > 0 THEN
            kind := 2;
            code := 0;
            FOR id, seq, bytes IN
                WITH old AS (
                    DELETE FROM event x
                    USING unnest(t_id, t_epoch, t_seq) u (id, epoch, seq)
                    WHERE x.stream = u.id AND (x.epoch, x.seq) <= (u.epoch, u.seq)
                    RETURNING x.stream, length(x.data) AS size
                )
                SELECT old.stream, count(*), coalesce(sum(old.size), 0) FROM old GROUP BY 1
            LOOP
                RETURN NEXT;
            END LOOP;
        END IF;
    END IF;
    IF cardinality(w_to) > 0 THEN
        PERFORM send_v1(NULL, w_to, w_payload);
    END IF;
END $$;
