//! Messages of clients that are no requests: answers and notifications. They
//! are served at any instance, whether or not it has a worker of the session.

use std::sync::Arc;

use mcp_adapter_core::{
    Answer, Cancelled, Delivery, ErrorKind, Session as Stored, SessionId, SessionRecord,
};
use rmcp::model::{ClientJsonRpcMessage, ClientNotification, JsonRpcMessage, RequestId};

use crate::{
    exchange::Exchange,
    inbound::{Kind, Payload},
    message, question, record,
    registry::Registry,
    signals,
    verdict::Verdict,
    worker::NotTaken,
};

const UNKNOWN: Verdict = Verdict::BadRequest("Bad Request: nobody asked for this answer");

/// Takes a message of a session that was found to be the principal's.
pub(crate) async fn accept(
    registry: &Arc<Registry>,
    exchange: &Exchange,
    session: &SessionId,
    stored: Stored,
    message: ClientJsonRpcMessage,
) -> Result<(), Verdict> {
    let notification = match message {
        JsonRpcMessage::Notification(message) => message.notification,
        JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_) => {
            return answer(registry, exchange, session).await;
        }
        JsonRpcMessage::Request(_) => {
            return Err(exchange.inbound.refusal());
        }
    };
    match &notification {
        ClientNotification::CancelledNotification(cancelled) => {
            return match &cancelled.params.request_id {
                Some(request) => cancel(registry, exchange, session, stored, request).await,
                None => Ok(()),
            };
        }
        ClientNotification::InitializedNotification(_) => {
            mark_initialized(registry, exchange, session, stored).await?;
        }
        _ => {}
    }
    let is_progress = matches!(notification, ClientNotification::ProgressNotification(_));
    let taken = match registry.live(session) {
        None => false,
        Some(worker) => match signals::deliver(&worker, notification) {
            Ok(taken) => taken,
            Err(NotTaken::Closed) => false,
            Err(NotTaken::Full) => return Err(Verdict::Unavailable),
        },
    };
    // Progress is for one worker, all else for every one.
    if !(is_progress && taken) {
        let backends = &registry.backends;
        backends
            .signal_notification(session, &exchange.inbound.body)
            .await;
    }
    Ok(())
}

async fn cancel(
    registry: &Registry,
    exchange: &Exchange,
    session: &SessionId,
    stored: Stored,
    request: &RequestId,
) -> Result<(), Verdict> {
    let sessions = &registry.backends.sessions;
    // The owner of the call, wherever it is, sees the mark and stops.
    let cancelled = sessions.cancel(session, &message::rpc_id(request)).await;
    let found = match cancelled {
        Ok(Cancelled::Marked(stream)) => {
            // However late the client comes back, it is told nothing of it.
            let note = |record: &mut SessionRecord| record::give_up(record, &stream);
            let principal = exchange.principal.as_ref();
            let noted = record::edit(&registry.backends, session, principal, stored, note).await;
            if let Err(error) = noted {
                tracing::debug!(%error, "a cancelled call was not noted");
            }
            "marked"
        }
        Ok(Cancelled::NotRunning) => "not_running",
        Ok(_) => "ambiguous",
        Err(error) => return Err(Verdict::of(&error)),
    };
    metrics::counter!("mcp_transport_cancels_total", "found" => found).increment(1);
    Ok(())
}

async fn mark_initialized(
    registry: &Registry,
    exchange: &Exchange,
    session: &SessionId,
    stored: Stored,
) -> Result<(), Verdict> {
    let mark = |record: &mut SessionRecord| !std::mem::replace(&mut record.initialized, true);
    let principal = exchange.principal.as_ref();
    match record::edit(&registry.backends, session, principal, stored, mark).await {
        Ok(_) => Ok(()),
        Err(error) => Err(Verdict::of(&error)),
    }
}

async fn answer(
    registry: &Registry,
    exchange: &Exchange,
    session: &SessionId,
) -> Result<(), Verdict> {
    // The bytes as they came; rmcp's reading of them may have lost some.
    let (Some(requests), Kind::Answer(Some((id, payload)))) =
        (&registry.backends.requests, &exchange.inbound.kind)
    else {
        return Err(UNKNOWN);
    };
    let answer = match payload {
        Payload::Result(result) => Answer::Result(result.clone()),
        Payload::Error(error) => Answer::Error(error.clone()),
    };
    match requests.answer(session, id, answer).await {
        Ok(Delivery::Delivered | Delivery::AlreadyEnded(_)) => Ok(()),
        // However late: clients give their session up for an error.
        Ok(Delivery::Unknown) if question::is_ours(session, id) => Ok(()),
        // Never 404: the client would take its session for gone.
        Ok(Delivery::Unknown) => Err(UNKNOWN),
        Err(error) if error.kind() == ErrorKind::InvalidArgument => Err(UNKNOWN),
        Err(error) => Err(Verdict::of(&error)),
    }
}
