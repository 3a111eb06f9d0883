//! The steps, each one call of a function in the database.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use mcp_adapter_core::{
    Applied, Cancelled, Capabilities, Error, ErrorKind, InstanceId, PrincipalKey, Result, RpcId,
    SessionKey, Stats, StreamId,
    storage::{
        Append, Appended, Beat, Claim, Cursor, Dead, Door, Entered, Generation, Held, Hold, Knock,
        NewSession, OpenStream, Profile, Put, PutRequest, Read, RequestKey, RequestState, Settle,
        Settled, Storage, Swept, UpdateSession, Updated,
    },
};
use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgRow};
use tokio::sync::watch;

use crate::{
    bell::Bell,
    call::{Functions, Given},
    error::{OTHER_HISTORY, code, is_queue_full, of_statement},
    known::Known,
    options::Wake,
    pool::{Pool, Who},
    start,
    upkeep::Upkeep,
};

/// Batches in flight at once: two saturate a small server, and more only fill its
/// log with smaller commits.
const LANES: usize = 2;

/// The history that an instance has attached to, and how long its log was when it
/// was seen last.
#[derive(Debug, Clone)]
pub(crate) struct Attached {
    pub(crate) incarnation: String,
    pub(crate) lsn: i64,
}

/// What all handles on one schema share.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) schema: Arc<str>,
    pub(crate) functions: Arc<Functions>,
    pub(crate) listen: PgConnectOptions,
    pub(crate) wake: Wake,
    pub(crate) lossy: bool,
    /// What a session may have.
    pub(crate) session_bytes: usize,
    /// How often an instance sweeps, which is when it writes its counts.
    pub(crate) sweeps: Duration,
    /// Whether knocks come by polling, as far as the start could tell.
    pub(crate) polls: bool,
}

pub(crate) struct Inner {
    pub(crate) place: Place,
    pub(crate) pool: Pool,
    pub(crate) known: Known,
    pub(crate) bell: Bell,
    pub(crate) attached: Mutex<Option<Attached>>,
    /// Raised where the history turned out to be another one: the wake-up link
    /// ends, and the engine attaches anew.
    pub(crate) histories: watch::Sender<u64>,
    pub(crate) upkeep: Mutex<Upkeep>,
}

/// A schema of a Postgres server.
///
/// Each step is one call of a function in the database, atomic and safe to repeat.
/// Clones are the same handle.
#[derive(Clone)]
pub struct PostgresStorage(pub(crate) Arc<Inner>);

impl PostgresStorage {
    pub(crate) fn new(place: Place, pool: Pool) -> Self {
        Self(Arc::new(Inner {
            known: Known::new(place.session_bytes),
            place,
            pool,
            bell: Bell::default(),
            attached: Mutex::new(None),
            histories: watch::Sender::new(0),
            upkeep: Mutex::default(),
        }))
    }

    /// Another handle on the same schema, with connections of its own.
    pub(crate) fn another(&self) -> Self {
        Self::new(self.0.place.clone(), self.0.pool.another())
    }
}

impl fmt::Debug for PostgresStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStorage")
            .field("schema", &self.0.place.schema)
            .finish_non_exhaustive()
    }
}

impl Inner {
    pub(crate) fn functions(&self) -> &Functions {
        &self.place.functions
    }

    /// The advisory lock that writers share and whoever buries them has alone.
    pub(crate) fn lock_of(&self, instance: InstanceId) -> i64 {
        start::lock_key(&self.place.schema, &instance.0.to_be_bytes())
    }

    /// Runs a call; the error is the driver's, for those who look at it.
    pub(crate) async fn look(
        &self,
        operation: &'static str,
        who: Who,
        sql: &Arc<str>,
        given: Given,
    ) -> Result<Result<Vec<PgRow>, sqlx::Error>> {
        let arguments = match given.finish() {
            Ok(arguments) => arguments,
            Err(error) => return Err(of_statement(operation, error)),
        };
        self.pool.run(operation, who, sql, arguments).await
    }

    pub(crate) fn failed(&self, operation: &'static str, error: sqlx::Error) -> Error {
        if code(&error).as_deref() == Some(OTHER_HISTORY) {
            self.histories.send_modify(|count| *count += 1);
            return Error::new(ErrorKind::Unavailable, operation)
                .with_message("the server has another history; attaching anew")
                .with_applied(Applied::No)
                .with_source(error);
        }
        of_statement(operation, error)
    }

