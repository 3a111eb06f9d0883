//! Steps on client requests.

use mcp_adapter_core::{
    OutcomeKind, Result,
    storage::{Knock, Put, PutRequest, RequestKey, RequestState, Settle, Settled, Target},
};
use redis::Value;

use crate::{
    append::millis_of,
    error::odd,
    keys::{instance_of, request_name},
    script::Script,
    server::Lane,
    storage::{RedisStorage, beat_text},
    value::{bytes, text},
    wire,
};

/// Answers of up to so many bytes are sent to whoever waits, who reads larger ones: a
/// link that is slow must not be filled by them.
const TOLD_BYTES: usize = 16 << 10;

impl RedisStorage {
    pub(crate) async fn put_all(&self, batch: &[PutRequest]) -> Result<Vec<Put>> {
        let calls: Vec<_> = batch
            .iter()
            .map(|put| {
                let mut call = self.session_script(Script::Put, &put.session);
                call.command
                    .arg(request_name(&put.id))
                    .arg(&put.token.0.to_be_bytes())
                    .arg(put.owner.to_string())
                    .arg(millis_of(put.timeout))
                    .arg(millis_of(put.result_ttl))
                    .arg(put.max_pending);
                call
            })
            .collect();
        let answers = self.router.all(Lane::Pool, "put_requests", calls).await?;
        let put = |answer: &Value| match answer {
            Value::Int(0) => Some(Put::Done),
            Value::Int(1) => Some(Put::TooMany),
            Value::Int(-1) => Some(Put::NoSession),
            other => instance_of(text(other)?).map(Put::Replaced),
        };
        let puts = answers
            .iter()
            .map(|answer| put(answer).ok_or_else(|| odd("put_requests")));
        puts.collect()
    }

    pub(crate) async fn settle_all(&self, batch: &[Settle]) -> Result<Vec<Settled>> {
        let dead: Vec<_> = batch.iter().filter_map(|settle| settle.dead).collect();
        let mut still = self.still_dead(&dead).await?.into_iter();
        let mut calls = Vec::with_capacity(batch.len());
        for settle in batch {
            let mut call = self.session_script(Script::Settle, &settle.session);
            let token = settle.token.map(|token| token.0.to_be_bytes());
            let (instance, beat) = match settle.dead {
                // Nobody has this id: it lives.
                Some(_) if still.next() == Some(false) => ("-".into(), String::new()),
                Some(dead) => (dead.instance.to_string(), beat_text(dead.beat)),
                None => (String::new(), String::new()),
            };
            let knock = if settle.payload.len() <= TOLD_BYTES {
                let (session, id) = (&settle.session, &settle.id);
                wire::outcome(session, id, settle.outcome, &settle.payload).into()
            } else {
                let target = Target::Request(settle.id.clone());
                wire::encode(&Knock::Wake(settle.session, target))
            };
            call.command
                .arg(request_name(&settle.id))
                .arg(token.as_ref().map_or(&[][..], |token| &token[..]))
                .arg(outcome_code(settle.outcome))
                .arg(&settle.payload[..])
                .arg(instance)
                .arg(beat)
                .arg(&settle.attempt.0.to_be_bytes())
                .arg(&knock[..]);
            calls.push(call);
        }
        let answers = self.router.all(Lane::Pool, "settle", calls).await?;
        let settled = |answer: &Value| {
            Some(match text(answer)? {
                "won" => Settled::Won,
                "alive" => Settled::Alive,
                "unknown" => Settled::Unknown,
                code => Settled::Already(outcome_of(code)?),
            })
        };
        let settled = answers
            .iter()
            .map(|answer| settled(answer).ok_or_else(|| odd("settle")));
        settled.collect()
    }

    pub(crate) async fn states_of(&self, keys: &[RequestKey]) -> Result<Vec<RequestState>> {
        let calls: Vec<_> = keys
            .iter()
            .map(|key| {
                let mut call = self.session_script(Script::Requests, &key.session);
                let token = key.token.map(|token| token.0.to_be_bytes());
                call.command
                    .arg(request_name(&key.id))
                    .arg(token.as_ref().map_or(&[][..], |token| &token[..]));
                call
            })
            .collect();
        let answers = self.router.all(Lane::Pool, "requests", calls).await?;
        let states = answers
            .into_iter()
            .map(|answer| request_state(answer).ok_or_else(|| odd("requests")));
        states.collect()
    }
}

fn request_state(answer: Value) -> Option<RequestState> {
    match answer {
        Value::Int(-1) => return Some(RequestState::NoSession),
        Value::Int(-2) => return Some(RequestState::Missing),
        _ => {}
    }
    let mut fields = answer.into_sequence().ok()?.into_iter();
    let (kind, second) = (fields.next()?, fields.next()?);
    Some(match text(&kind)? {
        "" => RequestState::Pending {
            owner: instance_of(text(&second)?)?,
        },
        code => RequestState::Ended(outcome_of(code)?, bytes(second)?),
    })
}

pub(crate) fn outcome_code(kind: OutcomeKind) -> &'static str {
    match kind {
        OutcomeKind::Answered => "a",
        OutcomeKind::Rejected => "r",
        OutcomeKind::TimedOut => "t",
        OutcomeKind::Cancelled => "c",
        OutcomeKind::SessionEnded => "s",
        OutcomeKind::OwnerLost => "o",
        OutcomeKind::Replaced => "p",
        OutcomeKind::Lost => "l",
    }
}

pub(crate) fn outcome_of(code: &str) -> Option<OutcomeKind> {
    Some(match code {
        "a" => OutcomeKind::Answered,
        "r" => OutcomeKind::Rejected,
        "t" => OutcomeKind::TimedOut,
        "c" => OutcomeKind::Cancelled,
        "s" => OutcomeKind::SessionEnded,
        "o" => OutcomeKind::OwnerLost,
        "p" => OutcomeKind::Replaced,
        "l" => OutcomeKind::Lost,
        _ => return None,
    })
}
