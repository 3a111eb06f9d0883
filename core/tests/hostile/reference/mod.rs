//! A second implementation of the seam: one map under one lock, written from
//! the documentation of [`Storage`] alone, with no eye to speed. All of its
//! data can be copied and put back, which is how the simulation loses some.

mod request;
mod steps;
mod stream;
mod waiting;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use mcp_adapter_core::{
    Cancelled, Capabilities, Count, InstanceId, Position, PrincipalKey, Result, RpcId, SessionKey,
    Stats, StreamId,
    storage::{
        Append, Appended, Beat, Claim, Cursor, Dead, Door, Entered, Generation, Held, Hold,
        HoldStart, Knock, NewSession, OpenStream, Profile, Put, PutRequest, Read, RequestKey,
        RequestState, Settle, Settled, Storage, StreamState, Swept, Target, UpdateSession, Updated,
    },
};
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::Instant};

pub(crate) use self::steps::Data;

/// Rules of the seam that a negative control switches off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Defects {
    /// Owners and epochs are not compared.
    pub(crate) no_fencing: bool,
    /// A repeat is stored and answered as if it were new.
    pub(crate) no_repeat_safety: bool,
    /// The epoch of a shared stream is counted from what is stored alone, so
    /// that a history that was lost gives its ids out again.
    pub(crate) epochs_from_data: bool,
    /// Nothing remembers a deleted session, so that a create that was held up
    /// brings it back.
    pub(crate) no_tombstones: bool,
    /// The repeat of an update is recognised by what it writes, not by its name.
    pub(crate) updates_by_content: bool,
    /// All holds of the standalone stream look like one, so that who comes back
    /// always goes on with the last one.
    pub(crate) returns_take_over: bool,
    /// No holds are remembered.
    pub(crate) holds_forgotten: bool,
}

impl Defects {
    /// The state as a backend with these defects shows it.
    fn shown(self, mut state: StreamState) -> StreamState {
        if self.returns_take_over {
            state.holds = state.holds.pop().map_or_else(Vec::new, |last| {
                vec![HoldStart {
                    began: Position::START,
                    ..last
                }]
            });
        }
        if self.holds_forgotten {
            state.holds.clear();
        }
        state
    }
}

struct Inner {
    data: Data,
    /// Raised by every restart; part of no copy.
    generation: u32,
    bells: BTreeMap<InstanceId, mpsc::UnboundedSender<Result<Knock>>>,
    defects: Defects,
}

/// The store. Clones share it.
#[derive(Clone)]
pub(crate) struct Reference(Arc<Mutex<Inner>>);

/// What a step is done with.
pub(crate) struct Context {
    pub(crate) now: Instant,
    pub(crate) generation: u32,
    pub(crate) defects: Defects,
    /// What is sent to whom after it.
    pub(crate) knocks: Vec<(InstanceId, Knock)>,
}

impl Context {
    pub(crate) fn wake(&mut self, whom: Option<InstanceId>, session: &SessionKey, target: Target) {
        self.knocks
            .extend(whom.map(|whom| (whom, Knock::Wake(*session, target))));
    }
}

impl Reference {
    pub(crate) fn new(defects: Defects) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            data: Data::default(),
            generation: 1,
            bells: BTreeMap::new(),
            defects,
        })))
    }

    /// A copy of all data.
    pub(crate) fn copy(&self) -> Data {
        self.0.lock().data.clone()
    }

    /// The server starts anew, with these data.
    pub(crate) fn restart(&self, data: Option<Data>) {
        let mut inner = self.0.lock();
        inner.generation += 1;
        inner.bells.clear();
        if let Some(data) = data {
            inner.data = data;
        }
    }

    /// One atomic step.
    fn step<T>(&self, step: impl FnOnce(&mut Data, &mut Context) -> T) -> T {
        let mut inner = self.0.lock();
        let mut context = Context {
            now: Instant::now(),
            generation: inner.generation,
            defects: inner.defects,
            knocks: Vec::new(),
        };
        inner.data.purge(context.now);
        let answer = step(&mut inner.data, &mut context);
        for (whom, knock) in context.knocks {
            inner.knock(Door::Of(whom), &knock);
        }
        answer
    }
}

