//! The backend with a defect.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use mcp_adapter_conformance::{BoxError, Clause};
use mcp_adapter_core::{
    Cancelled, Count, Error, ErrorKind, InstanceId, OutcomeKind, Position, PrincipalKey, Result,
    RpcId, SessionKey, Stats, StreamId, WaiterToken,
    storage::{
        Append, Appended, Beat, Claim, Cursor, Dead, Door, Entered, Generation, Held, Hold, Knock,
        NewSession, OpenStream, Place, Profile, Put, PutRequest, Read, RequestKey, RequestState,
        Settle, Settled, Storage, StreamState, Swept, Target, UpdateSession, Updated, Usage,
    },
};
use parking_lot::Mutex;

use crate::defects::{Defect, Rule};

/// What the defects of all instances on a store need to know.
#[derive(Debug, Default, Clone)]
pub(crate) struct Secrets(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    streams: Mutex<HashMap<StreamId, SessionKey>>,
    settled: Mutex<HashMap<RpcId, Instant>>,
    bytes: AtomicU64,
    created: AtomicU64,
    puts: Mutex<HashMap<RpcId, HashSet<u128>>>,
    /// Streams whose wake-ups are kept back.
    silent: Mutex<HashSet<StreamId>>,
    tries: AtomicU64,
    migrated: AtomicBool,
    migrating: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct Saboteur<S> {
    inner: S,
    secrets: Secrets,
    defect: Option<Defect>,
    rung: AtomicBool,
}

impl<S: Storage + Clone> Saboteur<S> {
    pub(crate) async fn open(
        inner: S,
        secrets: Secrets,
        defect: Option<Defect>,
    ) -> std::result::Result<Self, BoxError> {
        let own = &secrets.0;
        if defect == Some(Defect::Of(Clause::F5)) && !own.migrated.load(Ordering::SeqCst) {
            if own.migrating.swap(true, Ordering::SeqCst) {
                return Err("relation already exists".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            own.migrated.store(true, Ordering::SeqCst);
        }
        Ok(Self {
            inner,
            secrets,
            defect,
            rung: AtomicBool::new(false),
        })
    }

    fn has(&self, defect: Clause) -> bool {
        self.defect == Some(Defect::Of(defect))
    }

    fn misses(&self, rule: Rule) -> bool {
        self.defect == Some(Defect::Miss(rule))
    }

    async fn open_streams(&self) -> Result<HashSet<StreamId>> {
        let streams = self.secrets.0.streams.lock().clone();
        let mut open = HashSet::new();
        for (stream, session) in streams {
            let cursor = Cursor::state_of(session, stream.clone());
            if let Some(Read::Page { state, .. }) = self.inner.read(&[cursor]).await?.first()
                && state.end.is_none()
            {
                open.insert(stream);
            }
        }
        Ok(open)
    }

    async fn state_of(&self, append: &Append) -> Result<Option<StreamState>> {
        let cursor = Cursor::state_of(append.session, append.stream.clone());
        let page = self.inner.read(&[cursor]).await?.into_iter().next();
        Ok(match page {
            Some(Read::Page { state, .. }) => Some(state),
            _ => None,
        })
    }

    /// An append, and what is told of it, as rules are missed.
    async fn append_against_the_rules(&self, mut append: Append) -> Result<Appended> {
        if let Place::Owned { owner, position } = append.place
            && self.misses(Rule::FinishRaisesTop)
            && append.event.is_none()
            && let Some(state) = self.state_of(&append).await?
        {
            let position = state.top.min(position);
            append.place = Place::Owned { owner, position };
        }
        let call = !append.stream.is_standalone();
        if self.misses(Rule::SharedIsForNoCall)
            && call
            && matches!(append.place, Place::Shared { .. })
            && let Some(state) = self.state_of(&append).await?
        {
            append.place = Place::Owned {
                owner: state.owner.unwrap_or(InstanceId(0)),
                position: Position::new(state.top.epoch.max(1), state.top.seq + 1),
            };
        }
        let finish = append.event.is_none();
        let size = append.event.as_ref().map_or(0, |event| event.data.len());
        let mut answer = self.append_one(&append).await?;
        if self.misses(Rule::ClaimFencesFinish) && finish && answer == Appended::Fenced {
            answer = Appended::Stored {
                position: Position::new(1, 1),
                holder: None,
                usage: Usage::default(),
                repeat: false,
            };
        }
        if self.misses(Rule::NewestStays) && size > append.keep_bytes {
            self.inner.shrink(&append.session, 0).await?;
        }
        if let Appended::Stored { holder, usage, .. } = &mut answer {
            if self.misses(Rule::HolderIsTold) && *holder == append.wake {
                *holder = None;
            }
            if self.misses(Rule::UsageIsTold) {
                usage.session_bytes = 0;
            }
        }
        Ok(answer)
    }

    /// What the caller is told of an error.
    fn told<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            if self.has(Clause::F1) && error.kind() == ErrorKind::Unavailable {
                return Error::new(ErrorKind::InvalidArgument, error.operation());
            }
            error
        })
    }

    fn id(&self, id: &RpcId) -> RpcId {
        match id {
            RpcId::Number(number) if self.has(Clause::C3) => {
                RpcId::String(number.to_string().into())
            }
            id => id.clone(),
        }
    }

    fn token(&self, token: WaiterToken) -> WaiterToken {
        if self.has(Clause::C7) {
            return WaiterToken(0);
        }
        token
    }

    /// The session whose stream this is.
    fn session_of(&self, stream: &StreamId, session: SessionKey) -> SessionKey {
        let streams = self.secrets.0.streams.lock();
        let known = streams
            .get(stream)
            .copied()
            .filter(|_| self.has(Clause::E3));
        known.unwrap_or(session)
    }

    fn spoil(&self, append: &Append) -> Append {
        let mut append = append.clone();
        if self.has(Clause::E1)
            && let Place::Shared { tag, .. } = &mut append.place
        {
            *tag = self.secrets.0.tries.fetch_add(1, Ordering::SeqCst) + 1;
        }
        if self.has(Clause::E4) {
            append.keep_events = usize::MAX;
            append.keep_bytes = usize::MAX;
            append.trim = None;
        }
        if let (true, Some(event)) = (self.has(Clause::E7), &mut append.event) {
            event.data = String::from_utf8_lossy(&event.data).into_owned().into();
        }
        append
    }

    async fn append_one(&self, append: &Append) -> Result<Appended> {
        let one = |append: Append| async move {
            let answers = self.inner.append(&[append]).await?;
            Ok::<_, Error>(answers[0])
        };
        let append = self.spoil(append);
        if self.has(Clause::E8) && append.finish.is_some() && append.event.is_some() {
            let event = Append {
                finish: None,
                ..append.clone()
            };
            let stored = one(event).await?;
            tokio::time::sleep(Duration::from_millis(10)).await;
            let finish = Append {
                event: None,
                ..append
            };
            one(finish).await?;
            return Ok(stored);
        }
        let appended = one(append.clone()).await?;
        if appended != Appended::NoSession {
            return Ok(appended);
        }
        if self.has(Clause::S4) {
            let again = NewSession {
                session: append.session,
                principal: PrincipalKey::ANONYMOUS,
                record: Bytes::from_static(b"{\"v\":1,\"protocol\":\"\"}"),
                idle_ttl: Duration::from_secs(60),
                absolute_ttl: None,
                creator: WaiterToken::generate(),
            };
            self.inner.create(&again).await?;
            return one(append).await;
        }
        if self.has(Clause::E6) {
            return Ok(Appended::Stored {
                position: Position::new(1, 1),
                holder: None,
                usage: Usage::default(),
                repeat: false,
            });
        }
        Ok(appended)
    }
}

