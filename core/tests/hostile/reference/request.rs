//! One client request of the reference.

use std::time::Duration;

use bytes::Bytes;
use mcp_adapter_core::{
    InstanceId, OutcomeKind, WaiterToken,
    storage::{Knock, Names, PutRequest, RequestState, Settle, Settled},
};
use tokio::time::Instant;

#[derive(Debug, Clone)]
pub(super) struct Request {
    token: WaiterToken,
    /// What it replaced: none of them comes back by a repeat.
    former: Names,
    /// The tries that ended those, and this one: their repeats end nothing.
    won: Names,
    pub(super) owner: InstanceId,
    deadline: Instant,
    result_ttl: Duration,
    end: Option<(OutcomeKind, Bytes)>,
    pub(super) forget: Option<Instant>,
}

impl Request {
    pub(super) fn new(put: &PutRequest, former: Option<&Self>, now: Instant) -> Self {
        let mut replaced = former.map_or_else(Names::default, |former| former.former.clone());
        if let Some(former) = former {
            replaced.push(former.token);
        }
        let won = former.map_or_else(Names::default, |former| former.won.clone());
        Self {
            token: put.token,
            former: replaced,
            won,
            owner: put.owner,
            deadline: now + put.timeout,
            result_ttl: put.result_ttl,
            end: None,
            forget: None,
        }
    }

    pub(super) fn is_repeated_by(&self, put: &PutRequest) -> bool {
        self.token == put.token || self.former.contains(put.token)
    }

    pub(super) fn is_pending(&self) -> bool {
        self.end.is_none()
    }

    pub(super) fn time_out(&mut self, now: Instant) {
        if self.is_pending() && self.deadline <= now {
            self.end_as(self.deadline, OutcomeKind::TimedOut, Bytes::new());
        }
    }

    pub(super) fn end_as(&mut self, at: Instant, kind: OutcomeKind, payload: Bytes) {
        self.end = Some((kind, payload));
        self.forget = Some(at + self.result_ttl);
    }

    /// `alive`: the owner is not as dead as `settle` says.
    pub(super) fn settle(&mut self, settle: &Settle, alive: bool, now: Instant) -> Settled {
        if self.won.contains(settle.attempt) {
            return Settled::Won;
        }
        if settle.token.is_some_and(|token| token != self.token) {
            return Settled::Already(OutcomeKind::Replaced);
        }
        match &self.end {
            Some((kind, _)) => Settled::Already(*kind),
            None if alive => Settled::Alive,
            None => {
                let (kind, payload) = (settle.outcome, settle.payload.clone());
                self.end_as(now, kind, payload);
                self.won.push(settle.attempt);
                Settled::Won
            }
        }
    }

    /// Brings the stored outcome, if there is one.
    pub(super) fn outcome_knock(&self, settle: &Settle) -> Option<Knock> {
        let (kind, payload) = self.end.clone()?;
        Some(Knock::Outcome {
            session: settle.session,
            id: settle.id.clone(),
            token: self.token,
            kind,
            payload,
        })
    }

    /// For the negative control: no try is known by its name.
    pub(super) fn forget_attempts(&mut self) {
        self.won = Names::default();
    }

    pub(super) fn state(&self, token: Option<WaiterToken>) -> RequestState {
        if token.is_some_and(|token| token != self.token) {
            return RequestState::Ended(OutcomeKind::Replaced, Bytes::new());
        }
        match &self.end {
            Some((kind, payload)) => RequestState::Ended(*kind, payload.clone()),
            None => RequestState::Pending { owner: self.owner },
        }
    }
}
