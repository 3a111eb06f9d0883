//! The hostile backend: a store behind a link.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::{FutureExt, stream::BoxStream};
use mcp_adapter_core::{
    Applied, Cancelled, Capabilities, Error, InstanceId, PrincipalKey, Result, RpcId, SessionKey,
    Stats, StreamId,
    storage::{
        Append, Appended, Beat, Claim, Cursor, Dead, Door, Entered, Generation, Held, Hold, Knock,
        NewSession, OpenStream, Profile, Put, PutRequest, Read, RequestKey, RequestState, Settle,
        Settled, Storage, Swept, UpdateSession, Updated,
    },
};

use super::{history::What, link::Link};

pub(crate) struct Wire(pub(crate) Arc<Link>);

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wire({})", self.0.no)
    }
}

/// Does a step on owned copies of its arguments: it may outlive its caller, and
/// may be done twice.
macro_rules! call {
    ($self:ident, $name:literal, [$($arg:ident = $value:expr),*], $storage:ident => $step:expr) => {
        call!($self, $name, false, [$($arg = $value),*], $storage => $step)
    };
    ($self:ident, $name:literal, $lose:expr, [$($arg:ident = $value:expr),*],
     $storage:ident => $step:expr) => {{
        $(let $arg = $value;)*
        let step = move |$storage: Arc<dyn Storage>| {
            $(let $arg = ToOwned::to_owned(&$arg);)*
            async move { $step.await }.boxed()
        };
        $self.0.call($name, step, $lose).await
    }};
}

#[async_trait]
impl Storage for Wire {
    fn profile(&self) -> Profile {
        let capabilities = Capabilities::server(Duration::from_millis(1));
        let profile = Profile::remote("hostile", capabilities, 2);
        if self.0.world.repair {
            profile.with_repair()
        } else {
            profile
        }
    }

    async fn attach(&self, me: InstanceId) -> Result<Generation> {
        call!(self, "attach", [], storage => storage.attach(me))
    }

    async fn doorbell(&self, me: InstanceId) -> Result<BoxStream<'static, Result<Knock>>> {
        // Opened where it is waited for: a door that nobody waits for any more
        // must not take the place of a later one.
        let (state, up) = (*self.0.state.borrow(), self.0.world.server.borrow().up);
        if state.down || state.dead || state.stalled || !up {
            return Err(Error::unavailable("doorbell", Applied::No));
        }
        let bell = self.0.world.storage.doorbell(me).await?;
        Ok(self.0.doorbell(bell))
    }

    async fn create(&self, session: &NewSession) -> Result<bool> {
        call!(self, "create", [session = session.clone()], storage => storage.create(&session))
    }

    async fn enter(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
        open: Option<&OpenStream>,
    ) -> Result<Entered> {
        call!(self, "enter", [session = *session, principal = *principal, open = open.cloned()],
            storage => storage.enter(&session, &principal, open.as_ref()))
    }

    async fn update(&self, update: &UpdateSession) -> Result<Updated> {
        call!(self, "update", [update = update.clone()], storage => storage.update(&update))
    }

    async fn delete(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
    ) -> Result<Option<Vec<InstanceId>>> {
        call!(self, "delete", [session = *session, principal = *principal],
            storage => storage.delete(&session, &principal))
    }

    async fn append(&self, batch: &[Append]) -> Result<Vec<Appended>> {
        let part = self.0.part_of(batch.len());
        let batch = batch[..part.unwrap_or(batch.len())].to_vec();
        call!(self, "append", part.is_some(), [batch = batch], storage => storage.append(&batch))
    }

    async fn read(&self, cursors: &[Cursor]) -> Result<Vec<Read>> {
        let catch_up = |cursor: &Cursor| {
            cursor.max_events == 0 && !(cursor.touch && cursor.stream.is_standalone())
        };
        if self.0.world.no_catch_up && cursors.iter().all(catch_up) {
            return Err(Error::unavailable("read", Applied::No));
        }
        call!(self, "read", [cursors = cursors.to_vec()], storage => storage.read(&cursors))
    }

    async fn hold(
        &self,
        session: &SessionKey,
        stream: &StreamId,
        me: InstanceId,
        hold: Hold,
    ) -> Result<Held> {
        call!(self, "hold", [session = *session, stream = stream.clone()],
            storage => storage.hold(&session, &stream, me, hold))
    }

    async fn shrink(&self, session: &SessionKey, max_bytes: u64) -> Result<u64> {
        self.0.world.history.push(What::Shrunk);
        call!(self, "shrink", [session = *session], storage => storage.shrink(&session, max_bytes))
    }

    async fn put_requests(&self, batch: &[PutRequest]) -> Result<Vec<Put>> {
        call!(self, "put", [batch = batch.to_vec()], storage => storage.put_requests(&batch))
    }

    async fn settle(&self, batch: &[Settle]) -> Result<Vec<Settled>> {
        call!(self, "settle", [batch = batch.to_vec()], storage => storage.settle(&batch))
    }

    async fn requests(&self, keys: &[RequestKey]) -> Result<Vec<RequestState>> {
        call!(self, "requests", [keys = keys.to_vec()], storage => storage.requests(&keys))
    }

    async fn mark_cancel(&self, session: &SessionKey, id: &RpcId) -> Result<Option<Cancelled>> {
        call!(self, "cancel", [session = *session, id = id.clone()],
            storage => storage.mark_cancel(&session, &id))
    }

    async fn heartbeat(&self, me: Beat, ttl: Duration) -> Result<Vec<Beat>> {
        let link = Arc::clone(&self.0);
        let beat = move |storage: Arc<dyn Storage>| {
            let link = Arc::clone(&link);
            async move {
                let beats = storage.heartbeat(me, ttl).await;
                link.heard(me.count);
                beats
            }
            .boxed()
        };
        self.0.call("heartbeat", beat, false).await
    }

    async fn claim(&self, batch: &[Claim]) -> Result<usize> {
        call!(self, "claim", [batch = batch.to_vec()], storage => storage.claim(&batch))
    }

    async fn sweep(&self, budget: usize, dead: &[Dead], finished_ttl: Duration) -> Result<Swept> {
        call!(self, "sweep", [dead = dead.to_vec()],
            storage => storage.sweep(budget, &dead, finished_ttl))
    }

    async fn stats(&self) -> Result<Stats> {
        call!(self, "stats", [], storage => storage.stats())
    }

    async fn knock(&self, knocks: &[(Door, Knock)]) -> Result<()> {
        call!(self, "knock", [knocks = knocks.to_vec()], storage => storage.knock(&knocks))
    }
}
