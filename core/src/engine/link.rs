//! The wake-up link and the catch-up that makes up for what it loses (clauses
//! C5, E1, F2).

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt, future::join_all};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use super::{
    Link, Shared,
    follow::Follow,
    interest::{Owned, Snapshot, Wait},
    retry::{Backoff, within},
};
use crate::{
    error::{Error, ErrorKind, Result},
    id::SessionKey,
    request::Outcome,
    session::{EndReason, Revocation},
    signal::Signal,
    storage::{
        Cursor, Door, Knock, Read, RequestKey, RequestState, Storage, StreamEnd, StreamState,
        Target,
    },
};

/// Streams or requests in one batched read of the catch-up.
const BATCH: usize = 512;
/// Writers that may be waiting to look at their streams.
const CHECKS: usize = 4096;

/// What this instance has of one stream: written and followed here, it is read
/// once.
#[derive(Default)]
struct Interest {
    owned: Option<Arc<Owned>>,
    follows: Vec<Arc<Follow>>,
}

impl<S: Storage> Shared<S> {
    pub(super) async fn run_link(self: Arc<Self>) {
        let mut backoff = Backoff::new(self.limits.catch_up());
        loop {
            let opened = Instant::now();
            if let Err(error) = self.run_one_link().await {
                tracing::warn!(%error, "the wake-up link is down");
            }
            self.link.send_replace(Link::Down);
            let now = self.millis();
            let _ = self
                .link_down
                .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
            metrics::counter!("mcp_adapter_links_lost_total").increment(1);
            if opened.elapsed() > self.limits.probe_after() {
                backoff = Backoff::new(self.limits.catch_up());
            }
            backoff.wait().await;
        }
    }

    async fn run_one_link(self: &Arc<Self>) -> Result<()> {
        let attached = within("attach", self.deadline(), self.storage.attach(self.me)).await;
        self.note(&attached);
        let generation = attached?;
        // Writers first: from the next event on they write to a new epoch if
        // the backend may have lost the end of the old one.
        let former = self.generation.lock().replace(generation.clone());
        if former.is_some_and(|former| former != generation) {
            tracing::warn!("the backend came back with another history; writers open a new epoch");
            // An append that begins between the attach and this stands before what
            // is written again, which then shows as a gap.
            let pause = self.profile.repair.then(|| self.pause());
            for owned in self.interests.snapshot(Duration::MAX).owned {
                owned.state.lock().open_epoch();
            }
            if pause.is_some() {
                self.repair_all().await;
            }
        }
        let mut knocks =
            within("doorbell", self.deadline(), self.storage.doorbell(self.me)).await?;
        // Before anything is owned here: who has no heartbeat can be missed by
        // nobody.
        self.beat().await;
        self.everything();
        self.link_down.store(0, Ordering::Relaxed);
        self.link.send_replace(Link::Up);
        let mut probes = 0;
        loop {
            let silent = Instant::now() + self.limits.probe_after();
            let knock = match timeout_at(silent, knocks.next()).await {
                Ok(knock) => knock,
                Err(_) => {
                    probes += 1;
                    let until = Instant::now() + self.limits.probe_timeout();
                    let probe = [(Door::Of(self.me), Knock::Probe(probes))];
                    within("probe", until, self.storage.knock(&probe)).await?;
                    timeout_at(until, knocks.next()).await.map_err(|_| {
                        Error::new(ErrorKind::Timeout, "probe")
                            .with_message("nothing comes through the wake-up link")
                    })?
                }
            };
            match knock {
                Some(knock) => self.knocked(knock?),
                None => return Err(Error::new(ErrorKind::Unavailable, "doorbell")),
            }
        }
    }

    fn knocked(self: &Arc<Self>, knock: Knock) {
        match knock {
            Knock::Wake(session, target) => {
                let owned = self.interests.wake(&session, &target);
                if let (true, Target::Stream(stream)) = (owned.is_empty(), &target) {
                    let follows = self.interests.follows(&session, stream);
                    let (shared, stream) = (Arc::clone(self), stream.clone());
                    if !stream.is_standalone() && follows.is_empty() {
                        // Somebody believes that this instance writes it.
                        Self::spawn(async move { shared.disown(session, stream).await });
                    } else if stream.is_standalone()
                        && follows.iter().all(|follow| follow.number() == 0)
                    {
                        // Or that it holds it.
                        Self::spawn(async move { shared.let_go_of_lapsed(session).await });
                    }
                }
                self.check(owned);
            }
            Knock::Outcome {
                session,
                id,
                token,
                kind,
                payload,
            } => {
                let outcome = Outcome { kind, payload };
                self.interests.tell(&session, &id, token, &outcome);
            }
            Knock::Everything => self.everything(),
            Knock::Probe(_) => {}
            Knock::Signal {
                from,
                channel,
                payload,
            } => self
                .listeners
                .deliver(&channel, &Signal::new(from, payload)),
        }
    }