    pub(crate) async fn run(
        &self,
        operation: &'static str,
        who: Who,
        sql: &Arc<str>,
        given: Given,
    ) -> Result<Vec<PgRow>> {
        let rows = self.look(operation, who, sql, given).await?;
        rows.map_err(|error| self.failed(operation, error))
    }

    pub(crate) async fn run_one(
        &self,
        operation: &'static str,
        who: Who,
        sql: &Arc<str>,
        given: Given,
    ) -> Result<PgRow> {
        let rows = self.run(operation, who, sql, given).await?;
        let first = rows.into_iter().next();
        first.ok_or_else(|| crate::call::odd(operation))
    }

    /// Runs a call that wakes others. Where their queue is full the step is done
    /// without: whoever waits catches up.
    pub(crate) async fn run_ringing(
        &self,
        operation: &'static str,
        who: Who,
        sql: &Arc<str>,
        given: impl Fn(bool) -> Given + Send,
    ) -> Result<Vec<PgRow>> {
        match self.look(operation, who, sql, given(true)).await? {
            Ok(rows) => Ok(rows),
            Err(error) if is_queue_full(&error) => {
                queue_is_full(&error);
                self.run(operation, who, sql, given(false)).await
            }
            Err(error) => Err(self.failed(operation, error)),
        }
    }
}

pub(crate) fn queue_is_full(error: &sqlx::Error) {
    metrics::counter!("mcp_adapter_postgres_notify_queue_full_total").increment(1);
    tracing::warn!(
        %error,
        "the queue of notifications is full: some session of this server listens and does not \
         read, or sits in a transaction; wake-ups wait for the catch-up until it is gone"
    );
}

#[async_trait]
impl Storage for PostgresStorage {
    fn profile(&self) -> Profile {
        // Use is recorded once per 128th of a session's idle time, and at most a
        // second late; all other deadlines are exact.
        let mut capabilities = Capabilities::server(Duration::from_millis(10));
        capabilities.push = !self.0.place.polls;
        Profile::remote("postgres", capabilities, LANES).with_repair()
    }

    async fn attach(&self, _: InstanceId) -> Result<Generation> {
        self.0.attach().await
    }

    async fn doorbell(&self, me: InstanceId) -> Result<BoxStream<'static, Result<Knock>>> {
        self.0.doorbell(me).await
    }

    async fn create(&self, session: &NewSession) -> Result<bool> {
        self.0.create(session).await
    }

    async fn enter(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
        open: Option<&OpenStream>,
    ) -> Result<Entered> {
        self.0.enter(session, principal, open).await
    }

    async fn update(&self, update: &UpdateSession) -> Result<Updated> {
        self.0.update(update).await
    }

    async fn delete(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
    ) -> Result<Option<Vec<InstanceId>>> {
        self.0.delete(session, principal).await
    }

    async fn append(&self, batch: &[Append]) -> Result<Vec<Appended>> {
        self.0.append(batch).await
    }

    async fn read(&self, cursors: &[Cursor]) -> Result<Vec<Read>> {
        self.0.read(cursors).await
    }

    async fn hold(
        &self,
        session: &SessionKey,
        stream: &StreamId,
        me: InstanceId,
        hold: Hold,
    ) -> Result<Held> {
        self.0.hold(session, stream, me, hold).await
    }

    async fn shrink(&self, session: &SessionKey, max_bytes: u64) -> Result<u64> {
        self.0.shrink(session, max_bytes).await
    }

    async fn put_requests(&self, batch: &[PutRequest]) -> Result<Vec<Put>> {
        self.0.put_requests(batch).await
    }

    async fn settle(&self, batch: &[Settle]) -> Result<Vec<Settled>> {
        self.0.settle(batch).await
    }

    async fn requests(&self, keys: &[RequestKey]) -> Result<Vec<RequestState>> {
        self.0.requests(keys).await
    }

    async fn mark_cancel(&self, session: &SessionKey, id: &RpcId) -> Result<Option<Cancelled>> {
        self.0.mark_cancel(session, id).await
    }

    async fn heartbeat(&self, me: Beat, ttl: Duration) -> Result<Vec<Beat>> {
        self.0.heartbeat(me, ttl).await
    }

    async fn claim(&self, batch: &[Claim]) -> Result<usize> {
        self.0.claim(batch).await
    }

    async fn sweep(&self, budget: usize, dead: &[Dead], finished_ttl: Duration) -> Result<Swept> {
        self.0.sweep(budget, dead, finished_ttl).await
    }

    async fn stats(&self) -> Result<Stats> {
        self.0.stats().await
    }

    async fn knock(&self, knocks: &[(Door, Knock)]) -> Result<()> {
        self.0.knock(knocks).await
    }
}
