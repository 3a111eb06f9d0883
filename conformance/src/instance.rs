//! One instance, as cases use it: the methods of the contract, each on the
//! runtime of the instance.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use mcp_adapter_core::{
    Ack, Adapter, Answer, Cancelled, Channel, ClientRequestAdapter, Delivery, EventId, Health,
    InstanceId, NewClientRequest, OutcomeKind, PendingRequest, Principal, Replay, Result,
    Revocation, RpcId, Session, SessionAdapter, SessionId, SessionRecord, Signal, SignalAdapter,
    Stats, StreamId, StreamWriter, Tail, TailEvent, TailFrom,
};

use crate::{
    faults::Link,
    fleet::{Frozen, Node},
    on::On,
    wait::{Failure, helper, within},
};

/// An instance. Dropping it does not end it; the end of the case does.
#[derive(Clone)]
pub(crate) struct Instance {
    node: Arc<Node>,
    adapter: Arc<dyn Adapter>,
    link: Link,
}

impl Instance {
    pub(crate) fn new(node: Arc<Node>, adapter: Arc<dyn Adapter>, link: Link) -> Self {
        Self {
            node,
            adapter,
            link,
        }
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    pub(crate) async fn kill(&self) {
        self.node.kill().await;
    }

    pub(crate) async fn freeze(&self) -> Frozen {
        self.node.freeze().await
    }

    fn on<'a, T>(&self, call: impl Future<Output = T> + Send + 'a) -> On<BoxFuture<'a, T>> {
        On::new(&self.node, call.boxed())
    }

    fn sessions(&self) -> &dyn SessionAdapter {
        &*self.adapter
    }

    fn requests(&self) -> &dyn ClientRequestAdapter {
        &*self.adapter
    }

    pub(crate) async fn create(&self, id: &SessionId, record: SessionRecord) -> Result<Session> {
        self.on(self.sessions().create(id, record)).await
    }

    /// A new session that belongs to nobody.
    pub(crate) async fn session(&self) -> Result<SessionId> {
        let id = SessionId::generate();
        self.create(&id, record()).await?;
        Ok(id)
    }

    /// Enters without opening a stream.
    pub(crate) async fn look(
        &self,
        id: &SessionId,
        principal: Option<&Principal>,
    ) -> Result<Session> {
        let entered = self.on(self.sessions().enter(id, principal, None)).await?;
        Ok(entered.session)
    }

    pub(crate) async fn open(
        &self,
        id: &SessionId,
        principal: Option<&Principal>,
        call: &RpcId,
    ) -> std::result::Result<Writer, mcp_adapter_core::Error> {
        let entered = self.on(self.sessions().enter(id, principal, Some(call)));
        let entered = entered.await?;
        let writer = entered.writer.ok_or_else(|| {
            mcp_adapter_core::Error::new(mcp_adapter_core::ErrorKind::Corrupt, "enter")
                .with_message("no writer although a stream was to be opened")
        })?;
        Ok(Writer {
            node: Arc::clone(&self.node),
            stream: writer.stream().clone(),
            writer: On::new(&self.node, writer),
        })
    }

    /// Opens the stream of call `number`, for nobody.
    pub(crate) async fn call(&self, id: &SessionId, number: i64) -> Result<Writer> {
        self.open(id, None, &RpcId::Number(number)).await
    }

    pub(crate) async fn update(
        &self,
        id: &SessionId,
        revision: u64,
        record: SessionRecord,
    ) -> Result<u64> {
        self.on(self.sessions().update(id, revision, record)).await
    }

    pub(crate) async fn delete(
        &self,
        id: &SessionId,
        principal: Option<&Principal>,
    ) -> Result<bool> {
        self.on(self.sessions().delete(id, principal)).await
    }

    /// Appends to the standalone stream.
    pub(crate) async fn append(&self, id: &SessionId, event: impl Into<Bytes>) -> Result<EventId> {
        self.on(self.sessions().append(id, event.into())).await
    }

    pub(crate) async fn tail(&self, id: &SessionId, from: TailFrom) -> Result<Following> {
        let tail = self.on(self.sessions().tail(id, from)).await?;
        Ok(Following(On::new(&self.node, tail)))
    }

    /// Follows a stream from its beginning.
    pub(crate) async fn tail_all(&self, id: &SessionId, stream: &StreamId) -> Result<Following> {
        self.tail(id, TailFrom::After(start_of(stream))).await
    }

    /// A plain GET.
    pub(crate) async fn get(&self, id: &SessionId) -> Result<Following> {
        self.tail(id, TailFrom::Standalone).await
    }

    pub(crate) async fn replay(
        &self,
        id: &SessionId,
        after: &EventId,
        max: usize,
    ) -> Result<Replay> {
        self.on(self.sessions().replay(id, after, max)).await
    }

    /// All events of a stream that can be replayed, as text.
    pub(crate) async fn replay_all(
        &self,
        id: &SessionId,
        stream: &StreamId,
    ) -> Result<Vec<String>> {
        let replay = self.replay(id, &start_of(stream), 10_000).await?;
        Ok(replay.events.iter().map(show).collect())
    }

    pub(crate) async fn cancel_call(&self, id: &SessionId, call: &RpcId) -> Result<Cancelled> {
        self.on(self.sessions().cancel(id, call)).await
    }

    pub(crate) async fn stats(&self) -> Result<Stats> {
        self.on(self.sessions().stats()).await
    }

    pub(crate) async fn ask(&self, id: &SessionId, request: NewClientRequest) -> Result<Waiting> {
        let pending = self.on(self.requests().create(id, request)).await?;
        Ok(On::new(&self.node, pending))
    }

    pub(crate) async fn answer(
        &self,
        id: &SessionId,
        request: &RpcId,
        answer: Answer,
    ) -> Result<Delivery> {
        self.on(self.requests().answer(id, request, answer)).await
    }

    pub(crate) async fn cancel_request(
        &self,
        id: &SessionId,
        request: &RpcId,
    ) -> Result<Option<OutcomeKind>> {
        self.on(self.requests().cancel(id, request)).await
    }

    pub(crate) async fn withdraw(&self, id: &SessionId, stream: &StreamId) -> Result<()> {
        self.on(self.requests().withdraw(id, stream)).await
    }

    pub(crate) async fn signal(&self, channel: &Channel, payload: impl Into<Bytes>) -> Result<()> {
        let signals: &dyn SignalAdapter = &*self.adapter;
        self.on(signals.signal(channel, payload.into())).await
    }

    pub(crate) async fn listen(&self, channel: &Channel) -> Result<On<BoxStream<'static, Signal>>> {
        let signals: &dyn SignalAdapter = &*self.adapter;
        let listening = self.on(signals.listen(channel)).await?;
        Ok(On::new(&self.node, listening))
    }

    pub(crate) fn health(&self) -> Health {
        self.adapter.health()
    }

    pub(crate) fn id(&self) -> InstanceId {
        self.adapter.id()
    }

    pub(crate) async fn close(&self) -> Result<()> {
        self.on(self.adapter.close()).await
    }
}