impl Inner {
    /// A door that nobody listens at swallows the knock.
    fn knock(&self, door: Door, knock: &Knock) {
        for (instance, bell) in &self.bells {
            if door == Door::All || door == Door::Of(*instance) {
                let _ = bell.send(Ok(knock.clone()));
            }
        }
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reference")
    }
}

#[async_trait]
impl Storage for Reference {
    fn profile(&self) -> Profile {
        Profile::inline("reference", Capabilities::server(Duration::from_millis(1)))
    }

    async fn attach(&self, _: InstanceId) -> Result<Generation> {
        let generation = self.0.lock().generation;
        Ok(Generation(format!("boot-{generation}").into()))
    }

    async fn doorbell(&self, me: InstanceId) -> Result<BoxStream<'static, Result<Knock>>> {
        let (bell, knocks) = mpsc::unbounded_channel();
        self.0.lock().bells.insert(me, bell);
        Ok(Box::pin(futures::stream::unfold(
            knocks,
            |mut knocks| async move { Some((knocks.recv().await?, knocks)) },
        )))
    }

    async fn create(&self, session: &NewSession) -> Result<bool> {
        Ok(self.step(|data, context| data.create(context, session)))
    }

    async fn enter(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
        open: Option<&OpenStream>,
    ) -> Result<Entered> {
        Ok(self.step(|data, context| data.enter(context, session, principal, open)))
    }

    async fn update(&self, update: &UpdateSession) -> Result<Updated> {
        Ok(self.step(|data, context| data.update(context, update)))
    }

    async fn delete(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
    ) -> Result<Option<Vec<InstanceId>>> {
        Ok(self.step(|data, context| data.delete(context, session, principal)))
    }

    async fn append(&self, batch: &[Append]) -> Result<Vec<Appended>> {
        let one = |append| self.step(|data, context| data.append(context, append));
        Ok(batch.iter().map(one).collect())
    }

    async fn read(&self, cursors: &[Cursor]) -> Result<Vec<Read>> {
        let one = |cursor| self.step(|data, context| data.read(context, cursor));
        Ok(cursors.iter().map(one).collect())
    }

    async fn hold(
        &self,
        session: &SessionKey,
        stream: &StreamId,
        me: InstanceId,
        hold: Hold,
    ) -> Result<Held> {
        Ok(self.step(|data, context| data.hold(context, session, stream, me, hold)))
    }

    async fn shrink(&self, session: &SessionKey, max_bytes: u64) -> Result<u64> {
        Ok(self.step(|data, _| data.shrink(session, max_bytes)))
    }

    async fn put_requests(&self, batch: &[PutRequest]) -> Result<Vec<Put>> {
        let one = |put| self.step(|data, context| data.put(context, put));
        Ok(batch.iter().map(one).collect())
    }

    async fn settle(&self, batch: &[Settle]) -> Result<Vec<Settled>> {
        let one = |settle| self.step(|data, context| data.settle(context, settle));
        Ok(batch.iter().map(one).collect())
    }

    async fn requests(&self, keys: &[RequestKey]) -> Result<Vec<RequestState>> {
        let one = |key| self.step(|data, _| data.request(key));
        Ok(keys.iter().map(one).collect())
    }

    async fn mark_cancel(&self, session: &SessionKey, id: &RpcId) -> Result<Option<Cancelled>> {
        Ok(self.step(|data, context| data.mark_cancel(context, session, id)))
    }

    async fn heartbeat(&self, me: Beat, ttl: Duration) -> Result<Vec<Beat>> {
        Ok(self.step(|data, context| data.heartbeat(context, me, ttl)))
    }

    async fn claim(&self, batch: &[Claim]) -> Result<usize> {
        let one = |claim: &&Claim| self.step(|data, context| data.claim(context, claim));
        Ok(batch.iter().filter(one).count())
    }

    async fn sweep(&self, budget: usize, dead: &[Dead], finished_ttl: Duration) -> Result<Swept> {
        Ok(self.step(|data, context| data.sweep(context, budget, dead, finished_ttl)))
    }

    async fn stats(&self) -> Result<Stats> {
        Ok(Stats::new(
            self.step(|data, _| data.stats()).map(Count::Exact),
        ))
    }

    async fn knock(&self, knocks: &[(Door, Knock)]) -> Result<()> {
        let inner = self.0.lock();
        for (door, knock) in knocks {
            inner.knock(*door, knock);
        }
        Ok(())
    }
}