// A method that is provided must reach the storage, too.
#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<S: Storage + Clone> Storage for Saboteur<S> {
    fn profile(&self) -> Profile {
        let profile = self.inner.profile();
        match self.misses(Rule::InlineNeverWaits) {
            true => Profile::inline(profile.name, profile.capabilities),
            false => profile,
        }
    }

    fn shard_of(&self, session: &SessionKey) -> usize {
        self.inner.shard_of(session)
    }

    // What is sabotaged is far away, and not inline.
    fn append_inline(&self, append: &Append) -> Result<Appended> {
        self.inner.append_inline(append)
    }

    async fn attach(&self, me: InstanceId) -> Result<Generation> {
        self.inner.attach(me).await
    }

    async fn doorbell(&self, me: InstanceId) -> Result<BoxStream<'static, Result<Knock>>> {
        let knocks = self.inner.doorbell(me).await?;
        let (lag, secrets) = (self.misses(Rule::LagIsTold), self.secrets.clone());
        let told = move |knock: &Result<Knock>| match knock {
            Ok(Knock::Everything) => !lag,
            Ok(Knock::Wake(_, Target::Stream(stream))) => !secrets.0.silent.lock().contains(stream),
            _ => true,
        };
        let knocks = knocks.filter(move |knock| futures::future::ready(told(knock)));
        let knocks = knocks.boxed();
        if self.rung.swap(true, Ordering::SeqCst) && self.has(Clause::F2) {
            return Ok(knocks.filter(|_| futures::future::ready(false)).boxed());
        }
        Ok(knocks)
    }

    async fn create(&self, session: &NewSession) -> Result<bool> {
        let mut session = session.clone();
        if self.has(Clause::S3) {
            session.idle_ttl *= 1000;
        }
        let created = self.told(self.inner.create(&session).await)?;
        self.secrets
            .0
            .created
            .fetch_add(u64::from(created), Ordering::SeqCst);
        Ok(created || self.has(Clause::S1))
    }

    async fn enter(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
        open: Option<&OpenStream>,
    ) -> Result<Entered> {
        if let Some(open) = open {
            let mut streams = self.secrets.0.streams.lock();
            streams.insert(open.stream.clone(), *session);
        }
        self.told(self.inner.enter(session, principal, open).await)
    }

    async fn update(&self, update: &UpdateSession) -> Result<Updated> {
        let mut update = update.clone();
        loop {
            let updated = self.inner.update(&update).await?;
            if updated != Updated::Conflict || !self.has(Clause::S2) {
                return Ok(updated);
            }
            update.revision += 1;
        }
    }

    async fn delete(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
    ) -> Result<Option<Vec<InstanceId>>> {
        let deleted = self.inner.delete(session, principal).await?;
        if deleted.is_some() {
            self.secrets.0.created.fetch_sub(1, Ordering::SeqCst);
        }
        Ok(deleted)
    }

    async fn append(&self, batch: &[Append]) -> Result<Vec<Appended>> {
        if self.defect.is_none() {
            return self.inner.append(batch).await;
        }
        let mut answers = Vec::new();
        for append in batch {
            answers.push(self.told(self.append_against_the_rules(append.clone()).await)?);
        }
        Ok(answers)
    }

    async fn read(&self, cursors: &[Cursor]) -> Result<Vec<Read>> {
        let mut cursors = cursors.to_vec();
        for cursor in &mut cursors {
            cursor.session = self.session_of(&cursor.stream, cursor.session);
            if self.has(Clause::E2) && cursor.max_events > 0 {
                cursor.after.seq += 1;
            }
        }
        let mut pages = self.told(self.inner.read(&cursors).await)?;
        for (page, cursor) in pages.iter_mut().zip(&cursors) {
            let Read::Page { events, state } = page else {
                continue;
            };
            if self.misses(Rule::ClaimOpensEpoch) && state.top == Position::new(2, 0) {
                state.top = Position::new(1, 0);
            }
            let hole = events.first().is_some_and(|first| {
                first.position.seq > cursor.after.seq + 1 && first.position > cursor.after
            });
            if !(hole && self.has(Clause::E5)) {
                continue;
            }
            let epoch = events[0].position.epoch + 1;
            for (seq, event) in (1..).zip(events) {
                event.position = Position::new(epoch, seq);
                event.prev = Some(cursor.after);
            }
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
        let session = self.session_of(stream, *session);
        let mut hold = hold;
        if let (true, Hold::TakeFrom(Some(from))) = (self.misses(Rule::NumberIsCompared), &mut hold)
        {
            let cursor = Cursor::state_of(session, stream.clone());
            if let Some(Read::Page { state, .. }) = self.inner.read(&[cursor]).await?.first()
                && let Some(holder) = state.holder
                && holder.instance == from.instance
            {
                *from = holder;
            }
        }
        let held = self.inner.hold(&session, stream, me, hold).await;
        match (hold, held) {
            (
                Hold::Take,
                Ok(Held::Done {
                    number,
                    former,
                    cursor,
                    state,
                }),
            ) if self.has(Clause::E9) && former.is_some() => {
                // As it was before.
                let former = former.unwrap_or(me);
                self.inner
                    .hold(&session, stream, former, Hold::Take)
                    .await?;
                Ok(Held::Done {
                    number,
                    former: None,
                    cursor,
                    state,
                })
            }
            (_, held) => self.told(held),
        }
    }

    async fn shrink(&self, session: &SessionKey, max_bytes: u64) -> Result<u64> {
        self.inner.shrink(session, max_bytes).await
    }

    async fn put_requests(&self, batch: &[PutRequest]) -> Result<Vec<Put>> {
        let mut batch = batch.to_vec();
        for put in &mut batch {
            put.id = self.id(&put.id);
            put.token = self.token(put.token);
            let mut puts = self.secrets.0.puts.lock();
            puts.entry(put.id.clone()).or_default().insert(put.token.0);
            drop(puts);
            if self.has(Clause::C4) {
                put.timeout *= 1000;
            }
            if self.has(Clause::F4) {
                put.max_pending = usize::MAX;
            }
        }
        if self.has(Clause::C1) {
            let (inner, count) = (self.inner.clone(), batch.len());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                inner.put_requests(&batch).await
            });
            return Ok(vec![Put::Done; count]);
        }
        self.told(self.inner.put_requests(&batch).await)
    }

    async fn settle(&self, batch: &[Settle]) -> Result<Vec<Settled>> {
        let mut batch = batch.to_vec();
        for settle in &mut batch {
            settle.id = self.id(&settle.id);
            settle.token = settle.token.map(|token| self.token(token));
            if self.misses(Rule::AttemptIsKept) {
                // Another try to the request that is there now.
                let puts = self.secrets.0.puts.lock();
                let made = puts.get(&settle.id).map_or(0, HashSet::len);
                settle.attempt = WaiterToken(settle.attempt.0.wrapping_add(made as u128));
            }
            if self.has(Clause::C6) {
                settle.payload.truncate(8000);
            }
            if settle.outcome == OutcomeKind::Answered {
                let mut settled = self.secrets.0.settled.lock();
                settled.insert(settle.id.clone(), Instant::now());
            }
        }
        let mut answers = self.told(self.inner.settle(&batch).await)?;
        for answer in &mut answers {
            if let (true, Settled::Already(_)) = (self.has(Clause::C2), &answer) {
                *answer = Settled::Won;
            }
        }
        Ok(answers)
    }

    async fn requests(&self, keys: &[RequestKey]) -> Result<Vec<RequestState>> {
        let mut keys = keys.to_vec();
        for key in &mut keys {
            key.id = self.id(&key.id);
            key.token = key.token.map(|token| self.token(token));
        }
        let mut states = self.told(self.inner.requests(&keys).await)?;
        for (state, key) in states.iter_mut().zip(&keys) {
            let settled = self.secrets.0.settled.lock().get(&key.id).copied();
            let fresh = settled.is_some_and(|at| at.elapsed() < Duration::from_secs(4));
            if self.has(Clause::C5) && fresh {
                *state = RequestState::Pending {
                    owner: InstanceId(0),
                };
            }
        }
        Ok(states)
    }

    async fn mark_cancel(&self, session: &SessionKey, id: &RpcId) -> Result<Option<Cancelled>> {
        self.inner.mark_cancel(session, id).await
    }

    async fn heartbeat(&self, me: Beat, ttl: Duration) -> Result<Vec<Beat>> {
        let count = if self.has(Clause::F3) { 1 } else { me.count };
        self.inner.heartbeat(Beat { count, ..me }, ttl).await
    }

    async fn claim(&self, batch: &[Claim]) -> Result<usize> {
        self.inner.claim(batch).await
    }

    async fn sweep(&self, budget: usize, dead: &[Dead], finished_ttl: Duration) -> Result<Swept> {
        if self.has(Clause::S5) {
            return Ok(Swept::default());
        }
        if self.misses(Rule::SweepWakes) {
            let open = self.open_streams().await?;
            let swept = self.inner.sweep(budget, dead, finished_ttl).await;
            let still = self.open_streams().await?;
            let mut silent = self.secrets.0.silent.lock();
            silent.extend(open.difference(&still).cloned());
            return swept;
        }
        self.inner.sweep(budget, dead, finished_ttl).await
    }

    async fn stats(&self) -> Result<Stats> {
        let mut stats = self.told(self.inner.stats().await)?;
        let bytes = stats.bytes.value();
        let most = self
            .secrets
            .0
            .bytes
            .fetch_max(bytes, Ordering::SeqCst)
            .max(bytes);
        if self.misses(Rule::ExpiredIsNotCounted) {
            stats.sessions = Count::Exact(self.secrets.0.created.load(Ordering::SeqCst));
        }
        if self.has(Clause::S6) {
            stats.bytes = Count::Exact(most);
        }
        Ok(stats)
    }

    async fn knock(&self, knocks: &[(Door, Knock)]) -> Result<()> {
        let mut knocks = knocks.to_vec();
        for (door, knock) in &mut knocks {
            if let (true, Knock::Signal { from, .. }) = (self.has(Clause::SG), knock) {
                *door = Door::Of(*from);
            }
        }
        self.inner.knock(&knocks).await
    }
}
