-- Client requests. Outcomes are numbered by the adapter; 3 is timed out, 7 replaced.

-- Codes: 0 done, 1 replaced (with the owner), 2 too many, 3 no session.
CREATE FUNCTION {schema}.put_v1(p_key bytea[], p_id bytea[], p_token bytea[], p_owner bytea[],
    p_timeout bigint[], p_kept bigint[], p_max bigint[])
RETURNS TABLE (i bigint, code smallint, owner bytea)
LANGUAGE plpgsql AS $$
DECLARE
    t timestamptz;
    number bigint;
    until timestamptz;
    ends timestamptz;
    forgotten timestamptz;
    q request;
    pending boolean;
    locked bigint;
BEGIN
    FOR n IN 1..cardinality(p_key) LOOP
        i := n;
        code := 0;
        owner := NULL;
        -- One at a time per session, for they are counted.
        SELECT x.sid, x.expires INTO number, until FROM session x
        WHERE x.key = p_key[n] FOR NO KEY UPDATE;
        t := clock_timestamp();
        IF number IS NULL OR until <= t THEN
            code := 3;
            RETURN NEXT;
            CONTINUE;
        END IF;
        ends := t + p_timeout[n] * interval '1 microsecond';
        forgotten := ends + p_kept[n] * interval '1 microsecond';
        -- Nearly all have an id of their own, and need no second look.
        INSERT INTO request (sid, id, token, owner, due, kept, forget)
        SELECT number, p_id[n], p_token[n], p_owner[n], ends, p_kept[n], forgotten
        WHERE p_max[n] > (SELECT count(*) FROM request x
            WHERE x.sid = number AND x.outcome IS NULL AND x.due > t)
        ON CONFLICT DO NOTHING;
        IF FOUND THEN
            RETURN NEXT;
            CONTINUE;
        END IF;
        -- Answers lock their rows in the order of the ids. So does this, all that the
        -- batch may replace in this session at once, or they would wait for each other.
        IF locked IS DISTINCT FROM number THEN
            PERFORM FROM request x WHERE x.sid = number AND x.id = ANY (p_id)
            ORDER BY x.id FOR UPDATE;
            locked := number;
        END IF;
        SELECT * INTO q FROM request x WHERE x.sid = number AND x.id = p_id[n];
        IF FOUND AND q.forget <= t THEN
            DELETE FROM request x WHERE x.sid = number AND x.id = p_id[n];
            q := NULL;
        END IF;
        IF q.token = p_token[n] OR p_token[n] = ANY (q.former) THEN
            RETURN NEXT;
            CONTINUE;
        END IF;
        pending := q.id IS NOT NULL AND q.outcome IS NULL AND q.due > t;
        IF p_max[n] <= (SELECT count(*) FROM request x
            WHERE x.sid = number AND x.outcome IS NULL AND x.due > t) - pending::integer THEN
            code := 2;
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF pending THEN
            code := 1;
            owner := q.owner;
        END IF;
        INSERT INTO request AS x (sid, id, token, owner, due, kept, forget)
        VALUES (number, p_id[n], p_token[n], p_owner[n], ends, p_kept[n], forgotten)
        ON CONFLICT (sid, id) DO UPDATE SET token = excluded.token, owner = excluded.owner,
            due = excluded.due, kept = excluded.kept, forget = excluded.forget,
            former = (array_prepend(x.token, x.former))[1:{remembered}],
            won = CASE WHEN x.attempt IS NULL THEN x.won
                ELSE (array_prepend(x.attempt, x.won))[1:{remembered}] END,
            outcome = NULL, payload = NULL, attempt = NULL;
        RETURN NEXT;
    END LOOP;
END $$;

-- A line that brings an outcome says whose it is: the id may be used again.
CREATE FUNCTION {schema}.ended_v1(p_text text, p_token bytea) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN p_text LIKE 'o%' THEN p_text || encode(p_token, 'hex') ELSE p_text END
$$;

-- Codes: 0 won, 1 already (with the outcome), 2 alive, 3 unknown.
CREATE FUNCTION {schema}.settle_v1(p_key bytea[], p_id bytea[], p_token bytea[],
    p_outcome smallint[], p_payload bytea[], p_dead bytea[], p_beat bigint[],
    p_attempt bytea[], p_text text[], p_ring boolean)
