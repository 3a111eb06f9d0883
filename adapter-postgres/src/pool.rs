//! Connections: our own, or those of the application's pool.
//!
//! The pool of sqlx pings a connection whenever it is returned and again when it is
//! taken: three round trips instead of one. Our own connections are kept as they
//! are; one that fails is dropped, and the engine repeats the step.

use std::{fmt, sync::Arc, time::Duration};

use mcp_adapter_core::{Applied, Error, ErrorKind, Result};
use parking_lot::Mutex;
use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgArguments, PgConnectOptions, PgRow},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use crate::error::{breaks_connection, of_connecting, of_statement};

/// Connections that callers leave to the tasks of the engine: a heartbeat must not
/// wait behind a thousand requests.
const RESERVED: usize = 4;
/// A connection that was not used for so long is closed.
const IDLE: Duration = Duration::from_secs(120);

/// Who asks for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// A caller, of whom there may be many.
    Caller,
    /// A task of the engine, of which there are few.
    Engine,
}

struct Idle {
    connection: PgConnection,
    since: Instant,
}

enum Source {
    Own {
        options: Box<PgConnectOptions>,
        idle: Mutex<Vec<Idle>>,
        permits: Arc<Semaphore>,
        max: u32,
        /// What sets a new connection up.
        set: Option<Arc<str>>,
    },
    Handed(PgPool),
}

/// Where connections come from, and in which form statements are sent.
pub(crate) struct Pool(Arc<Connections>);

struct Connections {
    source: Source,
    callers: Semaphore,
    /// What begins a transaction, where each statement needs one of its own.
    begin: Option<Arc<str>>,
    /// How long a statement in a task of its own may take, waiting for its turn included.
    patience: Duration,
}

/// A statement that goes on although nobody polls for its answer, and ends where nobody
/// can any more.
struct Driven<T>(JoinHandle<T>);

impl<T> Drop for Driven<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection on loan. Unless it is given back it is closed: it may be in the
/// middle of something.
struct Lent {
    connection: Option<Kind>,
    _permit: Option<OwnedSemaphorePermit>,
}

enum Kind {
    Own(PgConnection),
    Handed(PoolConnection<Postgres>),
}

impl Lent {
    fn connection(&mut self) -> Option<&mut PgConnection> {
        match self.connection.as_mut()? {
            Kind::Own(connection) => Some(connection),
            Kind::Handed(connection) => Some(&mut **connection),
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Given back, a pool would wait for what it is in the middle of.
        if let Some(Kind::Handed(connection)) = self.connection.take() {
            drop(connection.detach());
        }
    }
}

impl Pool {
    /// `patience`: how long a statement may take that has a task of its own.
    pub(crate) fn own(
        options: PgConnectOptions,
        max: u32,
        set: Option<Arc<str>>,
        begin: Option<Arc<str>>,
        patience: Duration,
    ) -> Self {
        Self(Arc::new(Connections {
            source: Source::Own {
                options: Box::new(options),
                idle: Mutex::new(Vec::new()),
                permits: Arc::new(Semaphore::new(max as usize)),
                max,
                set,
            },
            callers: callers(max as usize),
            begin,
            patience,
        }))
    }

    pub(crate) fn handed(pool: PgPool, begin: Arc<str>, patience: Duration) -> Self {
        let max = pool.options().get_max_connections() as usize;
        Self(Arc::new(Connections {
            source: Source::Handed(pool),
            callers: callers(max),
            begin: Some(begin),
            patience,
        }))
    }

    /// The same with connections of its own, for another instance.
    pub(crate) fn another(&self) -> Self {
        let Connections {
            source,
            begin,
            patience,
            ..
        } = &*self.0;
        match source {
            Source::Own {
                options, max, set, ..
            } => {
                let options = (**options).clone();
                Self::own(options, *max, set.clone(), begin.clone(), *patience)
            }
            Source::Handed(pool) => Self(Arc::new(Connections {
                source: Source::Handed(pool.clone()),
                callers: callers(pool.options().get_max_connections() as usize),
                begin: begin.clone(),
                patience: *patience,
            })),
        }
    }

