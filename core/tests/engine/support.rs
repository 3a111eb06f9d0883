//! A backend far away: the memory backend behind lanes, whose link the test
//! cuts, whose replies it drops and whose knocks it loses.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use mcp_adapter_core::{
    Applied, Cancelled, Capabilities, Engine, Error, EventId, InstanceId, Limits, OutcomeKind,
    Position, PrincipalKey, Result, RpcId, SessionAdapter, SessionId, SessionKey, SessionRecord,
    Stats, StreamId, StreamWriter, Tail, TailEvent, TailFrom,
    storage::{
        Append, Appended, Beat, Claim, Cursor, Dead, Door, Entered, Generation, Held, Hold, Knock,
        NewSession, OpenStream, Profile, Put, PutRequest, Read, RequestKey, RequestState, Settle,
        Settled, Storage, Swept, UpdateSession, Updated,
    },
};
use mcp_adapter_memory::MemoryStorage;
use parking_lot::Mutex;

/// What the test does to one instance's link.
#[derive(Default)]
pub(crate) struct Link {
    /// No step gets through.
    down: AtomicBool,
    /// This part of the store, where there is one, leaves steps without an answer.
    away: Mutex<Option<usize>>,
    /// So many writes take effect, and their answers are lost.
    lost_replies: AtomicUsize,
    /// Reads see a request's deadline before it counts for those who end it.
    early: AtomicBool,
    /// No knock arrives.
    deaf: AtomicBool,
    /// Another history of the server's data.
    generation: Mutex<Option<Generation>>,
    cut: tokio::sync::Notify,
    pub(crate) steps: AtomicUsize,
}

impl Link {
    /// Cuts the link; the doorbell ends.
    pub(crate) fn cut(&self) {
        self.down.store(true, Ordering::SeqCst);
        self.cut.notify_waiters();
    }

    pub(crate) fn mend(&self) {
        self.down.store(false, Ordering::SeqCst);
    }

    /// The shard with this session does not answer, until `None` is.
    pub(crate) fn shard_away(&self, shard: Option<usize>) {
        *self.away.lock() = shard;
    }

    pub(crate) fn lose_replies(&self, count: usize) {
        self.lost_replies.store(count, Ordering::SeqCst);
    }

    pub(crate) fn replies_left_to_lose(&self) -> usize {
        self.lost_replies.load(Ordering::SeqCst)
    }

    pub(crate) fn see_deadlines_early(&self) {
        self.early.store(true, Ordering::SeqCst);
    }

    pub(crate) fn lose_knocks(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }

    /// The server comes back with another history.
    pub(crate) fn change_generation(&self) {
        *self.generation.lock() = Some(Generation("another".into()));
        self.cut.notify_waiters();
    }

    fn pass(&self, operation: &'static str) -> Result<()> {
        self.steps.fetch_add(1, Ordering::SeqCst);
        if self.down.load(Ordering::SeqCst) {
            return Err(Error::unavailable(operation, Applied::No));
        }
        Ok(())
    }

    fn reply<T>(&self, operation: &'static str, answer: T) -> Result<T> {
        let lose = |count: usize| count.checked_sub(1);
        let lost = self
            .lost_replies
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, lose);
        if lost.is_ok() || self.down.load(Ordering::SeqCst) {
            return Err(Error::unavailable(operation, Applied::Unknown));
        }
        Ok(answer)
    }
}

const SHARDS: usize = 2;
/// How long a step waits for a shard that does not answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(4);

pub(crate) fn shard_of(session: &SessionKey) -> usize {
    usize::from(session.0[31]) % SHARDS
}

pub(crate) struct Remote {
    inner: MemoryStorage,
    pub(crate) link: Arc<Link>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remote")
    }
}

impl Remote {
    /// A step that concerns these sessions.
    async fn reach<'a>(
        &self,
        operation: &'static str,
        sessions: impl IntoIterator<Item = &'a SessionKey>,
    ) -> Result<()> {
        let away = *self.link.away.lock();
        if sessions
            .into_iter()
            .any(|session| Some(shard_of(session)) == away)
        {
            tokio::time::sleep(PATIENCE).await;
            return Err(Error::unavailable(operation, Applied::No));
        }
        Ok(())
    }
}

