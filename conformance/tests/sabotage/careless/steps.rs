//! The steps.

use std::{collections::HashSet, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use mcp_adapter_core::{
    Cancelled, InstanceId, PrincipalKey, Result, RpcId, SessionKey, Stats, StreamId,
    storage::{
        Append, Appended, Beat, Claim, Cursor, Dead, Door, Entered, Generation, Held, Hold, Knock,
        NewSession, OpenStream, Profile, Put, PutRequest, Read, RequestKey, RequestState, Settle,
        Settled, Storage, Swept, UpdateSession, Updated,
    },
};

use super::{Careless, PAUSE, append::forget};
use crate::defects::{Rule, Torn};

// A method that is provided must reach the storage, too.
#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<S: Storage> Storage for Careless<S> {
    fn profile(&self) -> Profile {
        let mut profile = self.inner.profile();
        // Commands come late here, and tokens of deleted sessions are kept.
        profile.capabilities.shared = true;
        profile
    }

    fn shard_of(&self, session: &SessionKey) -> usize {
        self.inner.shard_of(session)
    }

    fn append_inline(&self, append: &Append) -> Result<Appended> {
        self.inner.append_inline(append)
    }

    async fn attach(&self, me: InstanceId) -> Result<Generation> {
        self.inner.attach(me).await
    }

    async fn doorbell(&self, me: InstanceId) -> Result<BoxStream<'static, Result<Knock>>> {
        self.inner.doorbell(me).await
    }

    async fn create(&self, session: &NewSession) -> Result<bool> {
        let late = self.ledger.with(|book| {
            let deleted = book
                .deleted
                .get(&session.session)
                .map_or(&[][..], Vec::as_slice);
            let all = !self.misses(Rule::CreatorsAreKept);
            let kept = if all {
                0
            } else {
                deleted.len().saturating_sub(1)
            };
            deleted[kept..].contains(&session.creator)
        });
        if late {
            return Ok(false);
        }
        let created = self.inner.create(session).await?;
        if created {
            self.ledger.with(|book| {
                book.creators.insert(session.session, session.creator);
                book.principals.insert(session.session, session.principal);
            });
        }
        Ok(created)
    }

    async fn enter(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
        open: Option<&OpenStream>,
    ) -> Result<Entered> {
        let Some(open) = open else {
            return self.inner.enter(session, principal, None).await;
        };
        let key = (*session, open.stream.clone());
        let finished = self.ledger.with(|book| {
            book.known.insert(key.clone());
            book.finished.contains(&key)
        });
        if finished && self.misses(Rule::CallsAreOpenedAnew) {
            return self.inner.enter(session, principal, None).await;
        }
        let step = self.inner.enter(session, principal, Some(open));
        self.torn(Torn::Enter, step).await
    }

    async fn update(&self, update: &UpdateSession) -> Result<Updated> {
        let (mut update, known) = (update.clone(), self.ledger.clone());
        let session = update.session;
        if self.misses(Rule::UpdatesAreThePrincipals)
            && let Some(owner) = known.with(|book| book.principals.get(&session).copied())
        {
            update.principal = owner;
        }
        if self.misses(Rule::UpdatesAreRemembered) {
            let names = known.with(|book| book.updates.get(&session).cloned());
            let names = names.unwrap_or_default();
            if names.len() > 1 && names[..names.len() - 1].contains(&update.attempt) {
                return Ok(Updated::Conflict);
            }
        }
        let step = self.inner.update(&update);
        let updated = self.torn(Torn::Update, step).await?;
        match updated {
            Updated::Done(_) => known.with(|book| {
                let names = book.updates.entry(session).or_default();
                if !names.contains(&update.attempt) {
                    names.push(update.attempt);
                }
            }),
            Updated::Conflict if self.misses(Rule::UpdatesHaveNames) => {
                let entered = self.inner.enter(&session, &update.principal, None).await?;
                if let Entered::Session { record, revision } = entered
                    && revision == update.revision + 1
                    && record == update.record
                {
                    return Ok(Updated::Done(revision));
                }
            }
            _ => {}
        }
        Ok(updated)
    }

    async fn delete(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
    ) -> Result<Option<Vec<InstanceId>>> {
        let deleted = self.inner.delete(session, principal).await?;
        if deleted.is_some() {
            self.ledger.with(|book| {
                book.deletes += 1;
                if let Some(creator) = book.creators.remove(session) {
                    book.deleted.entry(*session).or_default().push(creator);
                }
                book.gone.retain(|((of, _), _)| of != session);
                book.finished.retain(|(of, _)| of != session);
                book.answers.retain(|((of, _), _), _| of.0 != session.0);
            });
        }
        Ok(deleted)
    }

    async fn append(&self, batch: &[Append]) -> Result<Vec<Appended>> {
        match self.rule {
            None => self.inner.append(batch).await,
            Some(_) => self.append_all(batch).await,
        }
    }

    async fn read(&self, cursors: &[Cursor]) -> Result<Vec<Read>> {
        let mut pages = self.inner.read(cursors).await?;
        for (page, cursor) in pages.iter_mut().zip(cursors) {
            self.spoil_page(cursor, page);
        }
        Ok(pages)
    }

    async fn hold(
        &self,
        session: &SessionKey,
        stream: &StreamId,
        me: InstanceId,
        hold: Hold,
    ) -> Result<Held> {
        let key = (*session, stream.clone());
        let standalone = stream.is_standalone();
        let finished = self.ledger.with(|book| book.finished.contains(&key));
        if finished && standalone && self.misses(Rule::StandaloneIsMadeForItsHolder) {
            return Ok(Held::NoStream);
        }
        let before = self.state_of(&key).await?.and_then(|state| state.holder);
        let taken = match hold {
            Hold::Continue { .. } if self.misses(Rule::HoldsAreContinued) => Hold::Take,
            hold => hold,
        };
        let step = self.inner.hold(session, stream, me, taken);
        let mut held = self.torn(Torn::Hold, step).await?;
        if let Held::Done { cursor, state, .. } = &mut held {
            let own = before.is_some_and(|holder| holder.instance == me);
            match hold {
                Hold::Release { cursor, .. } => {
                    self.ledger
                        .with(|book| book.released.insert(*session, cursor));
                }
                Hold::Take if own && self.misses(Rule::OwnHoldsGoOn) => *cursor = state.top,
                Hold::Take if !own && self.misses(Rule::ReleasesEndAtTheTop) && standalone => {
                    let released = self.ledger.with(|book| book.released.remove(session));
                    *cursor = released.unwrap_or(*cursor);
                }
                _ => {}
            }
            if self.misses(Rule::HoldsAreRemembered) {
                forget(state);
            }
        }
        Ok(held)
    }

    async fn shrink(&self, session: &SessionKey, max_bytes: u64) -> Result<u64> {
        let step = self.inner.shrink(session, max_bytes);
        self.torn(Torn::Shrink, step).await
    }

    async fn put_requests(&self, batch: &[PutRequest]) -> Result<Vec<Put>> {
        let mut batch = batch.to_vec();
        for put in &mut batch {
            let key = (put.session, put.id.clone());
            let names = self.ledger.with(|book| {
                let names = book.waiters.entry(key).or_default();
                if !names.contains(&put.token) {
                    names.push(put.token);
                }
                names.clone()
            });
            if self.misses(Rule::WaitersAreRemembered) {
                put.token = self.only_the_last(&names, put.token);
            }
        }
        if self.misses(Rule::RequestsAreInOrder) {
            let mut sorted: Vec<_> = batch.iter().cloned().enumerate().collect();
            sorted.sort_by_key(|(_, put)| (put.session, put.id.to_string()));
            let inner: Vec<_> = sorted.iter().map(|(_, put)| put.clone()).collect();
            let mut answers = vec![Put::Done; batch.len()];
            for ((n, _), answer) in sorted.iter().zip(self.inner.put_requests(&inner).await?) {
                answers[*n] = answer;
            }
            return Ok(answers);
        }
        if self.misses(Rule::CountsAreOfTheStep) {
            return self.put_after_a_count(batch).await;
        }
        self.torn(Torn::Put, self.inner.put_requests(&batch)).await
    }

    async fn settle(&self, batch: &[Settle]) -> Result<Vec<Settled>> {
        let mut batch = batch.to_vec();
        for settle in &mut batch {
            let key = (settle.session, settle.id.clone());
            let names = self.ledger.with(|book| {
                let names = book.attempts.entry(key).or_default();
                if !names.contains(&settle.attempt) {
                    names.push(settle.attempt);
                }
                names.clone()
            });
            if self.misses(Rule::AttemptsAreRemembered) {
                settle.attempt = self.only_the_last(&names, settle.attempt);
            }
        }
        self.torn(Torn::Settle, self.inner.settle(&batch)).await
    }

    async fn requests(&self, keys: &[RequestKey]) -> Result<Vec<RequestState>> {
        self.inner.requests(keys).await
    }

    async fn mark_cancel(&self, session: &SessionKey, id: &RpcId) -> Result<Option<Cancelled>> {
        let step = self.inner.mark_cancel(session, id);
        if !self.misses(Rule::MarksAreKept) {
            return self.torn(Torn::MarkCancel, step).await;
        }
        // All marks of a session are read, and written back with one more.
        let count = |raise: u64| {
            self.ledger.with(|book| {
                let marks = book.marks.entry(*session).or_default();
                *marks += raise;
                *marks
            })
        };
        let before = count(1);
        tokio::time::sleep(PAUSE).await;
        let marked = step.await?;
        if let (Some(Cancelled::Marked(stream)), true) = (&marked, count(0) != before) {
            let key = (*session, stream.clone());
            self.ledger.with(|book| book.unmarked.insert(key));
        }
        Ok(marked)
    }

    async fn heartbeat(&self, me: Beat, ttl: Duration) -> Result<Vec<Beat>> {
        let mut beats = self.inner.heartbeat(me, ttl).await?;
        if self.misses(Rule::NoughtIsACounter) {
            beats.retain(|beat| beat.count > 0);
        }
        Ok(beats)
    }

    async fn claim(&self, batch: &[Claim]) -> Result<usize> {
        self.torn(Torn::Claim, self.inner.claim(batch)).await
    }

    async fn sweep(&self, budget: usize, dead: &[Dead], finished_ttl: Duration) -> Result<Swept> {
        let step = self.inner.sweep(budget, dead, finished_ttl);
        let mut swept = self.torn(Torn::Sweep, step).await?;
        if self.misses(Rule::DeletesAreNotSwept) {
            let deletes = self.ledger.with(|book| std::mem::take(&mut book.deletes));
            swept.removed += deletes;
        }
        Ok(swept)
    }

    async fn stats(&self) -> Result<Stats> {
        self.inner.stats().await
    }

    async fn knock(&self, knocks: &[(Door, Knock)]) -> Result<()> {
        self.inner.knock(knocks).await
    }
}

impl<S: Storage> Careless<S> {
    /// Looks whether there is room, pauses, and stores.
    async fn put_after_a_count(&self, mut batch: Vec<PutRequest>) -> Result<Vec<Put>> {
        let mut full = HashSet::new();
        for (n, put) in batch.iter_mut().enumerate() {
            let pending = self
                .ledger
                .with(|book| *book.pending.entry(put.session).or_default());
            if pending >= put.max_pending {
                full.insert(n);
            }
        }
        tokio::time::sleep(PAUSE).await;
        let mut answers = Vec::new();
        for (n, mut put) in batch.into_iter().enumerate() {
            if full.contains(&n) {
                answers.push(Put::TooMany);
                continue;
            }
            self.ledger
                .with(|book| *book.pending.entry(put.session).or_default() += 1);
            put.max_pending = usize::MAX;
            answers.extend(self.inner.put_requests(&[put]).await?);
        }
        Ok(answers)
    }
}