RETURNS TABLE (i bigint, code smallint, outcome smallint)
LANGUAGE plpgsql AS $$
DECLARE
    t timestamptz;
    q request;
    door bytea;
    token bytea;
    doors bytea[] := '{}';
    texts text[] := '{}';
BEGIN
    FOR n IN 1..cardinality(p_key) LOOP
        i := n;
        code := 0;
        outcome := NULL;
        -- Nearly all wait and win, and need no second look. The session is looked up
        -- apart, and `outcome` is not compared as the partial indexes have it: while
        -- the tables are small the planner would read a whole index for one row.
        IF p_dead[n] IS NULL THEN
            UPDATE request x SET outcome = p_outcome[n], payload = p_payload[n],
                attempt = p_attempt[n],
                forget = clock_timestamp() + x.kept * interval '1 microsecond'
            WHERE x.sid = (SELECT s.sid FROM session s
                    WHERE s.key = p_key[n] AND s.expires > clock_timestamp())
                AND x.id = p_id[n] AND coalesce(x.outcome, 0) = 0 AND x.due > clock_timestamp()
                AND (p_token[n] IS NULL OR p_token[n] = x.token)
                AND p_attempt[n] <> ALL (x.won)
            RETURNING x.owner, x.token INTO door, token;
            IF FOUND THEN
                doors := doors || door;
                texts := texts || ended_v1(p_text[n], token);
                RETURN NEXT;
                CONTINUE;
            END IF;
        END IF;
        SELECT * INTO q FROM request x
        WHERE x.sid = (SELECT s.sid FROM session s
                WHERE s.key = p_key[n] AND s.expires > clock_timestamp())
            AND x.id = p_id[n] FOR UPDATE;
        t := clock_timestamp();
        IF NOT FOUND OR q.forget <= t THEN
            code := 3;
        ELSIF p_attempt[n] = ANY (q.won) OR q.attempt = p_attempt[n]
            AND (p_token[n] IS NULL OR p_token[n] = q.token) THEN
            code := 0;
        ELSIF p_token[n] <> q.token THEN
            code := 1;
            outcome := 7;
        ELSIF q.outcome IS NOT NULL THEN
            code := 1;
            outcome := q.outcome;
        ELSIF q.due <= t THEN
            code := 1;
            outcome := 3;
        ELSIF p_dead[n] IS NOT NULL
            AND (p_dead[n] <> q.owner OR NOT dead_v1(p_dead[n], p_beat[n])) THEN
            code := 2;
        ELSE
            code := 0;
            UPDATE request x SET outcome = p_outcome[n], payload = p_payload[n],
                attempt = p_attempt[n], forget = t + q.kept * interval '1 microsecond'
            WHERE x.sid = q.sid AND x.id = q.id;
        END IF;
        -- Who waits now is not the one that a try from before a replacement has ended.
        IF code = 0 AND p_attempt[n] <> ALL (q.won) THEN
            doors := doors || q.owner;
            texts := texts || ended_v1(p_text[n], q.token);
        END IF;
        RETURN NEXT;
    END LOOP;
    IF p_ring AND cardinality(doors) > 0 THEN
        PERFORM ring_v1(doors, texts);
    END IF;
END $$;

-- No row of `q` where it is not stored; `outcome` is NULL while it waits. The limits
-- make each row one look into an index, whatever the planner believes of the tables.
-- Its text becomes part of the call, which is planned once.
CREATE FUNCTION {schema}.requests_v1(p_key bytea[], p_id bytea[], p_token bytea[])
RETURNS TABLE (i bigint, alive boolean, owner bytea, outcome smallint, payload bytea)
LANGUAGE sql STABLE AS $$
    SELECT c.i, s.sid IS NOT NULL, q.owner,
        CASE WHEN c.token <> q.token THEN 7::smallint
            WHEN q.outcome IS NULL AND q.due <= statement_timestamp() THEN 3::smallint
            ELSE q.outcome END,
        CASE WHEN c.token <> q.token THEN NULL ELSE q.payload END
    FROM unnest(p_key, p_id, p_token) WITH ORDINALITY c (key, id, token, i)
    LEFT JOIN LATERAL (
        SELECT x.sid FROM session x
        WHERE x.key = c.key AND x.expires > statement_timestamp() LIMIT 1
    ) s ON true
    LEFT JOIN LATERAL (
        SELECT x.* FROM request x
        WHERE x.sid = s.sid AND x.id = c.id AND x.forget > statement_timestamp() LIMIT 1
    ) q ON true
$$;
