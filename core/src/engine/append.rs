//! The lane of appends: batches that are repeated until they are stored.

use std::sync::{Arc, atomic::Ordering};

use tokio::time::Instant;

use super::{
    Shared,
    interest::Owned,
    lane::{Job, LaneQueue},
    retry::{Backoff, within},
    writer::{Pending, Waiting},
};
use crate::{
    error::{Applied, Error, ErrorKind},
    id::{Position, SessionKey, StreamId},
    storage::{Append, Appended, Cursor, Entered, OpenStream, Place, Read, Storage, StreamEnd},
};

/// Appends as the backend gets them, and beside each who waits for it.
type Batch = (Vec<Append>, Vec<Job<Waiting, Appended>>);

/// Lost streams, and whether they are open again: each is opened once for all its
/// appends.
#[derive(Default)]
pub(super) struct Reopened(Vec<(Arc<Owned>, bool)>);

impl Reopened {
    pub(super) async fn once(
        &mut self,
        owned: &Arc<Owned>,
        opening: impl Future<Output = bool>,
    ) -> bool {
        let mut known = self.0.iter();
        if let Some((_, open)) = known.find(|(other, _)| Arc::ptr_eq(other, owned)) {
            return *open;
        }
        let open = opening.await;
        self.0.push((Arc::clone(owned), open));
        open
    }
}

impl<S: Storage> Shared<S> {
    pub(super) async fn run_appends(self: Arc<Self>, mut queue: LaneQueue<Pending, Appended>) {
        while let Some(batch) = queue.batch().await {
            self.flush(batch).await;
        }
    }

    /// Stores a batch, repeating it until each job is stored or has run out of
    /// time. Nothing of the lane overtakes it.
    async fn flush(self: &Arc<Self>, batch: Vec<Job<Pending, Appended>>) {
        let mut backoff = Backoff::new(self.limits.catch_up());
        let (mut appends, mut jobs): Batch = batch
            .into_iter()
            .map(|job| job.split(|pending| pending))
            .unzip();
        while !jobs.is_empty() {
            self.unpaused().await;
            let began = Instant::now();
            let result = within("append", self.deadline(), self.storage.append(&appends)).await;
            self.measure("append", began);
            self.note(&result);
            let error = match result {
                Ok(answers) if answers.len() == jobs.len() => {
                    (appends, jobs) = self.flushed(appends, jobs, answers).await;
                    continue;
                }
                Ok(_) => Error::new(ErrorKind::Corrupt, "append")
                    .with_message("the backend gave another number of answers"),
                Err(error) => error,
            };
            let now = Instant::now();
            let mut rest = Batch::default();
            for (append, mut job) in appends.into_iter().zip(jobs) {
                job.item.unsure |= error.applied() == Applied::Unknown;
                if error.is_retryable() && job.item.deadline > now {
                    self.hand_over_unstored(&append, &job.item);
                    rest.extend([(append, job)]);
                } else {
                    self.give_up(&append, &job.item);
                    // Its last try may still take effect.
                    let error = Error::new(error.kind(), error.operation())
                        .with_applied(Applied::Unknown)
                        .with_message(error.to_string());
                    job.answer(Err(error));
                }
            }
            (appends, jobs) = rest;
            if !jobs.is_empty() {
                backoff.wait().await;
            }
        }
    }

    /// Answers the jobs; those whose stream the backend has lost, although the
    /// session lives, come back to be stored again once it is open again.
    async fn flushed(
        self: &Arc<Self>,
        appends: Vec<Append>,
        jobs: Vec<Job<Waiting, Appended>>,
        answers: Vec<Appended>,
    ) -> Batch {
        let mut again = Batch::default();
        let mut reopened = Reopened::default();
        for ((mut append, job), mut answer) in appends.into_iter().zip(jobs).zip(answers) {
            let is_lost = answer == Appended::NoStream && append.event.is_some();
            let lost = job.item.owned.as_ref().filter(|_| is_lost);
            if lost.is_some_and(|owned| self.may_have_lost(owned)) {
                // Ended by others, and removed since: opened again it would go on
                // after its end.
                answer = Appended::Fenced;
            } else if let Some(owned) = lost {
                let opening = async {
                    let open = self.reopen(owned).await;
                    if open && self.profile.repair {
                        // Before what comes again, and after nothing: this lane is the
                        // stream's.
                        let written = self.write_again(std::slice::from_ref(owned)).await;
                        if let Err(error) = written {
                            tracing::warn!(%error, "a lost stream is open again, but empty");
                        }
                    }
                    open
                };
                if reopened.once(owned, opening).await {
                    again.extend([(append, job)]);
                    continue;
                }
            }
            let Waiting {
                owned,
                passed,
                unsure,
                ..
            } = &job.item;
            let writer = owned.as_ref().map(|owned| (owned, owned.state.lock()));
            let result = self.appended(&mut append, writer, answer, *passed);
            let unsure = *unsure;
            // Refused now, but an earlier try may have been stored and read.
            let refused = |error: Error| match unsure {
                true => error.with_applied(Applied::Unknown),
                false => error,
            };
            job.answer(result.map(|_| answer).map_err(refused));
        }
        again
    }

