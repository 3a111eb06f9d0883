//! Client requests.

use bytes::Bytes;
use mcp_adapter_core::{
    InstanceId, OutcomeKind, RpcId, WaiterToken,
    storage::{Names, Put, PutRequest, RequestKey, RequestState, Settle, Settled, Target},
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::{
    clock::{Time, after, millis},
    error::Done,
    record,
    rows::{self, Session, readable},
    tail::Tail,
    writer::Writer,
};

fn code(kind: OutcomeKind) -> i64 {
    match kind {
        OutcomeKind::Answered => 0,
        OutcomeKind::Rejected => 1,
        OutcomeKind::TimedOut => 2,
        OutcomeKind::Cancelled => 3,
        OutcomeKind::SessionEnded => 4,
        OutcomeKind::OwnerLost => 5,
        OutcomeKind::Replaced => 6,
        OutcomeKind::Lost => 7,
    }
}

fn kind(code: i64) -> Option<OutcomeKind> {
    Some(match code {
        0 => OutcomeKind::Answered,
        1 => OutcomeKind::Rejected,
        2 => OutcomeKind::TimedOut,
        3 => OutcomeKind::Cancelled,
        4 => OutcomeKind::SessionEnded,
        5 => OutcomeKind::OwnerLost,
        6 => OutcomeKind::Replaced,
        7 => OutcomeKind::Lost,
        _ => return None,
    })
}

/// A request as it is now.
struct Request {
    id: i64,
    token: WaiterToken,
    owner: InstanceId,
    end: Option<OutcomeKind>,
    payload: Bytes,
    attempt: Option<WaiterToken>,
    replaced: Names,
    won: Names,
    /// Nobody has written its end yet.
    counted: bool,
}

struct Stored {
    request: Option<Request>,
    due: Time,
    ttl: Time,
}

impl Request {
    fn read(row: &Row<'_>) -> rusqlite::Result<Stored> {
        let outcome: Option<i64> = row.get(5)?;
        let payload = row.get_ref(6)?.as_blob_or_null()?;
        let attempt = row.get_ref(7)?.as_blob_or_null()?;
        let (token, owner) = (
            record::token(row.get_ref(1)?.as_blob()?),
            rows::instance(row, 2)?,
        );
        let end = outcome.map(kind);
        let (replaced, won) = (
            record::names(row.get_ref(8)?.as_blob()?),
            record::names(row.get_ref(9)?.as_blob()?),
        );
        let request = match (token, owner, end, replaced, won) {
            (Some(token), Some(owner), None | Some(Some(_)), Some(replaced), Some(won)) => {
                Some(Self {
                    id: row.get(0)?,
                    token,
                    owner,
                    end: end.flatten(),
                    payload: payload.map_or_else(Bytes::new, Bytes::copy_from_slice),
                    attempt: attempt.and_then(record::token),
                    replaced,
                    won,
                    counted: outcome.is_none(),
                })
            }
            _ => None,
        };
        Ok(Stored {
            request,
            due: row.get(3)?,
            ttl: row.get(4)?,
        })
    }

    fn find(conn: &Connection, session: i64, id: &RpcId, now: Time) -> Done<Option<Self>> {
        let sql = "SELECT id, token, owner, due, ttl, outcome, payload, attempt, replaced, won
            FROM mcp_request WHERE session = ? AND rpc = ?";
        let stored = conn
            .prepare_cached(sql)?
            .query_row(params![session, record::rpc_id(id)], Self::read)
            .optional()?;
        let Some(stored) = stored else {
            return Ok(None);
        };
        let mut request = readable(stored.request)?;
        let mut due = stored.due;
        if request.counted && due <= now {
            // What is remembered counts from the deadline, not from when
            // somebody looked.
            request.end = Some(OutcomeKind::TimedOut);
            due = due.saturating_add(stored.ttl);
        }
        let known = request.end.is_none() || now < due;
        Ok(known.then_some(request))
    }
}

impl Writer {
    pub(crate) fn put(&mut self, put: &PutRequest) -> Done<Put> {
        let conn = self.conn()?;
        let Some(session) = Session::live(&conn, &self.tail, &put.session, self.now)? else {
            return Ok(Put::NoSession);
        };
        let former = Request::find(&conn, session.id, &put.id, self.now)?;
        if let Some(former) = &former
            && (former.token == put.token || former.replaced.contains(put.token))
        {
            return Ok(Put::Done);
        }
        let replaced = former
            .as_ref()
            .filter(|former| former.end.is_none())
            .map(|former| former.owner);
        let sql = "SELECT count(*) FROM mcp_request
            WHERE session = ? AND outcome IS NULL AND due > ?";
        let pending: i64 = conn
            .prepare_cached(sql)?
            .query_row(params![session.id, self.now], |row| row.get(0))?;
        let others = pending - i64::from(replaced.is_some());
        if others.max(0).cast_unsigned() >= put.max_pending as u64 {
            return Ok(Put::TooMany);
        }
        let (mut tokens, mut won) = (Names::default(), Names::default());
        if let Some(former) = former {
            (tokens, won) = (former.replaced, former.won);
            tokens.push(former.token);
            if let Some(attempt) = former.attempt {
                won.push(attempt);
            }
        }
        self.remove_request(session.id, &put.id)?;
        let sql = "INSERT INTO mcp_request(session, rpc, token, owner, due, ttl, replaced, won)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
        conn.prepare_cached(sql)?.execute(params![
            session.id,
            record::rpc_id(&put.id),
            put.token.0.to_be_bytes(),
            put.owner.0.to_be_bytes(),
            after(self.now, put.timeout),
            millis(put.result_ttl),
            tokens.to_bytes(),
            won.to_bytes()
        ])?;
        self.total.pending += 1;
        Ok(replaced.map_or(Put::Done, Put::Replaced))
    }

    /// Removes what may be stored under the id, forgotten or not.
    fn remove_request(&mut self, session: i64, id: &RpcId) -> Done<()> {
        let conn = self.conn()?;
        let sql = "DELETE FROM mcp_request WHERE session = ? AND rpc = ? RETURNING outcome IS NULL";
        let counted = conn
            .prepare_cached(sql)?
            .query_row(params![session, record::rpc_id(id)], |row| {
                row.get::<_, bool>(0)
            })
            .optional()?;
        self.total.pending -= i64::from(counted == Some(true));
        Ok(())
    }

    pub(crate) fn settle(&mut self, settle: &Settle) -> Done<Settled> {
        let conn = self.conn()?;
        let Some(session) = Session::live(&conn, &self.tail, &settle.session, self.now)? else {
            return Ok(Settled::Unknown);
        };
        let found = Request::find(&conn, session.id, &settle.id, self.now)?;
        let Some(request) = found else {
            return Ok(Settled::Unknown);
        };
        let settled = self.outcome(settle, &request)?;
        if settled == Settled::Won {
            let target = Target::Request(settle.id.clone());
            self.wake(request.owner, settle.session, target);
        }
        Ok(settled)
    }

    fn outcome(&mut self, settle: &Settle, request: &Request) -> Done<Settled> {
        if request.won.contains(settle.attempt) {
            return Ok(Settled::Won);
        }
        if settle.token.is_some_and(|token| token != request.token) {
            return Ok(Settled::Already(OutcomeKind::Replaced));
        }
        if let Some(end) = request.end {
            return Ok(if request.attempt == Some(settle.attempt) {
                Settled::Won
            } else {
                Settled::Already(end)
            });
        }
        if let Some(dead) = &settle.dead
            && (dead.instance != request.owner || !self.is_dead(dead)?)
        {
            return Ok(Settled::Alive);
        }
        self.end_request(
            request.id,
            settle.outcome,
            &settle.payload,
            Some(settle.attempt),
        )?;
        Ok(Settled::Won)
    }

    pub(crate) fn end_request(
        &mut self,
        id: i64,
        outcome: OutcomeKind,
        payload: &[u8],
        attempt: Option<WaiterToken>,
    ) -> Done<()> {
        let conn = self.conn()?;
        let sql = "UPDATE mcp_request SET outcome = ?, payload = ?, attempt = ?, due = ? + ttl
            WHERE id = ? AND outcome IS NULL";
        let ended = conn.prepare_cached(sql)?.execute(params![
            code(outcome),
            payload,
            attempt.map(|attempt| attempt.0.to_be_bytes()),
            self.now,
            id
        ])?;
        self.total.pending -= i64::from(ended == 1);
        Ok(())
    }

    /// The deadline has passed: what is remembered counts from it.
    pub(crate) fn time_out(&mut self, id: i64) -> Done<()> {
        let conn = self.conn()?;
        let sql = "UPDATE mcp_request SET outcome = ?, due = due + ttl
            WHERE id = ? AND outcome IS NULL";
        let ended = conn
            .prepare_cached(sql)?
            .execute(params![code(OutcomeKind::TimedOut), id])?;
        self.total.pending -= i64::from(ended == 1);
        Ok(())
    }
}

/// The state of a request.
pub(crate) fn state(
    conn: &Connection,
    tail: &Tail,
    key: &RequestKey,
    now: Time,
) -> Done<RequestState> {
    let Some(session) = Session::live(conn, tail, &key.session, now)? else {
        return Ok(RequestState::NoSession);
    };
    let Some(request) = Request::find(conn, session.id, &key.id, now)? else {
        return Ok(RequestState::Missing);
    };
    if key.token.is_some_and(|token| token != request.token) {
        return Ok(RequestState::Ended(OutcomeKind::Replaced, Bytes::new()));
    }
    Ok(match request.end {
        None => RequestState::Pending {
            owner: request.owner,
        },
        Some(end) => RequestState::Ended(end, request.payload),
    })
}