    /// Anything may have been missed: everybody looks.
    fn everything(&self) {
        let all = self.interests.snapshot(Duration::MAX);
        all.follows.iter().for_each(|follow| follow.wake());
        all.waits.iter().for_each(|wait| wait.wake());
        self.check(all.owned);
    }

    /// Has writers look at their streams soon. Over a bound it is left to the
    /// next round of catching up, which looks at all.
    fn check(&self, owned: Vec<Arc<Owned>>) {
        if owned.is_empty() {
            return;
        }
        let mut checks = self.checks.lock();
        if checks.len() < CHECKS {
            checks.extend(owned);
        }
        drop(checks);
        self.checked.notify_one();
    }

    pub(super) async fn run_catch_up(self: Arc<Self>) {
        let renew = self.limits.idle_ttl() / 3;
        let mut tick = interval(self.limits.catch_up().min(renew));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = tokio::select! {
                _ = tick.tick() => self.interests.snapshot(renew),
                () = self.checked.notified() => Snapshot {
                    owned: std::mem::take(&mut *self.checks.lock()),
                    ..Snapshot::default()
                },
            };
            self.catch_up(due).await;
        }
    }

    async fn catch_up(self: &Arc<Self>, due: Snapshot) {
        let Snapshot {
            owned,
            follows,
            waits,
            mut touch,
        } = due;
        let mut streams: Vec<Interest> = Vec::new();
        let mut index = std::collections::HashMap::new();
        for owned in owned {
            index.insert((owned.session, owned.stream.clone()), streams.len());
            streams.push(Interest {
                owned: Some(owned),
                ..Interest::default()
            });
        }
        for follow in follows {
            let at = *index
                .entry((follow.session, follow.stream.clone()))
                .or_insert_with(|| {
                    streams.push(Interest::default());
                    streams.len() - 1
                });
            streams[at].follows.push(follow);
        }
        for batch in streams.chunks(BATCH) {
            self.look_at_streams(batch, &mut touch).await;
        }
        for batch in waits.chunks(BATCH) {
            self.look_at_waits(batch).await;
        }
    }

    /// Reads a batch; the answers with their places in it. Where the store is in
    /// shards and a read has failed, each shard is read by itself, and not waited
    /// for long: one that is away hides nothing of the others.
    async fn look<K: Clone, R, F>(
        &self,
        keys: &[K],
        session: impl Fn(&K) -> &SessionKey,
        read: impl Fn(Vec<K>) -> F,
    ) -> Vec<(usize, R)>
    where
        F: Future<Output = Result<Vec<R>>>,
    {
        let mut parts: Vec<Vec<usize>> = vec![(0..keys.len()).collect()];
        let mut until = self.deadline();
        if self.apart.load(Ordering::Relaxed) {
            let mut shards: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for (number, key) in keys.iter().enumerate() {
                let shard = self.shard_of(session(key));
                shards.entry(shard).or_default().push(number);
            }
            parts = shards.into_values().collect();
            until = until.min(Instant::now() + self.limits.catch_up() / 2);
        }
        let reads = parts.into_iter().map(|part| {
            let read = read(part.iter().map(|number| keys[*number].clone()).collect());
            async move { (part, within("catch up", until, read).await) }
        });
        let mut all = Vec::with_capacity(keys.len());
        let mut failed = None;
        for (part, answers) in join_all(reads).await {
            match answers {
                Ok(answers) => all.extend(part.into_iter().zip(answers)),
                Err(error) => {
                    tracing::debug!(%error, "catching up failed; the next round goes on");
                    failed = Some(error);
                }
            }
        }
        let apart = failed.is_some() && self.profile.shards > 1;
        self.apart.store(apart, Ordering::Relaxed);
        self.note(&failed.map_or(Ok(()), Err));
        all
    }

    async fn look_at_streams(
        self: &Arc<Self>,
        batch: &[Interest],
        touch: &mut HashSet<SessionKey>,
    ) {
        let cursors: Vec<_> = batch
            .iter()
            .filter_map(|Interest { owned, follows }| {
                let (session, stream) = match (owned, follows.first()) {
                    (Some(owned), _) => (owned.session, &owned.stream),
                    (None, Some(follow)) => (follow.session, &follow.stream),
                    (None, None) => return None,
                };
                Some(Cursor {
                    // Once per session and round.
                    touch: touch.remove(&session),
                    ..Cursor::state_of(session, stream.clone())
                })
            })
            .collect();
        if cursors.is_empty() {
            return;
        }
        let read = |cursors: Vec<Cursor>| async move { self.storage.read(&cursors).await };
        let answers = self.look(&cursors, |cursor| &cursor.session, read).await;
        for (number, answer) in answers {
            let Interest { owned, follows } = &batch[number];
            if let Some(owned) = owned {
                self.look_at_owned(owned, &answer);
            }
            match answer {
                Read::Page { state, .. } => self.look_at_follows(follows, &state).await,
                Read::NoStream | Read::NoSession => {
                    follows.iter().for_each(|follow| follow.wake());
                }
            }
        }
    }

    fn look_at_owned(self: &Arc<Self>, owned: &Arc<Owned>, answer: &Read) {
        match answer {
            Read::NoSession => {
                owned.revoke(Revocation::SessionEnded);
                self.interests.remove_owned(owned);
            }
            Read::Page { state, .. } => {
                if state.end == Some(StreamEnd::OwnerLost) || state.owner != Some(self.me) {
                    owned.revoke(Revocation::Fenced);
                    self.interests.remove_owned(owned);
                    return;
                }
                if state.cancelled {
                    owned.revoke(Revocation::Cancelled);
                }
                if let Some(holder) = state.holder {
                    let mut own = owned.state.lock();
                    own.remote = Some(holder.instance).filter(|holder| *holder != self.me);
                    let older = |local: &Arc<Follow>| local.number() < holder.number;
                    if own.local.as_ref().is_some_and(older)
                        && let Some(local) = own.local.take()
                    {
                        local.end(EndReason::Superseded);
                    }
                }
                if state.end.is_none() {
                    self.finish_orphan(owned);
                } else {
                    self.interests.remove_owned(owned);
                }
            }
            // Lost, and the next append opens it again; or not there yet.
            Read::NoStream => {
                let (orphaned, finishing) = {
                    let state = owned.state.lock();
                    (state.orphaned, state.finishing)
                };
                let writes = orphaned.is_none() && !finishing;
                let there = owned.opened.elapsed() >= self.limits.lease();
                if writes && there && self.may_have_lost(owned) {
                    // Ended by others, and removed since.
                    owned.revoke(Revocation::Fenced);
                    self.interests.remove_owned(owned);
                } else if orphaned.is_some_and(|until| until <= Instant::now()) {
                    self.interests.remove_owned(owned);
                }
            }
        }
    }

    async fn look_at_follows(self: &Arc<Self>, follows: &[Arc<Follow>], state: &StreamState) {
        let Some(first) = follows.first() else {
            return;
        };
        let claimed = self
            .claim_if_dead(&first.session, &first.stream, state)
            .await;
        if let (None, Some(owner), false) = (state.end, state.owner, claimed)
            && first.asks(self.limits.lease() / 2)
        {
            if owner == self.me {
                self.disown(first.session, first.stream.clone()).await;
            } else {
                self.wake(owner, first.session, Target::Stream(first.stream.clone()));
            }
        }
        let waits = follows.iter().any(|follow| follow.number() == 0);
        if let (true, true, Some(holder)) = (first.stream.is_standalone(), waits, state.holder)
            && first.asks(self.limits.lease() / 2)
        {
            self.wake(
                holder.instance,
                first.session,
                Target::Stream(first.stream.clone()),
            );
        }
        let holder = state.holder.map(|holder| holder.number);
        let held_by_dead = |follow: &Follow| {
            follow.number() == 0
                && state
                    .holder
                    .is_none_or(|holder| self.observer.lock().dead(holder.instance).is_some())
        };
        for follow in follows {
            let superseded = follow.number() != 0 && holder != Some(follow.number());
            let news = follow.number() != 0 && follow.is_behind(state.top);
            if claimed || superseded || news || state.end.is_some() || held_by_dead(follow) {
                follow.wake();
            }
        }
    }

    async fn look_at_waits(&self, batch: &[Arc<Wait>]) {
        let keys: Vec<_> = batch
            .iter()
            .map(|wait| RequestKey {
                session: wait.session,
                id: wait.id.clone(),
                token: Some(wait.token),
            })
            .collect();
        let read = |keys: Vec<RequestKey>| async move { self.storage.requests(&keys).await };
        for (number, state) in self.look(&keys, |key| &key.session, read).await {
            if !matches!(state, RequestState::Pending { .. }) {
                batch[number].wake();
            }
        }
    }
}