/// The wait for the outcome of a client request.
pub(crate) type Waiting = On<PendingRequest>;

/// The writer of a call's stream.
pub(crate) struct Writer {
    node: Arc<Node>,
    stream: StreamId,
    writer: On<Box<dyn StreamWriter>>,
}

impl Writer {
    pub(crate) fn stream(&self) -> &StreamId {
        &self.stream
    }

    /// Its place is fixed when this returns; the future tells its id.
    pub(crate) fn append(&self, event: impl Into<Bytes>) -> On<Ack<EventId>> {
        let appending = self.writer.call(|writer| writer.append(event.into()));
        On::new(&self.node, appending)
    }

    pub(crate) fn finish(&self, event: Option<&str>) -> On<Ack<Option<EventId>>> {
        let event = event.map(|event| Bytes::copy_from_slice(event.as_bytes()));
        let finishing = self.writer.call(|writer| writer.finish(event));
        On::new(&self.node, finishing)
    }

    /// The tail of the socket that made the call.
    pub(crate) fn attach(&self) -> Following {
        let tail = self.writer.call(|writer| writer.attach());
        Following(On::new(&self.node, tail))
    }

    pub(crate) async fn revoked(&self) -> Revocation {
        On::new(&self.node, self.writer.get().revoked()).await
    }
}

