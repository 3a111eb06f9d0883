//! Steps on sessions.

use std::time::Duration;

use bytes::Bytes;
use mcp_adapter_core::{
    InstanceId, Position, PrincipalKey, Result, SessionKey,
    storage::{Entered, NewSession, OpenStream, UpdateSession, Updated},
};
use tokio::time::Instant;

use crate::{
    call::{Given, bits, count, get, micros, odd},
    codec,
    known::{Lease, lasts},
    pool::Who,
    storage::Inner,
};

/// How long a deleted session's creator is remembered: longer than any statement
/// can be held up on its way.
const TOMBSTONE: Duration = Duration::from_secs(600);

/// A use is recorded when the last one is so long ago. Until then the session
/// outlives its deadline by as much, and never falls short of it.
fn slack(idle: Duration) -> Duration {
    (idle / 128).min(Duration::from_secs(1))
}

impl Inner {
    pub(crate) async fn create(&self, new: &NewSession) -> Result<bool> {
        const OPERATION: &str = "create";
        let given = Given::new()
            .bind(new.session.0)
            .bind(new.principal.0)
            .bind(&new.record[..])
            .bind(new.creator.0.to_be_bytes())
            .bind(micros(new.idle_ttl))
            .bind(micros(slack(new.idle_ttl)))
            .bind(new.absolute_ttl.map(micros));
        let sql = &self.functions().create;
        let row = self.run_one(OPERATION, Who::Caller, sql, given).await?;
        get(OPERATION, &row, 0)
    }

    pub(crate) async fn enter(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
        open: Option<&OpenStream>,
    ) -> Result<Entered> {
        const OPERATION: &str = "enter";
        let sent = Instant::now();
        let given = Given::new()
            .bind(session.0)
            .bind(principal.0)
            .bind(open.map(|open| open.stream.as_str()))
            .bind(open.map(|open| open.owner.0.to_be_bytes()))
            .bind(open.map(|open| codec::id_bytes(&open.request)))
            .bind(open.map_or(0, |open| count(open.max_open)))
            .bind(open.map_or(0, |open| {
                i64::try_from(open.max_principal_bytes).unwrap_or(i64::MAX)
            }))
            .bind(self.known.uncounted_bytes(session));
        let sql = &self.functions().enter;
        let row = self.run_one(OPERATION, Who::Caller, sql, given).await?;
        match get::<i16>(OPERATION, &row, 0)? {
            0 => {
                let record: Vec<u8> = get(OPERATION, &row, 1)?;
                let revision: i64 = get(OPERATION, &row, 2)?;
                let id: Option<i64> = get(OPERATION, &row, 3)?;
                if let (Some(open), Some(id)) = (open, id) {
                    let lease = Lease {
                        id,
                        fresh: get(OPERATION, &row, 6)?,
                        until: lasts(sent, get(OPERATION, &row, 4)?),
                        last: Position::START,
                        holder: Some(open.owner),
                    };
                    self.known.remember((*session, open.stream.clone()), lease);
                    self.known.read_bytes(*session, get(OPERATION, &row, 5)?);
                }
                Ok(Entered::Session {
                    record: Bytes::from(record),
                    revision: revision.cast_unsigned(),
                })
            }
            1 => Ok(Entered::NoSession),
            2 => Ok(Entered::TooManyStreams),
            3 => Ok(Entered::PrincipalQuota),
            _ => Err(odd(OPERATION)),
        }
    }

    pub(crate) async fn update(&self, update: &UpdateSession) -> Result<Updated> {
        const OPERATION: &str = "update";
        let given = Given::new()
            .bind(update.session.0)
            .bind(update.principal.0)
            .bind(bits(update.revision))
            .bind(&update.record[..])
            .bind(update.attempt.0.to_be_bytes());
        let sql = &self.functions().update;
        let row = self.run_one(OPERATION, Who::Caller, sql, given).await?;
        Ok(match get::<Option<i64>>(OPERATION, &row, 0)? {
            None => Updated::NoSession,
            Some(0) => Updated::Conflict,
            Some(revision) => Updated::Done(revision.cast_unsigned()),
        })
    }

    pub(crate) async fn delete(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
    ) -> Result<Option<Vec<InstanceId>>> {
        const OPERATION: &str = "delete";
        let given = Given::new()
            .bind(session.0)
            .bind(principal.0)
            .bind(micros(TOMBSTONE));
        let sql = &self.functions().delete;
        let row = self.run_one(OPERATION, Who::Caller, sql, given).await?;
        let parties: Option<Vec<Vec<u8>>> = get(OPERATION, &row, 0)?;
        let Some(parties) = parties else {
            return Ok(None);
        };
        self.known.forget_session(session);
        let parties = parties.iter().map(|party| codec::instance(party));
        let parties: Option<Vec<_>> = parties.collect();
        parties.map(Some).ok_or_else(|| odd(OPERATION))
    }
}
