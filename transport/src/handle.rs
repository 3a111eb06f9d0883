//! What handlers get: the session that a request belongs to.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use mcp_adapter_core::{Error, ErrorKind, Principal, Result, SessionId};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    fleet::FleetHandle,
    record,
    worker::{Call, Worker},
};

/// The session of a request, in the extensions of rmcp's request and
/// notification contexts.
///
/// ```
/// use mcp_adapter_transport::Session;
/// use rmcp::{ErrorData, RoleServer, service::RequestContext};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Default, Serialize, Deserialize)]
/// struct Visits {
///     count: u64,
/// }
///
/// async fn count(context: RequestContext<RoleServer>) -> Result<u64, ErrorData> {
///     // Not there for requests without a session: tier 1 and 2026-07-28.
///     let session = context.extensions.get::<Session>();
///     let session = session.ok_or_else(|| ErrorData::invalid_request("no session", None))?;
///     // All instances share this state, and any may be faster: then the closure
///     // runs again, on what that one has left.
///     let counted = session.update(|visits: &mut Visits| {
///         visits.count += 1;
///         visits.count
///     });
///     counted.await.map_err(|error| {
///         tracing::warn!(%error, "not counted");
///         ErrorData::internal_error("try again later", None)
///     })
/// }
/// ```
#[derive(Clone)]
pub struct Session {
    worker: Arc<Worker>,
    call: Weak<Call>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Session")
            .field(&self.worker.session)
            .finish()
    }
}

impl Session {
    pub(crate) fn new(worker: Arc<Worker>, call: Option<&Arc<Call>>) -> Self {
        Self {
            worker,
            call: call.map(Arc::downgrade).unwrap_or_default(),
        }
    }

    /// Its id, the same at every instance.
    #[must_use]
    pub fn id(&self) -> &SessionId {
        &self.worker.session
    }

    /// Who it belongs to, as the principal extractor named it when the
    /// session was initialized.
    #[must_use]
    pub fn principal(&self) -> Option<&Principal> {
        self.worker.principal.as_ref()
    }

    /// A handle for notifications to this and other sessions.
    #[must_use]
    pub fn fleet(&self) -> FleetHandle {
        FleetHandle::of(Weak::clone(&self.worker.registry))
    }

    /// Closes the HTTP response that this request's stream is read through,
    /// wherever it is held. The request goes on; the client comes back after
    /// `retry`, by default after the transport's retry hint, and reads on from
    /// where it was. `false`: the request has ended, or this is not a request.
    #[must_use]
    pub fn close_stream(&self, retry: Option<Duration>) -> bool {
        let Some(call) = self.call.upgrade() else {
            return false;
        };
        call.aside
            .close(retry.or(self.worker.backends.settings.retry));
        call.writer.detach();
        true
    }

    /// The session's shared state: JSON of the application's own, `null` at
    /// first (clause S2).
    ///
    /// # Errors
    /// [`SessionNotFound`](mcp_adapter_core::ErrorKind::SessionNotFound) once
    /// the session has ended, [`Unavailable`](mcp_adapter_core::ErrorKind::Unavailable)
    /// or [`Timeout`](mcp_adapter_core::ErrorKind::Timeout).
    pub async fn state(&self) -> Result<Value> {
        let stored = record::read(
            &self.worker.backends,
            &self.worker.session,
            self.principal(),
        )
        .await?;
        Ok(stored.record.state.clone())
    }

    /// Changes the shared state, as a type of the application's own: one that
    /// was never set is `T::default()` (clause S2). Gives what `change` gave when
    /// its change was stored.
    ///
    /// Where another worker is faster, `change` runs again on what that one has
    /// stored, for ten seconds at most; so all that it does besides may happen
    /// several times. Where it changes nothing, nothing is stored.
    ///
    /// # Errors
    /// [`Corrupt`](mcp_adapter_core::ErrorKind::Corrupt) where the state is no
    /// `T`, and [`InvalidArgument`](mcp_adapter_core::ErrorKind::InvalidArgument)
    /// where a `T` is no JSON, both with the cause, and with nothing changed;
    /// [`Conflict`](mcp_adapter_core::ErrorKind::Conflict) where others were
    /// faster all the time; those of [`compare_and_set`](Self::compare_and_set).
    pub async fn update<T, R>(&self, mut change: impl FnMut(&mut T) -> R + Send) -> Result<R>
    where
        T: Default + Serialize + DeserializeOwned,
        R: Send,
    {
        const OPERATION: &str = "update session state";
        let (backends, session) = (&self.worker.backends, &self.worker.session);
        let stored = record::read(backends, session, self.principal()).await?;
        let mut changed = None;
        record::try_edit(backends, session, self.principal(), stored, |record| {
            let mut state = if record.state.is_null() {
                T::default()
            } else {
                T::deserialize(&record.state)
                    .map_err(|error| Error::new(ErrorKind::Corrupt, OPERATION).with_source(error))?
            };
            changed = Some(change(&mut state));
            let new = serde_json::to_value(&state).map_err(|error| {
                Error::new(ErrorKind::InvalidArgument, OPERATION).with_source(error)
            })?;
            let is_new = new != record.state;
            record.state = new;
            Ok(is_new)
        })
        .await?;
        changed.ok_or_else(|| Error::new(ErrorKind::Conflict, OPERATION))
    }

    /// Stores `new` if the state is still `expected` (clause S2). `false`: it
    /// is not; read again and decide again. [`update`](Self::update) does that
    /// by itself.
    ///
    /// ```
    /// # use mcp_adapter_transport::Session;
    /// # use serde_json::json;
    /// async fn count(session: &Session) -> mcp_adapter_core::Result<u64> {
    ///     loop {
    ///         let seen = session.state().await?;
    ///         let count = seen.as_u64().unwrap_or(0) + 1;
    ///         if session.compare_and_set(&seen, json!(count)).await? {
    ///             return Ok(count);
    ///         }
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    /// As [`state`](Self::state);
    /// [`TooLarge`](mcp_adapter_core::ErrorKind::TooLarge) for more than
    /// [`MAX_STATE_BYTES`](mcp_adapter_core::MAX_STATE_BYTES) of JSON.
    pub async fn compare_and_set(&self, expected: &Value, new: Value) -> Result<bool> {
        let (backends, session) = (&self.worker.backends, &self.worker.session);
        let stored = record::read(backends, session, self.principal()).await?;
        record::edit(backends, session, self.principal(), stored, |record| {
            let unchanged = record.state == *expected;
            if unchanged {
                record.state.clone_from(&new);
            }
            unchanged
        })
        .await
    }
}

/// Marks requests that the transport has made itself, in their extensions:
/// what a client set at another worker (`logging/setLevel`,
/// `resources/subscribe`, `resources/unsubscribe`), told to this one.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Replayed {}

impl Replayed {
    pub(crate) fn new() -> Self {
        Self {}
    }
}