macro_rules! forward {
    ($self:ident, $sessions:expr, $name:ident($($argument:expr),*)) => {{
        $self.reach(stringify!($name), $sessions).await?;
        forward!($self, $name($($argument),*))
    }};
    ($self:ident, $name:ident($($argument:expr),*)) => {{
        $self.link.pass(stringify!($name))?;
        // A round trip takes time: others run between sending and answering.
        tokio::task::yield_now().await;
        let answer = $self.inner.$name($($argument),*).await?;
        $self.link.reply(stringify!($name), answer)
    }};
}

#[async_trait]
impl Storage for Remote {
    fn profile(&self) -> Profile {
        let capabilities = Capabilities::server(Duration::from_millis(1));
        Profile::remote("remote", capabilities, 2).with_shards(SHARDS)
    }
    fn shard_of(&self, session: &SessionKey) -> usize {
        shard_of(session)
    }
    async fn attach(&self, me: InstanceId) -> Result<Generation> {
        self.link.pass("attach")?;
        let generation = self.inner.attach(me).await?;
        Ok(self.link.generation.lock().clone().unwrap_or(generation))
    }
    async fn doorbell(&self, me: InstanceId) -> Result<BoxStream<'static, Result<Knock>>> {
        self.link.pass("doorbell")?;
        let link = Arc::clone(&self.link);
        let knocks = self.inner.doorbell(me).await?;
        let heard = knocks.filter(move |knock| {
            let deaf = link.deaf.load(Ordering::SeqCst);
            let wake = knock.as_ref().is_ok_and(Knock::is_hint);
            futures::future::ready(!(deaf && wake))
        });
        let link = Arc::clone(&self.link);
        Ok(heard
            .take_until(async move { link.cut.notified().await })
            .boxed())
    }
    async fn create(&self, session: &NewSession) -> Result<bool> {
        forward!(self, [&session.session], create(session))
    }
    async fn enter(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
        open: Option<&OpenStream>,
    ) -> Result<Entered> {
        forward!(self, [session], enter(session, principal, open))
    }
    async fn update(&self, update: &UpdateSession) -> Result<Updated> {
        forward!(self, update(update))
    }
    async fn delete(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
    ) -> Result<Option<Vec<InstanceId>>> {
        forward!(self, delete(session, principal))
    }
    async fn append(&self, batch: &[Append]) -> Result<Vec<Appended>> {
        forward!(self, batch.iter().map(|one| &one.session), append(batch))
    }
    async fn read(&self, cursors: &[Cursor]) -> Result<Vec<Read>> {
        forward!(self, cursors.iter().map(|one| &one.session), read(cursors))
    }
    async fn hold(
        &self,
        session: &SessionKey,
        stream: &StreamId,
        me: InstanceId,
        hold: Hold,
    ) -> Result<Held> {
        forward!(self, [session], hold(session, stream, me, hold))
    }
    async fn shrink(&self, session: &SessionKey, max_bytes: u64) -> Result<u64> {
        forward!(self, shrink(session, max_bytes))
    }
    async fn put_requests(&self, batch: &[PutRequest]) -> Result<Vec<Put>> {
        forward!(
            self,
            batch.iter().map(|one| &one.session),
            put_requests(batch)
        )
    }
    async fn settle(&self, batch: &[Settle]) -> Result<Vec<Settled>> {
        forward!(self, batch.iter().map(|one| &one.session), settle(batch))
    }
    async fn requests(&self, keys: &[RequestKey]) -> Result<Vec<RequestState>> {
        let sessions = keys.iter().map(|one| &one.session);
        let read: Result<Vec<_>> = forward!(self, sessions, requests(keys));
        let early = self.link.early.load(Ordering::SeqCst);
        let passed = |state| match state {
            RequestState::Pending { .. } if early => {
                RequestState::Ended(OutcomeKind::TimedOut, Bytes::new())
            }
            state => state,
        };
        read.map(|states| states.into_iter().map(passed).collect())
    }
    async fn mark_cancel(&self, session: &SessionKey, id: &RpcId) -> Result<Option<Cancelled>> {
        forward!(self, mark_cancel(session, id))
    }
    async fn heartbeat(&self, me: Beat, ttl: Duration) -> Result<Vec<Beat>> {
        // It has a part in each shard.
        let away = self.link.away.lock().is_some();
        if away {
            tokio::time::sleep(PATIENCE).await;
            return Err(Error::unavailable("heartbeat", Applied::Unknown));
        }
        // Not through `reply`: which write loses its answer is the test's choice.
        self.link.pass("heartbeat")?;
        self.inner.heartbeat(me, ttl).await
    }
    async fn claim(&self, batch: &[Claim]) -> Result<usize> {
        forward!(self, claim(batch))
    }
    async fn sweep(&self, budget: usize, dead: &[Dead], finished_ttl: Duration) -> Result<Swept> {
        self.link.pass("sweep")?;
        self.inner.sweep(budget, dead, finished_ttl).await
    }
    async fn stats(&self) -> Result<Stats> {
        forward!(self, stats())
    }
    async fn knock(&self, knocks: &[(Door, Knock)]) -> Result<()> {
        self.link.pass("knock")?;
        self.inner.knock(knocks).await
    }
}

