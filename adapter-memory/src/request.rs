//! Client requests.

use bytes::Bytes;
use mcp_adapter_core::{
    InstanceId, OutcomeKind, WaiterToken,
    storage::{PutRequest, RequestState, Settle, Settled},
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

/// One client request of a session.
#[derive(Debug)]
pub(crate) struct Request {
    token: WaiterToken,
    /// The waiter that this one replaced: its late repeat must not replace back.
    former: Option<WaiterToken>,
    /// The try that ended the one before: its late repeat must not end this one.
    former_attempt: Option<WaiterToken>,
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
            former: former.map(|former| former.token),
            former_attempt: former.and_then(|former| former.end.as_ref()?.attempt),
            owner: put.owner,
            due: now.after(put.timeout.into()),
            result_ttl: put.result_ttl.into(),
            end: None,
        }
    }

    pub(crate) fn is_repeated_by(&self, put: &PutRequest) -> bool {
        self.token == put.token || self.former == Some(put.token)
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
        if self.former_attempt == Some(settle.attempt) {
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
