//! Changes of a session's record: read, edit, compare and set.

use std::sync::Arc;

use mcp_adapter_core::{
    Error, ErrorKind, Principal, Result, Session as Stored, SessionId, SessionRecord,
};

use crate::config::Backends;

/// Lost races after which an edit gives up; each means that another one won.
const MAX_ATTEMPTS: usize = 64;

/// Applies `edit` to the record, which starts out as `stored` and is read
/// again wherever somebody else was faster. `edit` returns whether it wants
/// the record stored; the answer is whether it was.
pub(crate) async fn edit(
    backends: &Backends,
    session: &SessionId,
    principal: Option<&Principal>,
    mut stored: Stored,
    mut edit: impl FnMut(&mut SessionRecord) -> bool + Send,
) -> Result<bool> {
    for _ in 0..MAX_ATTEMPTS {
        let mut record = Arc::unwrap_or_clone(stored.record);
        if !edit(&mut record) {
            return Ok(false);
        }
        match backends
            .sessions
            .update(session, stored.revision, record)
            .await
        {
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::Conflict => {
                stored = read(backends, session, principal).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::new(ErrorKind::Conflict, "edit session record"))
}

pub(crate) async fn read(
    backends: &Backends,
    session: &SessionId,
    principal: Option<&Principal>,
) -> Result<Stored> {
    let entered = backends.sessions.enter(session, principal, None).await?;
    Ok(entered.session)
}