/// A tail.
pub(crate) struct Following(On<Tail>);

impl Following {
    /// The next item, whatever it is.
    pub(crate) async fn item(&mut self) -> Option<TailEvent> {
        self.0.next().await
    }

    /// The next item but [`begins`](Self::begins).
    pub(crate) async fn next(&mut self) -> Option<TailEvent> {
        loop {
            match self.0.next().await {
                Some(TailEvent::Begins { .. }) => {}
                item => return item,
            }
        }
    }

    /// Where a tail of the standalone stream begins, and in which hold, which must
    /// come first.
    pub(crate) async fn begins(
        &mut self,
        patience: Duration,
    ) -> std::result::Result<(EventId, u64), Failure> {
        match within("where a tail begins", patience, self.0.next()).await? {
            Some(TailEvent::Begins { after, hold }) => Ok((after, hold)),
            other => Err(Failure::new(format!("not where it begins: {other:?}"))),
        }
    }

    /// The next item as text, which must come.
    #[track_caller]
    pub(crate) fn text(
        &mut self,
        patience: Duration,
    ) -> impl Future<Output = std::result::Result<String, Failure>> {
        helper(async move {
            let item = within("the next item of a tail", patience, self.next()).await?;
            Ok(item.as_ref().map_or_else(|| "nothing".into(), show))
        })
    }

    /// All items up to the end, which must come; then nothing follows.
    #[track_caller]
    pub(crate) fn until_end(
        &mut self,
        patience: Duration,
    ) -> impl Future<Output = std::result::Result<Vec<String>, Failure>> {
        helper(async move {
            let mut items = Vec::new();
            loop {
                let Ok(item) = within("", patience, self.next()).await else {
                    return Err(Failure::new(format!(
                        "a tail has neither an event nor an end for {patience:?}; it had {items:?}"
                    )));
                };
                let Some(item) = item else {
                    return Err(Failure::new(format!(
                        "a tail ends without a reason; it had {items:?}"
                    )));
                };
                items.push(show(&item));
                if matches!(item, TailEvent::End(_)) {
                    let after = within("nothing more after an end", patience, self.next()).await?;
                    if let Some(after) = after {
                        return Err(Failure::new(format!("after the end comes {after:?}")));
                    }
                    return Ok(items);
                }
            }
        })
    }
}

/// A record with nothing special in it.
pub(crate) fn record() -> SessionRecord {
    SessionRecord {
        protocol: "2025-11-25".into(),
        ..SessionRecord::default()
    }
}

/// Before the first event of a stream, as a priming event names it.
pub(crate) fn start_of(stream: &StreamId) -> EventId {
    EventId::new(stream.clone(), mcp_adapter_core::Position::START)
}

/// An item as text: its data, `gap`, or the reason of the end.
pub(crate) fn show(item: &TailEvent) -> String {
    match item {
        TailEvent::Event { data, .. } => String::from_utf8_lossy(data).into_owned(),
        TailEvent::Unstored { data } => format!("unstored {}", String::from_utf8_lossy(data)),
        TailEvent::Gap { .. } => "gap".into(),
        TailEvent::End(why) => format!("end: {why:?}"),
        other => format!("{other:?}"),
    }
}