    pub(super) async fn reopen(&self, owned: &Owned) -> bool {
        metrics::counter!("mcp_adapter_streams_reopened_total").increment(1);
        let open = self.open_stream(owned);
        let entered = self
            .step("enter", |storage| {
                storage.enter(&owned.session, &owned.principal, Some(&open))
            })
            .await;
        matches!(entered, Ok(Entered::Session { .. }))
    }

    pub(super) fn open_stream(&self, owned: &Owned) -> OpenStream {
        OpenStream {
            stream: owned.stream.clone(),
            owner: self.me,
            request: owned.request.clone(),
            max_open: self.limits.open_streams(),
            max_principal_bytes: self.limits.principal_bytes(),
        }
    }

    /// A result whose backend is away goes to the socket that waits for it here,
    /// without an id (clause F1).
    fn hand_over_unstored(&self, append: &Append, waiting: &Waiting) {
        let terminal = append.finish.is_some() && !waiting.passed;
        if let (true, Some(owned), Some(event)) = (terminal, &waiting.owned, &append.event)
            && let Place::Owned { position, .. } = append.place
            && let Some(local) = owned.state.lock().local.take()
        {
            metrics::counter!("mcp_adapter_results_unstored_total").increment(1);
            drop(local.pass_unstored(position, event.data.clone()));
        }
    }

    fn give_up(&self, append: &Append, waiting: &Waiting) {
        if let (true, Some(owned)) = (append.finish.is_some(), &waiting.owned) {
            metrics::counter!("mcp_adapter_results_dropped_total").increment(1);
            owned.state.lock().orphaned = Some(self.watched_until());
        }
    }

    /// Until when a stream is watched that may still appear.
    pub(super) fn watched_until(&self) -> Instant {
        Instant::now() + self.limits.max_outage()
    }

    /// Ends a stream of this instance that nobody here writes any more.
    pub(super) fn finish_orphan(self: &Arc<Self>, owned: &Arc<Owned>) {
        {
            let mut state = owned.state.lock();
            if state.orphaned.take().is_none() || self.closed.load(Ordering::Acquire) {
                return;
            }
            state.finishing = false;
        }
        drop(self.write(owned, None, Some(StreamEnd::OwnerLost)));
    }

    /// Ends a stream that the backend has open under this instance's name
    /// although nobody here writes it: its finish was acknowledged and then lost
    /// with the backend's data. The writer registers before it opens, so that
    /// its absence after the read is proof.
    pub(super) async fn disown(self: &Arc<Self>, session: SessionKey, stream: StreamId) {
        let cursor = Cursor::state_of(session, stream.clone());
        let Ok(Read::Page { state, .. }) = self.read_one("disown", cursor).await else {
            return;
        };
        let open = state.end.is_none() && state.owner == Some(self.me);
        if !open || self.interests.owned(&session, &stream).is_some() {
            return;
        }
        metrics::counter!("mcp_adapter_streams_disowned_total").increment(1);
        let append = [Append {
            session,
            stream,
            place: Place::Owned {
                owner: self.me,
                position: Position::new(state.top.epoch.saturating_add(1), 0),
            },
            event: None,
            finish: Some(self.limits.finished_ttl()),
            end: StreamEnd::OwnerLost,
            keep_events: self.limits.stream_events(),
            keep_bytes: self.limits.stream_bytes(),
            trim: None,
            wake: state.holder.map(|holder| holder.instance),
        }];
        if let Err(error) = self.step("disown", |storage| storage.append(&append)).await {
            tracing::debug!(%error, "a stream could not be given up; its reader asks again");
        }
    }
}
