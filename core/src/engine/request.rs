//! Client requests: one outcome each, whoever is first (clause C2).

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::FutureExt;
use tokio::time::Instant;

use super::{
    Shared, inline,
    interest::Wait,
    lane::LaneQueue,
    only,
    retry::{Backoff, repeat, within},
};
use crate::{
    error::{Applied, Error, ErrorKind, Result},
    id::{RpcId, SessionKey, StreamId, WaiterToken},
    request::{Answer, Delivery, NewClientRequest, Outcome, OutcomeKind, PendingRequest},
    storage::{Dead, Put, PutRequest, RequestKey, RequestState, Settle, Settled, Storage, Target},
};

impl Outcome {
    fn of(kind: OutcomeKind) -> Self {
        Self {
            kind,
            payload: Bytes::new(),
        }
    }
}

/// Withdraws the request when the wait is dropped before its outcome.
struct Withdraw<S: Storage> {
    shared: Arc<Shared<S>>,
    wait: Arc<Wait>,
    ended: bool,
}

impl<S: Storage> Drop for Withdraw<S> {
    fn drop(&mut self) {
        self.shared.interests.remove_wait(&self.wait);
        if self.ended || self.shared.is_killed() {
            return;
        }
        let settle = self.shared.settle_of(&self.wait, OutcomeKind::Cancelled);
        if self.shared.profile.inline {
            let _ = inline(
                "cancel",
                self.shared.storage.settle(std::slice::from_ref(&settle)),
            );
        } else {
            // The queue has it when this returns.
            let lane = &self.shared.lanes.settle[self.shared.shard_of(&settle.session)];
            let _ = lane.push("cancel", settle, 0);
        }
    }
}

impl<S: Storage> Shared<S> {
    pub(super) async fn create_request(
        self: &Arc<Self>,
        session: SessionKey,
        request: NewClientRequest,
    ) -> Result<PendingRequest> {
        const OPERATION: &str = "create request";
        request.id.check()?;
        self.ready(OPERATION).await?;
        self.assure_alive().await;
        let longest = self.limits.request_timeout();
        let timeout = request.timeout.unwrap_or(longest).min(longest);
        let put = PutRequest {
            session,
            id: request.id.clone(),
            token: request.token,
            owner: self.me,
            timeout,
            result_ttl: self.limits.result_ttl(),
            max_pending: self.limits.pending_requests(),
        };
        // Listening first: the answer may be quicker than our own write (T26), and
        // its knock is then noticed by the first look at the wait.
        let wait = Wait::new(session, request.id, request.token, request.stream);
        self.interests.add_wait(&wait);
        // From here on a caller that goes away withdraws what it may have stored.
        let mut withdraw = Withdraw {
            shared: Arc::clone(self),
            wait,
            ended: false,
        };
        let answer = self.put(put).await;
        withdraw.ended = matches!(answer, Ok(Put::TooMany | Put::NoSession));
        match answer? {
            Put::Done => {}
            Put::Replaced(owner) => {
                let id = &withdraw.wait.id;
                self.wake(owner, session, Target::Request(id.clone()));
            }
            Put::TooMany => return Err(Error::new(ErrorKind::Overloaded, OPERATION)),
            Put::NoSession => return Err(Error::new(ErrorKind::SessionNotFound, OPERATION)),
        }
        // Armed after the backend has set its deadline: ours is the later one.
        let deadline = Instant::now() + timeout;
        Ok(PendingRequest::new(
            async move {
                // The guard as a whole, or its flag would be a copy.
                let mut withdraw = withdraw;
                let outcome = withdraw.shared.outcome(&withdraw.wait, deadline).await;
                withdraw.ended = true;
                metrics::counter!("mcp_adapter_client_requests_total",
                    "outcome" => outcome.kind.name())
                .increment(1);
                outcome
            }
            .boxed(),
        ))
    }

    async fn outcome(&self, wait: &Wait, deadline: Instant) -> Outcome {
        loop {
            tokio::select! {
                () = wait.woken() => {
                    if let Some(outcome) = wait.told() {
                        return outcome;
                    }
                }
                () = tokio::time::sleep_until(deadline) => {
                    return self.end(wait, OutcomeKind::TimedOut).await;
                }
                () = self.stopped() => {
                    return self.end(wait, OutcomeKind::Cancelled).await;
                }
            }
            match self.state_of(wait).await {
                Ok(RequestState::Pending { .. }) => {}
                // The deadline by the backend's clock, and an answer that began before
                // it may be about to be stored: who ends the request decides.
                Ok(RequestState::Ended(OutcomeKind::TimedOut, _)) => {
                    return self.end(wait, OutcomeKind::TimedOut).await;
                }
                Ok(state) => return outcome_of(state),
                // The next catch-up wakes again; the deadline holds all the same.
                Err(error) if error.is_retryable() => {}
                Err(error) => {
                    tracing::warn!(%error, "a client request cannot be read");
                    return Outcome::of(OutcomeKind::Lost);
                }
            }
        }
    }

