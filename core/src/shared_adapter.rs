//! A shared adapter is an adapter: so one can be chosen at run time, as
//! `Arc<dyn Adapter>`, and each role by itself.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::{
    adapter::{Adapter, Capabilities, Health, Role},
    error::Result,
    id::{EventId, InstanceId, Principal, RpcId, SessionId, StreamId},
    request::{
        Answer, ClientRequestAdapter, Delivery, NewClientRequest, OutcomeKind, PendingRequest,
    },
    session::{
        Cancelled, Entered, Replay, Session, SessionAdapter, SessionRecord, Stats, Tail, TailFrom,
    },
    signal::{Channel, Signal, SignalAdapter},
};

impl<T: Role + ?Sized> Role for Arc<T> {
    fn health(&self) -> Health {
        (**self).health()
    }
}

#[async_trait]
impl<T: SessionAdapter + ?Sized> SessionAdapter for Arc<T> {
    async fn create(&self, id: &SessionId, record: SessionRecord) -> Result<Session> {
        (**self).create(id, record).await
    }

    async fn enter(
        &self,
        id: &SessionId,
        principal: Option<&Principal>,
        open: Option<&RpcId>,
    ) -> Result<Entered> {
        (**self).enter(id, principal, open).await
    }

    async fn update(&self, id: &SessionId, revision: u64, record: SessionRecord) -> Result<u64> {
        (**self).update(id, revision, record).await
    }

    async fn delete(&self, id: &SessionId, principal: Option<&Principal>) -> Result<bool> {
        (**self).delete(id, principal).await
    }

    async fn append(&self, id: &SessionId, event: Bytes) -> Result<EventId> {
        (**self).append(id, event).await
    }

    async fn tail(&self, id: &SessionId, from: TailFrom) -> Result<Tail> {
        (**self).tail(id, from).await
    }

    async fn replay(&self, id: &SessionId, after: &EventId, max: usize) -> Result<Replay> {
        (**self).replay(id, after, max).await
    }

    async fn cancel(&self, id: &SessionId, request: &RpcId) -> Result<Cancelled> {
        (**self).cancel(id, request).await
    }

    async fn stats(&self) -> Result<Stats> {
        (**self).stats().await
    }
}

#[async_trait]
impl<T: ClientRequestAdapter + ?Sized> ClientRequestAdapter for Arc<T> {
    async fn create(
        &self,
        session: &SessionId,
        request: NewClientRequest,
    ) -> Result<PendingRequest> {
        (**self).create(session, request).await
    }

    async fn answer(&self, session: &SessionId, id: &RpcId, answer: Answer) -> Result<Delivery> {
        (**self).answer(session, id, answer).await
    }

    async fn cancel(&self, session: &SessionId, id: &RpcId) -> Result<Option<OutcomeKind>> {
        (**self).cancel(session, id).await
    }

    async fn withdraw(&self, session: &SessionId, stream: &StreamId) -> Result<()> {
        (**self).withdraw(session, stream).await
    }
}

#[async_trait]
impl<T: SignalAdapter + ?Sized> SignalAdapter for Arc<T> {
    async fn signal(&self, channel: &Channel, payload: Bytes) -> Result<()> {
        (**self).signal(channel, payload).await
    }

    async fn listen(&self, channel: &Channel) -> Result<BoxStream<'static, Signal>> {
        (**self).listen(channel).await
    }
}

#[async_trait]
impl<T: Adapter + ?Sized> Adapter for Arc<T> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn id(&self) -> InstanceId {
        (**self).id()
    }

    async fn close(&self) -> Result<()> {
        (**self).close().await
    }
}