/// Instances of one store.
pub(crate) struct Fleet {
    store: MemoryStorage,
    pub(crate) limits: Limits,
}

pub(crate) struct Instance {
    pub(crate) engine: Engine<Remote>,
    pub(crate) link: Arc<Link>,
}

impl Instance {
    /// A session that is there.
    pub(crate) async fn begin(&self) -> SessionId {
        let id = session();
        let created = SessionAdapter::create(&self.engine, &id, record()).await;
        assert!(created.is_ok(), "{created:?}");
        id
    }
}

impl Fleet {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            store: MemoryStorage::new(),
            limits,
        }
    }

    /// An instance behind a link.
    pub(crate) fn instance(&self) -> Instance {
        let link = Arc::<Link>::default();
        let storage = Remote {
            inner: self.store.clone(),
            link: Arc::clone(&link),
        };
        Instance {
            engine: Engine::new(storage, self.limits.clone()),
            link,
        }
    }

    /// An instance without one.
    pub(crate) fn inline(&self) -> Engine<MemoryStorage> {
        Engine::new(self.store.clone(), self.limits.clone())
    }
}

pub(crate) fn record() -> SessionRecord {
    SessionRecord {
        protocol: "2025-11-25".into(),
        ..SessionRecord::default()
    }
}

pub(crate) fn session() -> SessionId {
    SessionId::generate()
}

pub(crate) fn number(id: i64) -> RpcId {
    RpcId::Number(id)
}

/// The next item of a tail but [`begins`], which must come.
pub(crate) async fn next(tail: &mut Tail) -> TailEvent {
    loop {
        let item = any(tail).await;
        if !matches!(item, TailEvent::Begins { .. }) {
            return item;
        }
    }
}

/// Where a tail of the standalone stream begins, which must come first.
pub(crate) async fn begins(tail: &mut Tail) -> Position {
    begins_in(tail).await.0
}

/// As [`begins`], and in which hold.
pub(crate) async fn begins_in(tail: &mut Tail) -> (Position, u64) {
    match any(tail).await {
        TailEvent::Begins { after, hold } => (after.position, hold),
        other => panic!("{other:?}"),
    }
}

async fn any(tail: &mut Tail) -> TailEvent {
    let item = tokio::time::timeout(Duration::from_secs(120), tail.next()).await;
    item.expect("the tail is not stuck")
        .expect("a tail ends with End")
}

/// The next item as text: data, `gap`, or the end's reason.
pub(crate) async fn text(tail: &mut Tail) -> String {
    show(next(tail).await)
}

pub(crate) fn show(item: TailEvent) -> String {
    match item {
        TailEvent::Event { data, .. } => String::from_utf8_lossy(&data).into_owned(),
        TailEvent::Unstored { data } => format!("unstored {}", String::from_utf8_lossy(&data)),
        TailEvent::Gap { .. } => "gap".into(),
        TailEvent::End(why) => format!("{why:?}"),
        other => format!("{other:?}"),
    }
}

/// All items up to the end.
pub(crate) async fn all(tail: &mut Tail) -> Vec<String> {
    let mut items = Vec::new();
    loop {
        let item = next(tail).await;
        let end = matches!(item, TailEvent::End(_));
        items.push(show(item));
        if end {
            return items;
        }
    }
}

pub(crate) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// The start of a stream, as the priming event names it.
pub(crate) fn start_of(stream: &StreamId) -> TailFrom {
    TailFrom::After(EventId::new(stream.clone(), Position::START))
}

/// Opens the stream of the call `request`.
pub(crate) async fn open(
    engine: &Engine<Remote>,
    id: &SessionId,
    request: i64,
) -> Box<dyn StreamWriter> {
    let entered = engine.enter(id, None, Some(&number(request))).await;
    let writer = entered.expect("the session is there").writer;
    writer.expect("a stream was asked for")
}