    /// Ends a request as its waiter, who must win this or take what won
    /// (clause C2). Kept up for `max_outage`.
    async fn end(&self, wait: &Wait, kind: OutcomeKind) -> Outcome {
        let settle = self.settle_of(wait, kind);
        let until = Instant::now() + self.limits.max_outage();
        let mut backoff = Backoff::new(self.limits.catch_up());
        loop {
            let settled = match self.settle(settle.clone()).await {
                Ok(Settled::Won) => return Outcome::of(kind),
                Ok(Settled::Already(_) | Settled::Alive | Settled::Unknown) => {
                    self.state_of(wait).await.map(outcome_of)
                }
                // The lane is closed with this instance; what was settled before
                // can still be read.
                Err(error) if error.kind() == ErrorKind::Closed => {
                    self.state_of(wait).await.map(outcome_of)
                }
                Err(error) => Err(error),
            };
            match settled {
                Ok(outcome) => return outcome,
                Err(error) if error.is_retryable() && Instant::now() < until => {
                    backoff.wait().await;
                }
                Err(error) => {
                    tracing::warn!(%error, "the outcome of a client request is unknown");
                    return Outcome::of(OutcomeKind::Lost);
                }
            }
        }
    }

    async fn state_of(&self, wait: &Wait) -> Result<RequestState> {
        self.request_state(wait.session, &wait.id, Some(wait.token))
            .await
    }

    async fn request_state(
        &self,
        session: SessionKey,
        id: &RpcId,
        token: Option<WaiterToken>,
    ) -> Result<RequestState> {
        let keys = [RequestKey {
            session,
            id: id.clone(),
            token,
        }];
        let states = self
            .step("read request", |storage| storage.requests(&keys))
            .await?;
        only("read request", states)
    }

    fn settle_of(&self, wait: &Wait, outcome: OutcomeKind) -> Settle {
        Settle {
            session: wait.session,
            id: wait.id.clone(),
            token: Some(wait.token),
            outcome,
            payload: Bytes::new(),
            dead: None,
            attempt: WaiterToken::generate(),
        }
    }

    /// As from outside: an answer or a withdrawal by id.
    async fn settle_from_outside(
        self: &Arc<Self>,
        session: SessionKey,
        id: &RpcId,
        outcome: OutcomeKind,
        payload: Bytes,
    ) -> Result<Settled> {
        self.ready("settle").await?;
        let mut settle = Settle {
            session,
            id: id.clone(),
            token: None,
            outcome,
            payload,
            dead: None,
            attempt: WaiterToken::generate(),
        };
        // The first that meets a dead owner's request ends it (clause F3).
        if let Some(dead) = self.dead_owner(session, id).await? {
            let end = Settle {
                outcome: OutcomeKind::OwnerLost,
                payload: Bytes::new(),
                dead: Some(dead),
                attempt: WaiterToken::generate(),
                ..settle.clone()
            };
            match self.settle(end).await? {
                Settled::Won => return Ok(Settled::Already(OutcomeKind::OwnerLost)),
                Settled::Alive => settle.attempt = WaiterToken::generate(),
                settled => return Ok(settled),
            }
        }
        let settled = self.settle(settle).await?;
        if settled == Settled::Won {
            // No writer is told: a request's target names none.
            self.interests.wake(&session, &Target::Request(id.clone()));
        }
        Ok(settled)
    }

    async fn dead_owner(&self, session: SessionKey, id: &RpcId) -> Result<Option<Dead>> {
        if self.observer.lock().all_dead().is_empty() {
            return Ok(None);
        }
        match self.request_state(session, id, None).await? {
            RequestState::Pending { owner } => Ok(self.observer.lock().dead(owner)),
            _ => Ok(None),
        }
    }

    pub(super) async fn answer(
        self: &Arc<Self>,
        session: SessionKey,
        id: &RpcId,
        answer: Answer,
    ) -> Result<Delivery> {
        let (outcome, payload) = match answer {
            Answer::Result(payload) => (OutcomeKind::Answered, payload),
            Answer::Error(payload) => (OutcomeKind::Rejected, payload),
        };
        if payload.len() > self.limits.answer_bytes() {
            return Err(Error::new(ErrorKind::TooLarge, "answer"));
        }
        let settled = self
            .settle_from_outside(session, id, outcome, payload)
            .await?;
        Ok(match settled {
            Settled::Won => Delivery::Delivered,
            Settled::Already(outcome) => Delivery::AlreadyEnded(outcome),
            Settled::Alive | Settled::Unknown => Delivery::Unknown,
        })
    }

