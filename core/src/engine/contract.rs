//! The traits of the contract, for every [`EngineAdapter`].

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use super::{EngineAdapter, Shared, interest::Owned, writer::Writer};
use crate::{
    adapter::{Adapter, Capabilities, Health, Role},
    error::{Error, ErrorKind, Result},
    id::{
        EventId, InstanceId, Principal, PrincipalKey, RpcId, SessionId, SessionKey, StreamId,
        WaiterToken,
    },
    request::{
        Answer, ClientRequestAdapter, Delivery, NewClientRequest, OutcomeKind, PendingRequest,
    },
    session::{
        Cancelled, EndReason, Entered, Replay, Revocation, Session, SessionAdapter, SessionRecord,
        Stats, StreamWriter, Tail, TailFrom,
    },
    signal::{Channel, Signal, SignalAdapter},
    storage::{self, NewSession, Storage, StreamEnd, Target, UpdateSession, Updated},
};

fn not_found(operation: &'static str) -> Error {
    Error::new(ErrorKind::SessionNotFound, operation)
}

impl<S: Storage> Shared<S> {
    async fn create(self: &Arc<Self>, key: SessionKey, record: SessionRecord) -> Result<Session> {
        let new = NewSession {
            session: key,
            principal: PrincipalKey::of(record.principal.as_ref()),
            record: record.encode()?,
            idle_ttl: self.limits.idle_ttl(),
            absolute_ttl: self.limits.absolute_ttl(),
            creator: WaiterToken::generate(),
        };
        self.ready("create").await?;
        if self.step("create", |storage| storage.create(&new)).await? {
            metrics::counter!("mcp_adapter_sessions_created_total").increment(1);
            Ok(Session::new(record, 1))
        } else {
            Err(Error::new(ErrorKind::AlreadyExists, "create"))
        }
    }

    async fn enter(
        self: &Arc<Self>,
        key: SessionKey,
        principal: PrincipalKey,
        open: Option<&RpcId>,
    ) -> Result<Entered> {
        const OPERATION: &str = "enter";
        if let Some(id) = open {
            id.check()?;
        }
        self.ready(OPERATION).await?;
        if open.is_some() {
            self.assure_alive().await;
        }
        let writer = open.map(|id| {
            let stream = StreamId::for_request(id);
            let owned = Owned::new(key, principal, stream, id.clone(), self.repair.recent());
            self.interests.add_owned(&owned);
            // From here on a caller that goes away gives up what it may have
            // opened.
            Writer {
                shared: Arc::clone(self),
                owned,
            }
        });
        let stream = writer
            .as_ref()
            .map(|writer| self.open_stream(&writer.owned));
        let entered = self
            .step(OPERATION, |storage| {
                storage.enter(&key, &principal, stream.as_ref())
            })
            .await;
        let refused = match entered {
            Ok(storage::Entered::Session { record, revision }) => {
                let session = Session::new(self.records.decode(&key, &record)?, revision);
                let writer = writer.map(|writer| Box::new(writer) as Box<dyn StreamWriter>);
                return Ok(Entered::new(session, writer));
            }
            Ok(storage::Entered::NoSession) => not_found(OPERATION),
            Ok(storage::Entered::TooManyStreams) => Error::new(ErrorKind::Overloaded, OPERATION),
            Ok(storage::Entered::PrincipalQuota) => Error::new(ErrorKind::QuotaExceeded, OPERATION),
            Err(error) => return Err(error),
        };
        if let Some(writer) = writer {
            // Nothing was opened, so there is nothing to give up.
            writer.owned.state.lock().finishing = true;
            self.interests.remove_owned(&writer.owned);
        }
        Err(refused)
    }

    async fn update(
        self: &Arc<Self>,
        key: SessionKey,
        revision: u64,
        record: &SessionRecord,
    ) -> Result<u64> {
        const OPERATION: &str = "update";
        let update = UpdateSession {
            session: key,
            principal: PrincipalKey::of(record.principal.as_ref()),
            revision,
            record: record.encode()?,
            attempt: WaiterToken::generate(),
        };
        self.ready(OPERATION).await?;
        let updated = self
            .step(OPERATION, |storage| storage.update(&update))
            .await?;
        match updated {
            Updated::Done(revision) => Ok(revision),
            Updated::Conflict => Err(Error::new(ErrorKind::Conflict, OPERATION)),
            Updated::NoSession => Err(not_found(OPERATION)),
        }
    }

    async fn delete(self: &Arc<Self>, key: SessionKey, principal: PrincipalKey) -> Result<bool> {
        self.ready("delete").await?;
        let deleted = self
            .step("delete", |storage| storage.delete(&key, &principal))
            .await?;
        let Some(instances) = deleted else {
            return Ok(false);
        };
        metrics::counter!("mcp_adapter_sessions_deleted_total").increment(1);
        for owned in self.interests.wake(&key, &Target::Session) {
            owned.revoke(Revocation::SessionEnded);
        }
        for instance in instances {
            if instance != self.me {
                self.wake(instance, key, Target::Session);
            }
        }
        Ok(true)
    }

