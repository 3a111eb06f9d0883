//! One client request of the reference.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use mcp_adapter_core::{
    InstanceId, OutcomeKind, WaiterToken,
    storage::{Knock, PutRequest, RequestState, Settle, Settled},
};
use tokio::time::Instant;

#[derive(Debug, Clone)]
pub(super) struct Request {
    token: WaiterToken,
    /// All that it replaced: none of them comes back by a repeat.
    former: BTreeSet<u128>,
    /// The tries that ended those: their repeats must not end this one.
    won: BTreeSet<u128>,
    pub(super) owner: InstanceId,
    deadline: Instant,
    result_ttl: Duration,
    end: Option<(OutcomeKind, Bytes, Option<WaiterToken>)>,
    pub(super) forget: Option<Instant>,
}

impl Request {
    pub(super) fn new(put: &PutRequest, former: Option<&Self>, now: Instant) -> Self {
        let mut replaced = former.map_or_else(BTreeSet::new, |former| former.former.clone());
        replaced.extend(former.map(|former| former.token.0));
        let mut won = former.map_or_else(BTreeSet::new, |former| former.won.clone());
        let ended = former.and_then(|former| former.end.as_ref());
        won.extend(
            ended
                .and_then(|(_, _, attempt)| *attempt)
                .map(|attempt| attempt.0),
        );
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
        self.token == put.token || self.former.contains(&put.token.0)
    }

    pub(super) fn is_pending(&self) -> bool {
        self.end.is_none()
    }

    pub(super) fn time_out(&mut self, now: Instant) {
        if self.is_pending() && self.deadline <= now {
            self.end_as(self.deadline, OutcomeKind::TimedOut, Bytes::new(), None);
        }
    }

    pub(super) fn end_as(
        &mut self,
        at: Instant,
        kind: OutcomeKind,
        payload: Bytes,
        attempt: Option<WaiterToken>,
    ) {
        self.end = Some((kind, payload, attempt));
        self.forget = Some(at + self.result_ttl);
    }

    /// `alive`: the owner is not as dead as `settle` says.
    pub(super) fn settle(&mut self, settle: &Settle, alive: bool, now: Instant) -> Settled {
        if self.won.contains(&settle.attempt.0) {
            return Settled::Won;
        }
        if settle.token.is_some_and(|token| token != self.token) {
            return Settled::Already(OutcomeKind::Replaced);
        }
        match &self.end {
            Some((_, _, Some(attempt))) if *attempt == settle.attempt => Settled::Won,
            Some((kind, ..)) => Settled::Already(*kind),
            None if alive => Settled::Alive,
            None => {
                let (kind, payload) = (settle.outcome, settle.payload.clone());
                self.end_as(now, kind, payload, Some(settle.attempt));
                Settled::Won
            }
        }
    }

    /// Brings the stored outcome, if there is one.
    pub(super) fn outcome_knock(&self, settle: &Settle) -> Option<Knock> {
        let (kind, payload, _) = self.end.clone()?;
        Some(Knock::Outcome {
            session: settle.session,
            id: settle.id.clone(),
            token: self.token,
            kind,
            payload,
        })
    }

    /// For the negative control: the name of the try is forgotten.
    pub(super) fn forget_attempt(&mut self) {
        if let Some((_, _, attempt)) = &mut self.end {
            *attempt = None;
        }
    }

    pub(super) fn state(&self, token: Option<WaiterToken>) -> RequestState {
        if token.is_some_and(|token| token != self.token) {
            return RequestState::Ended(OutcomeKind::Replaced, Bytes::new());
        }
        match &self.end {
            Some((kind, payload, _)) => RequestState::Ended(*kind, payload.clone()),
            None => RequestState::Pending { owner: self.owner },
        }
    }
}