    pub(super) async fn cancel_request(
        self: &Arc<Self>,
        session: SessionKey,
        id: &RpcId,
    ) -> Result<Option<OutcomeKind>> {
        let outcome = OutcomeKind::Cancelled;
        let settled = self
            .settle_from_outside(session, id, outcome, Bytes::new())
            .await?;
        Ok(match settled {
            Settled::Won => Some(outcome),
            Settled::Already(outcome) => Some(outcome),
            Settled::Alive | Settled::Unknown => None,
        })
    }

    pub(super) async fn withdraw(
        self: &Arc<Self>,
        session: SessionKey,
        stream: &StreamId,
    ) -> Result<()> {
        let mut waits = self.interests.waits(&session);
        waits.retain(|wait| wait.stream.as_ref() == Some(stream));
        for wait in waits {
            self.withdraw_one(&wait).await?;
        }
        Ok(())
    }

    pub(super) async fn withdraw_one(&self, wait: &Wait) -> Result<()> {
        self.settle(self.settle_of(wait, OutcomeKind::Cancelled))
            .await?;
        wait.wake();
        Ok(())
    }

    async fn put(&self, put: PutRequest) -> Result<Put> {
        if self.profile.inline {
            let answers = self
                .storage
                .put_requests(std::slice::from_ref(&put))
                .await?;
            return only("put", answers);
        }
        let bytes = std::mem::size_of_val(&put);
        let answer = self.lanes.put[self.shard_of(&put.session)].push("put", put, bytes)?;
        self.await_answer("put", answer).await
    }

    async fn settle(&self, settle: Settle) -> Result<Settled> {
        self.unless_killed().await;
        if self.profile.inline {
            let answers = self.storage.settle(std::slice::from_ref(&settle)).await?;
            return only("settle", answers);
        }
        let bytes = settle.payload.len();
        let lane = &self.lanes.settle[self.shard_of(&settle.session)];
        let answer = lane.push("settle", settle, bytes)?;
        self.await_answer("settle", answer).await
    }

    async fn await_answer<R>(
        &self,
        operation: &'static str,
        answer: tokio::sync::oneshot::Receiver<Result<R>>,
    ) -> Result<R> {
        // The lane repeats for one operation's time, and one may be ahead of us.
        let patience: Duration = self.limits.operation_timeout() * 2;
        within(operation, Instant::now() + patience, async {
            answer.await.unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Closed, operation).with_applied(Applied::Unknown))
            })
        })
        .await
    }

    pub(super) async fn run_puts(self: Arc<Self>, queue: LaneQueue<PutRequest, Put>) {
        self.run_lane("put", queue, |shared, batch| async move {
            shared.storage.put_requests(&batch).await
        })
        .await;
    }

    pub(super) async fn run_settles(self: Arc<Self>, queue: LaneQueue<Settle, Settled>) {
        self.run_lane("settle", queue, |shared, batch| async move {
            shared.storage.settle(&batch).await
        })
        .await;
    }

    /// Flushes batches of steps that are safe to repeat.
    async fn run_lane<T, R, F>(
        self: Arc<Self>,
        operation: &'static str,
        mut queue: LaneQueue<T, R>,
        flush: impl Fn(Arc<Self>, Arc<[T]>) -> F,
    ) where
        T: Clone,
        F: Future<Output = Result<Vec<R>>>,
    {
        while let Some(batch) = queue.batch().await {
            let items: Arc<[T]> = batch.iter().map(|job| job.item.clone()).collect();
            let began = Instant::now();
            let result = repeat(operation, self.deadline(), || {
                flush(Arc::clone(&self), Arc::clone(&items))
            })
            .await;
            self.measure(operation, began);
            self.note(&result);
            match result {
                Ok(answers) if answers.len() == batch.len() => {
                    for (job, answer) in batch.into_iter().zip(answers) {
                        job.answer(Ok(answer));
                    }
                }
                result => {
                    let error = result.err();
                    let kind = error.as_ref().map_or(ErrorKind::Corrupt, Error::kind);
                    let applied = error.as_ref().map_or(Applied::Unknown, Error::applied);
                    for job in batch {
                        let mut own = Error::new(kind, operation).with_applied(applied);
                        if let Some(error) = &error {
                            own = own.with_message(error.to_string());
                        }
                        job.answer(Err(own));
                    }
                }
            }
        }
    }
}

fn outcome_of(state: RequestState) -> Outcome {
    match state {
        RequestState::Ended(kind, payload) => Outcome { kind, payload },
        RequestState::NoSession => Outcome::of(OutcomeKind::SessionEnded),
        // Pending after it could not be ended, or evicted: nobody will say more.
        RequestState::Missing | RequestState::Pending { .. } => Outcome::of(OutcomeKind::Lost),
    }
}
