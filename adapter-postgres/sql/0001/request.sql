-- Client requests. Outcomes are numbered by the adapter; 3 is timed out, 7 replaced.

-- Codes: 0 done, 1 replaced (with the owner), 2 too many, 3 no session.
CREATE FUNCTION {schema}.put_v1(p_key bytea[], p_id bytea[], p_token bytea[], p_owner bytea[],
    p_timeout bigint[], p_kept bigint[], p_max bigint[])
RETURNS TABLE (i bigint, code smallint, owner bytea)
LANGUAGE plpgsql {plan} AS $$
DECLARE
    t timestamptz;
    r record;
    s session;
    q request;
    pending boolean;
BEGIN
    FOR r IN
        SELECT * FROM unnest(p_key, p_id, p_token, p_owner, p_timeout, p_kept, p_max)
            WITH ORDINALITY u (key, id, token, owner, timeout, kept, max, i)
    LOOP
        i := r.i;
        code := 0;
        owner := NULL;
        -- One at a time per session, for they are counted.
        SELECT * INTO s FROM session x WHERE x.key = r.key FOR NO KEY UPDATE;
        t := clock_timestamp();
        IF NOT FOUND OR s.expires <= t THEN
            code := 3;
            RETURN NEXT;
            CONTINUE;
        END IF;
        SELECT * INTO q FROM request x WHERE x.sid = s.sid AND x.id = r.id FOR UPDATE;
        IF FOUND AND q.forget <= t THEN
            DELETE FROM request x WHERE x.sid = s.sid AND x.id = r.id;
            q := NULL;
        END IF;
        IF q.token = r.token OR r.token = ANY (q.former) THEN
            RETURN NEXT;
            CONTINUE;
        END IF;
        pending := q.id IS NOT NULL AND q.outcome IS NULL AND q.due > t;
        IF r.max <= (SELECT count(*) FROM request x
            WHERE x.sid = s.sid AND x.outcome IS NULL AND x.due > t) - pending::integer THEN
            code := 2;
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF pending THEN
            code := 1;
            owner := q.owner;
        END IF;
        INSERT INTO request AS x (sid, id, token, owner, due, kept, forget)
        VALUES (s.sid, r.id, r.token, r.owner, t + r.timeout * interval '1 microsecond', r.kept,
            t + (r.timeout + r.kept) * interval '1 microsecond')
        ON CONFLICT (sid, id) DO UPDATE SET token = excluded.token, owner = excluded.owner,
            due = excluded.due, kept = excluded.kept, forget = excluded.forget,
            former = (array_prepend(x.token, x.former))[1:8],
            won = CASE WHEN x.attempt IS NULL THEN x.won
                ELSE (array_prepend(x.attempt, x.won))[1:8] END,
            outcome = NULL, payload = NULL, attempt = NULL;
        RETURN NEXT;
    END LOOP;
END $$;

-- Codes: 0 won, 1 already (with the outcome), 2 alive, 3 unknown.
CREATE FUNCTION {schema}.settle_v1(p_key bytea[], p_id bytea[], p_token bytea[],
    p_outcome smallint[], p_payload bytea[], p_dead bytea[], p_beat bigint[],
    p_attempt bytea[], p_text text[], p_ring boolean)
RETURNS TABLE (i bigint, code smallint, outcome smallint)
LANGUAGE plpgsql {plan} AS $$
DECLARE
    t timestamptz;
    r record;
    q request;
    number bigint;
    doors bytea[] := '{}';
    texts text[] := '{}';
BEGIN
    FOR r IN
        SELECT * FROM unnest(p_key, p_id, p_token, p_outcome, p_payload, p_dead, p_beat,
                p_attempt, p_text)
            WITH ORDINALITY u (key, id, token, outcome, payload, dead, beat, attempt, text, i)
    LOOP
        i := r.i;
        outcome := NULL;
        SELECT s.sid INTO number FROM session s
        WHERE s.key = r.key AND s.expires > clock_timestamp();
        SELECT * INTO q FROM request x WHERE x.sid = number AND x.id = r.id FOR UPDATE;
        t := clock_timestamp();
        IF NOT FOUND OR q.forget <= t THEN
            code := 3;
        ELSIF r.attempt = ANY (q.won) OR q.attempt = r.attempt
            AND (r.token IS NULL OR r.token = q.token) THEN
            code := 0;
        ELSIF r.token <> q.token THEN
            code := 1;
            outcome := 7;
        ELSIF q.outcome IS NOT NULL THEN
            code := 1;
            outcome := q.outcome;
        ELSIF q.due <= t THEN
            code := 1;
            outcome := 3;
        ELSIF r.dead IS NOT NULL AND (r.dead <> q.owner OR NOT dead_v1(r.dead, r.beat)) THEN
            code := 2;
        ELSE
            code := 0;
            UPDATE request x SET outcome = r.outcome, payload = r.payload, attempt = r.attempt,
                forget = t + q.kept * interval '1 microsecond'
            WHERE x.sid = q.sid AND x.id = q.id;
        END IF;
        IF code = 0 THEN
            doors := doors || q.owner;
            texts := texts || r.text;
        END IF;
        RETURN NEXT;
    END LOOP;
    IF p_ring AND cardinality(doors) > 0 THEN
        PERFORM ring_v1(doors, texts);
    END IF;
END $$;

-- No row of `q` where it is not stored; `outcome` is NULL while it waits. The limits
-- make each row one look into an index, whatever the planner believes of the tables.
CREATE FUNCTION {schema}.requests_v1(p_key bytea[], p_id bytea[], p_token bytea[])
RETURNS TABLE (i bigint, alive boolean, owner bytea, outcome smallint, payload bytea)
LANGUAGE plpgsql {plan} AS $$
DECLARE
    t timestamptz := clock_timestamp();
BEGIN
    RETURN QUERY
    SELECT c.i, s.sid IS NOT NULL, q.owner,
        CASE WHEN c.token <> q.token THEN 7::smallint
            WHEN q.outcome IS NULL AND q.due <= t THEN 3::smallint
            ELSE q.outcome END,
        CASE WHEN c.token <> q.token THEN NULL ELSE q.payload END
    FROM unnest(p_key, p_id, p_token) WITH ORDINALITY c (key, id, token, i)
    LEFT JOIN LATERAL (
        SELECT x.sid FROM session x WHERE x.key = c.key AND x.expires > t LIMIT 1
    ) s ON true
    LEFT JOIN LATERAL (
        SELECT x.* FROM request x
        WHERE x.sid = s.sid AND x.id = c.id AND x.forget > t LIMIT 1
    ) q ON true;
END $$;