    async fn cancel(self: &Arc<Self>, key: SessionKey, request: &RpcId) -> Result<Cancelled> {
        self.ready("cancel").await?;
        let marked = self
            .step("cancel", |storage| storage.mark_cancel(&key, request))
            .await?
            .ok_or_else(|| not_found("cancel"))?;
        if marked == Cancelled::Ambiguous {
            metrics::counter!("mcp_adapter_ambiguous_cancels_total").increment(1);
        }
        Ok(marked)
    }

    async fn close(self: &Arc<Self>) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let all = self.interests.snapshot(Duration::MAX);
        for follow in &all.follows {
            follow.end(EndReason::Closed);
        }
        // Given up here, or clients would wait a lease for somebody to notice.
        let given_up: Vec<_> = all
            .owned
            .iter()
            .map(|owned| self.write(owned, None, Some(StreamEnd::OwnerLost)))
            .collect();
        let told = async {
            for wait in &all.waits {
                // Its waiter reads the outcome, this or an earlier one.
                let _ = self.withdraw_one(wait).await;
            }
            futures::future::join_all(given_up).await
        };
        let told = super::retry::within("close", self.deadline(), async { Ok(told.await) }).await;
        for owned in all.owned {
            owned.revoke(Revocation::Fenced);
        }
        self.stop.send_replace(true);
        match told?.into_iter().find_map(Result::err) {
            Some(error) if error.is_retryable() => Err(error),
            // Finished or ended by others meanwhile.
            _ => Ok(()),
        }
    }
}

impl<A: EngineAdapter> Role for A {
    fn health(&self) -> Health {
        self.engine().shared.health()
    }
}

#[async_trait]
impl<A: EngineAdapter> SessionAdapter for A {
    async fn create(&self, id: &SessionId, record: SessionRecord) -> Result<Session> {
        self.engine().shared.create(id.key(), record).await
    }

    async fn enter(
        &self,
        id: &SessionId,
        principal: Option<&Principal>,
        open: Option<&RpcId>,
    ) -> Result<Entered> {
        let principal = PrincipalKey::of(principal);
        self.engine().shared.enter(id.key(), principal, open).await
    }

    async fn update(&self, id: &SessionId, revision: u64, record: SessionRecord) -> Result<u64> {
        self.engine()
            .shared
            .update(id.key(), revision, &record)
            .await
    }

    async fn delete(&self, id: &SessionId, principal: Option<&Principal>) -> Result<bool> {
        let principal = PrincipalKey::of(principal);
        self.engine().shared.delete(id.key(), principal).await
    }

    async fn append(&self, id: &SessionId, event: Bytes) -> Result<EventId> {
        let shared = &self.engine().shared;
        shared.ready("append").await?;
        shared.write_shared(id.key(), event).await
    }

    async fn tail(&self, id: &SessionId, from: TailFrom) -> Result<Tail> {
        self.engine().shared.tail(id.key(), from).await
    }

    async fn replay(&self, id: &SessionId, after: &EventId, max: usize) -> Result<Replay> {
        self.engine().shared.replay(id.key(), after, max).await
    }

    async fn cancel(&self, id: &SessionId, request: &RpcId) -> Result<Cancelled> {
        self.engine().shared.cancel(id.key(), request).await
    }

    async fn stats(&self) -> Result<Stats> {
        let shared = &self.engine().shared;
        shared.ready("stats").await?;
        shared.step("stats", |storage| storage.stats()).await
    }
}

#[async_trait]
impl<A: EngineAdapter> ClientRequestAdapter for A {
    async fn create(
        &self,
        session: &SessionId,
        request: NewClientRequest,
    ) -> Result<PendingRequest> {
        let shared = &self.engine().shared;
        shared.create_request(session.key(), request).await
    }

    async fn answer(&self, session: &SessionId, id: &RpcId, answer: Answer) -> Result<Delivery> {
        self.engine().shared.answer(session.key(), id, answer).await
    }

    async fn cancel(&self, session: &SessionId, id: &RpcId) -> Result<Option<OutcomeKind>> {
        self.engine().shared.cancel_request(session.key(), id).await
    }

    async fn withdraw(&self, session: &SessionId, stream: &StreamId) -> Result<()> {
        self.engine().shared.withdraw(session.key(), stream).await
    }
}

#[async_trait]
impl<A: EngineAdapter> SignalAdapter for A {
    async fn signal(&self, channel: &Channel, payload: Bytes) -> Result<()> {
        self.engine().shared.send_signal(channel, payload).await
    }

    async fn listen(&self, channel: &Channel) -> Result<BoxStream<'static, Signal>> {
        self.engine().shared.listen(channel).await
    }
}

#[async_trait]
impl<A: EngineAdapter> Adapter for A {
    fn name(&self) -> &'static str {
        self.engine().shared.profile.name
    }

    fn capabilities(&self) -> Capabilities {
        self.engine().shared.profile.capabilities
    }

    fn id(&self) -> InstanceId {
        self.engine().shared.me
    }

    async fn close(&self) -> Result<()> {
        self.engine().shared.close().await
    }
}