    /// Runs one statement, which is atomic. Its error is the driver's, for those who
    /// look at it, or one from before it was sent.
    ///
    /// A caller may stop to poll, for as long as its client reads nothing, with a
    /// connection on loan, or with locks in the middle of a transaction. So its
    /// statement has a task of its own.
    pub(crate) async fn run(
        &self,
        operation: &'static str,
        who: Who,
        sql: &Arc<str>,
        arguments: PgArguments,
    ) -> Result<Result<Vec<PgRow>, sqlx::Error>> {
        if who == Who::Engine && self.0.begin.is_none() {
            return self.0.run(operation, sql, arguments).await;
        }
        let (connections, sql) = (Arc::clone(&self.0), Arc::clone(sql));
        let late = move |applied| Error::new(ErrorKind::Timeout, operation).with_applied(applied);
        let mut driven = Driven(tokio::spawn(async move {
            let until = Instant::now() + connections.patience;
            let _turn = match who {
                Who::Caller => {
                    let turn = timeout_at(until, connections.callers.acquire()).await;
                    turn.map_err(|_| late(Applied::No))?.ok()
                }
                Who::Engine => None,
            };
            let run = timeout_at(until, connections.run(operation, &sql, arguments));
            run.await.map_err(|_| late(Applied::Unknown))?
        }));
        let ran = (&mut driven.0).await;
        ran.map_err(|_| Error::unavailable(operation, Applied::Unknown))?
    }
}

impl Connections {
    async fn lend(&self, operation: &'static str) -> Result<Lent> {
        let closed = || Error::new(ErrorKind::Closed, operation);
        match &self.source {
            Source::Own {
                options,
                idle,
                permits,
                set,
                ..
            } => {
                let permit = Arc::clone(permits).acquire_owned().await;
                let permit = permit.map_err(|_| closed())?;
                let kept = idle.lock().pop();
                let connection = match kept {
                    Some(kept) => kept.connection,
                    None => {
                        let made = connect(options, set.as_ref()).await;
                        made.map_err(|error| of_connecting(operation, error))?
                    }
                };
                Ok(Lent {
                    connection: Some(Kind::Own(connection)),
                    _permit: Some(permit),
                })
            }
            Source::Handed(pool) => {
                let connection = pool.acquire().await;
                let connection = connection.map_err(|error| of_connecting(operation, error))?;
                Ok(Lent {
                    connection: Some(Kind::Handed(connection)),
                    _permit: None,
                })
            }
        }
    }

    fn give_back(&self, mut lent: Lent) {
        match (lent.connection.take(), &self.source) {
            (Some(Kind::Own(connection)), Source::Own { idle, .. }) => {
                let since = Instant::now();
                let mut idle = idle.lock();
                idle.push(Idle { connection, since });
                // The last are used first: what is not needed stays at the front.
                let old = idle.iter().take_while(|idle| idle.since + IDLE < since);
                let old = old.count();
                let old: Vec<_> = idle.drain(..old).collect();
                drop(idle);
                drop(old);
            }
            // Goes back by itself.
            (Some(Kind::Handed(connection)), _) => drop(connection),
            (Some(Kind::Own(_)) | None, _) => {}
        }
    }

    async fn run(
        &self,
        operation: &'static str,
        sql: &Arc<str>,
        arguments: PgArguments,
    ) -> Result<Result<Vec<PgRow>, sqlx::Error>> {
        let mut lent = self.lend(operation).await?;
        let Some(connection) = lent.connection() else {
            return Err(Error::new(ErrorKind::Closed, operation));
        };
        let query = sqlx::query_with(AssertSqlSafe(Arc::clone(sql)), arguments);
        let result = match &self.begin {
            None => query.fetch_all(connection).await,
            Some(begin) => {
                let begin = sqlx::raw_sql(AssertSqlSafe(Arc::clone(begin)));
                if let Err(error) = connection.execute(begin).await {
                    return Err(of_statement(operation, error));
                }
                match query.persistent(false).fetch_all(&mut *connection).await {
                    Ok(rows) => connection
                        .execute(sqlx::raw_sql("COMMIT"))
                        .await
                        .map(|_| rows),
                    Err(error) => Err(error),
                }
            }
        };
        match &result {
            Ok(_) => self.give_back(lent),
            // A transaction that failed is rolled back by closing its connection.
            Err(error) if self.begin.is_none() && !breaks_connection(error) => {
                self.give_back(lent);
            }
            // What broke this one has most likely broken those that are idle.
            Err(error) if breaks_connection(error) => {
                drop(lent);
                self.forget_idle();
            }
            Err(_) => drop(lent),
        }
        Ok(result)
    }

    fn forget_idle(&self) {
        if let Source::Own { idle, .. } = &self.source {
            let idle = std::mem::take(&mut *idle.lock());
            drop(idle);
        }
    }
}

async fn connect(
    options: &PgConnectOptions,
    set: Option<&Arc<str>>,
) -> Result<PgConnection, sqlx::Error> {
    let mut connection = PgConnection::connect_with(options).await?;
    if let Some(set) = set {
        let set = sqlx::raw_sql(AssertSqlSafe(Arc::clone(set)));
        connection.execute(set).await?;
    }
    Ok(connection)
}

fn callers(max: usize) -> Semaphore {
    Semaphore::new(max.saturating_sub(RESERVED).max(1))
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("transactions", &self.0.begin.is_some())
            .finish_non_exhaustive()
    }
}
