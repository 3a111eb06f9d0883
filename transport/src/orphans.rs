//! Client requests of a call whose instance has died: nobody is left there to
//! say that they are void. Whoever tells the client of the call's end does.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, future, stream};
use mcp_adapter_core::{EventId, Position, Result, RpcId, SessionId, StreamId, TailEvent};
use serde::Deserialize;

use crate::{config::Backends, message, question};

/// Events that are read at once.
const PAGE: usize = 256;
/// What the look may take before the client hears of the call's end without it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Withdrawals at once.
const PARALLEL: usize = 16;
const REASON: &str = "the server instance that asked is gone";

/// What tells the client of `stream` that its open requests are void.
pub(crate) async fn void_requests(
    backends: Arc<Backends>,
    session: SessionId,
    stream: StreamId,
) -> Vec<Bytes> {
    let look = async {
        let open = asked(&backends, &session, stream).await?;
        Ok(end(&backends, &session, open).await)
    };
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok(void)) => void,
        Ok(Err::<_, mcp_adapter_core::Error>(error)) => {
            tracing::warn!(%error, "the client requests of a dead instance's call were not read");
            Vec::new()
        }
        Err(_) => {
            tracing::warn!("the client requests of a dead instance's call were not read in time");
            Vec::new()
        }
    }
}

/// Ids of the requests that the stream still shows.
async fn asked(
    backends: &Backends,
    session: &SessionId,
    stream: StreamId,
) -> Result<BTreeSet<Arc<str>>> {
    #[derive(Deserialize)]
    struct Message {
        #[serde(default)]
        id: Option<RpcId>,
        method: Box<str>,
        #[serde(default)]
        params: Params,
    }
    #[derive(Default, Deserialize)]
    struct Params {
        #[serde(default, rename = "requestId")]
        request_id: Option<RpcId>,
    }

    let mut open = BTreeSet::new();
    let mut after = EventId::new(stream, Position::START);
    loop {
        let page = backends.sessions.replay(session, &after, PAGE).await?;
        for event in page.events {
            let TailEvent::Event { id, data, .. } = event else {
                continue;
            };
            after = id;
            // What is no message with a method has nothing to say here.
            let Ok(message) = serde_json::from_slice::<Message>(&data) else {
                continue;
            };
            match (message.id, message.params.request_id) {
                (Some(id), _) if question::is_ours(session, &id) => {
                    if let RpcId::String(id) = id {
                        open.insert(id);
                    }
                }
                (None, Some(RpcId::String(id)))
                    if &*message.method == "notifications/cancelled" =>
                {
                    open.remove(&id);
                }
                _ => {}
            }
        }
        if !page.more {
            return Ok(open);
        }
    }
}

/// Ends them, and gives what their client is told.
async fn end(backends: &Backends, session: &SessionId, open: BTreeSet<Arc<str>>) -> Vec<Bytes> {
    let Some(requests) = &backends.requests else {
        return Vec::new();
    };
    stream::iter(open)
        .map(async |id: Arc<str>| {
            let key = RpcId::String(Arc::clone(&id));
            let void = match requests.cancel(session, &key).await {
                // `None`: long over, and most likely answered.
                Ok(outcome) => outcome.is_some_and(|outcome| !outcome.is_answer()),
                Err(error) => {
                    tracing::debug!(%error, "a dead instance's client request was not ended");
                    true
                }
            };
            void.then(|| message::void(&id, REASON))
        })
        .buffered(PARALLEL)
        .filter_map(future::ready)
        .collect()
        .await
}
