//! An adapter whose backend can be taken away, with a driver that talks.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use mcp_adapter_core::{
    Ack, Adapter, Answer, Applied, Cancelled, Capabilities, Channel, ClientRequestAdapter,
    Delivery, Entered, Error, EventId, Health, InstanceId, NewClientRequest, Outcome, OutcomeKind,
    PendingRequest, Principal, Replay, Result, Revocation, Role, RpcId, Session, SessionAdapter,
    SessionId, SessionRecord, Signal, SignalAdapter, Stats, StreamId, StreamWriter, Tail, TailFrom,
};
use mcp_adapter_memory::MemoryAdapter;
use tokio_util::sync::CancellationToken;

pub(crate) const SECRET: &str = "postgres://user:secret@db.internal/mcp";

#[derive(Debug, Clone)]
pub(crate) struct Flaky {
    inner: MemoryAdapter,
    broken: Arc<AtomicBool>,
    lost: CancellationToken,
}

impl Flaky {
    pub(crate) fn new(inner: MemoryAdapter) -> Self {
        Self {
            inner,
            broken: Arc::default(),
            lost: CancellationToken::new(),
        }
    }

    pub(crate) fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
    }

    /// Loses all pending client requests.
    pub(crate) fn lose_requests(&self) {
        self.lost.cancel();
    }

    fn check(&self, operation: &'static str) -> Result<()> {
        check(&self.broken, operation)
    }
}

fn check(broken: &AtomicBool, operation: &'static str) -> Result<()> {
    if broken.load(Ordering::SeqCst) {
        return Err(Error::unavailable(operation, Applied::Unknown)
            .with_message(SECRET)
            .with_source(SECRET));
    }
    Ok(())
}

impl Role for Flaky {
    fn health(&self) -> Health {
        if self.broken.load(Ordering::SeqCst) {
            return Health::Down {
                since: std::time::Duration::ZERO,
            };
        }
        self.inner.health()
    }
}

#[async_trait]
impl SessionAdapter for Flaky {
    async fn create(&self, id: &SessionId, record: SessionRecord) -> Result<Session> {
        self.check("create")?;
        SessionAdapter::create(&self.inner, id, record).await
    }

    async fn enter(
        &self,
        id: &SessionId,
        principal: Option<&Principal>,
        open: Option<&RpcId>,
    ) -> Result<Entered> {
        self.check("enter")?;
        let entered = self.inner.enter(id, principal, open).await?;
        let writer = entered.writer.map(|inner| {
            Box::new(FlakyWriter {
                inner,
                broken: Arc::clone(&self.broken),
            }) as Box<dyn StreamWriter>
        });
        Ok(Entered::new(entered.session, writer))
    }

    async fn update(&self, id: &SessionId, revision: u64, record: SessionRecord) -> Result<u64> {
        self.check("update")?;
        self.inner.update(id, revision, record).await
    }

    async fn delete(&self, id: &SessionId, principal: Option<&Principal>) -> Result<bool> {
        self.check("delete")?;
        self.inner.delete(id, principal).await
    }

    async fn append(&self, id: &SessionId, event: Bytes) -> Result<EventId> {
        self.check("append")?;
        self.inner.append(id, event).await
    }

    async fn tail(&self, id: &SessionId, from: TailFrom) -> Result<Tail> {
        self.check("tail")?;
        self.inner.tail(id, from).await
    }

    async fn replay(&self, id: &SessionId, after: &EventId, max: usize) -> Result<Replay> {
        self.check("replay")?;
        self.inner.replay(id, after, max).await
    }

    async fn cancel(&self, id: &SessionId, request: &RpcId) -> Result<Cancelled> {
        self.check("cancel")?;
        SessionAdapter::cancel(&self.inner, id, request).await
    }

    async fn stats(&self) -> Result<Stats> {
        self.check("stats")?;
        self.inner.stats().await
    }
}

#[async_trait]
impl ClientRequestAdapter for Flaky {
    async fn create(
        &self,
        session: &SessionId,
        request: NewClientRequest,
    ) -> Result<PendingRequest> {
        self.check("create request")?;
        let pending = ClientRequestAdapter::create(&self.inner, session, request).await?;
        let lost = self.lost.clone();
        Ok(PendingRequest::new(Box::pin(async move {
            tokio::select! {
                outcome = pending => outcome,
                () = lost.cancelled() => Outcome {
                    kind: OutcomeKind::Lost,
                    payload: Bytes::new(),
                },
            }
        })))
    }

    async fn answer(&self, session: &SessionId, id: &RpcId, answer: Answer) -> Result<Delivery> {
        self.check("answer")?;
        self.inner.answer(session, id, answer).await
    }

    async fn cancel(&self, session: &SessionId, id: &RpcId) -> Result<Option<OutcomeKind>> {
        self.check("cancel request")?;
        ClientRequestAdapter::cancel(&self.inner, session, id).await
    }

    async fn withdraw(&self, session: &SessionId, stream: &StreamId) -> Result<()> {
        self.check("withdraw")?;
        self.inner.withdraw(session, stream).await
    }
}

#[async_trait]
impl SignalAdapter for Flaky {
    async fn signal(&self, channel: &Channel, payload: Bytes) -> Result<()> {
        self.check("signal")?;
        self.inner.signal(channel, payload).await
    }

    async fn listen(&self, channel: &Channel) -> Result<BoxStream<'static, Signal>> {
        self.check("listen")?;
        self.inner.listen(channel).await
    }
}

#[async_trait]
impl Adapter for Flaky {
    fn name(&self) -> &'static str {
        "flaky"
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn id(&self) -> InstanceId {
        self.inner.id()
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[derive(Debug)]
struct FlakyWriter {
    inner: Box<dyn StreamWriter>,
    broken: Arc<AtomicBool>,
}

#[async_trait]
impl StreamWriter for FlakyWriter {
    fn stream(&self) -> &StreamId {
        self.inner.stream()
    }

    fn append(&self, event: Bytes) -> Ack<EventId> {
        match check(&self.broken, "append") {
            Ok(()) => self.inner.append(event),
            Err(error) => Ack::ready(Err(error)),
        }
    }

    fn finish(&self, event: Option<Bytes>) -> Ack<Option<EventId>> {
        match check(&self.broken, "finish") {
            Ok(()) => self.inner.finish(event),
            Err(error) => Ack::ready(Err(error)),
        }
    }

    fn attach(&self) -> Tail {
        self.inner.attach()
    }

    fn detach(&self) {
        self.inner.detach();
    }

    async fn revoked(&self) -> Revocation {
        self.inner.revoked().await
    }
}
