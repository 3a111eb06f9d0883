//! Client requests.

use bytes::Bytes;
use mcp_adapter_core::{
    InstanceId, OutcomeKind, WaiterToken,
    storage::{Names, PutRequest, RequestState, Settle, Settled},
};

use crate::{
    beats::Beats,
    clock::{Span, Time},
};

#[derive(Debug)]
struct Ended {
    kind: OutcomeKind,
    payload: Bytes,
    attempt: Option<WaiterToken>,
}

/// What the id remembers of the requests that had it before.
#[derive(Debug, Clone, Default)]
struct Former {
    /// Waiters that were replaced: their late repeats must not replace back.
    waiters: Names,
    /// Tries that ended one: their late repeats must not end this one.
    attempts: Names,
}

/// One client request of a session.
#[derive(Debug)]
pub(crate) struct Request {
    token: WaiterToken,
    former: Option<Box<Former>>,
    owner: InstanceId,
    /// The deadline while it is pending; afterwards, when it is forgotten.
    due: Time,
    result_ttl: Span,
    end: Option<Box<Ended>>,
}

impl Request {
    pub(crate) fn new(put: &PutRequest, former: Option<&Self>, now: Time) -> Self {
        Self {
            token: put.token,
            former: former.map(Self::as_former),
            owner: put.owner,
            due: now.after(put.timeout.into()),
            result_ttl: put.result_ttl.into(),
            end: None,
        }
    }

    fn as_former(&self) -> Box<Former> {
        let mut former = self.former.clone().unwrap_or_default();
        former.waiters.push(self.token);
        if let Some(attempt) = self.end.as_ref().and_then(|end| end.attempt) {
            former.attempts.push(attempt);
        }
        former
    }

    pub(crate) fn is_repeated_by(&self, put: &PutRequest) -> bool {
        let is_former = |former: &Former| former.waiters.contains(put.token);
        self.token == put.token || self.former.as_deref().is_some_and(is_former)
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.end.is_none()
    }

    pub(crate) fn owner(&self) -> InstanceId {
        self.owner
    }

    pub(crate) fn due(&self) -> Time {
        self.due
    }

    fn end(&mut self, at: Time, kind: OutcomeKind, payload: Bytes, attempt: Option<WaiterToken>) {
        self.due = at.after(self.result_ttl);
        self.end = Some(Box::new(Ended {
            kind,
            payload,
            attempt,
        }));
    }

    /// The deadline has passed. What is remembered counts from it, not from
    /// when somebody looked.
    pub(crate) fn time_out(&mut self) {
        self.end(self.due, OutcomeKind::TimedOut, Bytes::new(), None);
    }

    pub(crate) fn lose_owner(&mut self, now: Time) {
        self.end(now, OutcomeKind::OwnerLost, Bytes::new(), None);
    }

    /// Changes nothing but a pending request that it wins.
    pub(crate) fn settle(&mut self, settle: &Settle, beats: &Beats, now: Time) -> Settled {
        let won = |former: &Former| former.attempts.contains(settle.attempt);
        if self.former.as_deref().is_some_and(won) {
            return Settled::Won;
        }
        if settle.token.is_some_and(|token| token != self.token) {
            return Settled::Already(OutcomeKind::Replaced);
        }
        if let Some(end) = &self.end {
            return if end.attempt == Some(settle.attempt) {
                Settled::Won
            } else {
                Settled::Already(end.kind)
            };
        }
        let verdict = settle.dead.map(|dead| (dead, beats.verdict(now)));
        let holds = verdict
            .as_ref()
            .is_none_or(|(dead, beats)| self.owner == dead.instance && beats.is_dead(*dead));
        if !holds {
            return Settled::Alive;
        }
        let payload = settle.payload.clone();
        self.end(now, settle.outcome, payload, Some(settle.attempt));
        Settled::Won
    }

    pub(crate) fn state(&self, token: Option<WaiterToken>) -> RequestState {
        if token.is_some_and(|token| token != self.token) {
            return RequestState::Ended(OutcomeKind::Replaced, Bytes::new());
        }
        self.end
            .as_ref()
            .map_or(RequestState::Pending { owner: self.owner }, |end| {
                RequestState::Ended(end.kind, end.payload.clone())
            })
    }
}
