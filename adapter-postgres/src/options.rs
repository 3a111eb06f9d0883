//! How to open an adapter.

use std::{fmt, str::FromStr, time::Duration};

use sqlx::{PgPool, postgres::PgConnectOptions};

use crate::error::ConnectError;

/// How an instance hears of what others write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wake {
    /// [`Listen`](Self::Listen) where notifications arrive, else
    /// [`Poll`](Self::Poll), with a warning.
    #[default]
    Auto,
    /// LISTEN, on one connection per instance. It must lead to the server itself:
    /// a pooler in transaction mode loses notifications.
    Listen,
    /// A small table, read several times a second: for poolers in transaction
    /// mode and for servers that may not keep a connection open.
    Poll,
}

/// Whether the statements go through a pooler that gives each transaction another
/// connection of the server, as PgBouncer in transaction mode does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooler {
    /// Found out at the start, by whether the server sees what this client set
    /// when it connected.
    #[default]
    Auto,
    /// There is one: each statement is a transaction of its own, and none is
    /// prepared for longer.
    Transaction,
    /// There is none, or one that keeps sessions apart.
    None,
}

/// Where the data is, and how to get there.
#[derive(Clone)]
#[must_use]
pub struct PostgresOptions {
    pub(crate) connect: PgConnectOptions,
    pub(crate) direct: Option<PgConnectOptions>,
    pub(crate) pool: Option<PgPool>,
    pub(crate) schema: String,
    pub(crate) max_connections: u32,
    pub(crate) wake: Wake,
    pub(crate) pooler: Pooler,
    pub(crate) migrate: bool,
    pub(crate) start_timeout: Duration,
}

impl PostgresOptions {
    /// Connects with these. Unless told otherwise they encrypt where the server offers
    /// it, and say nothing where it does not (`sslmode=prefer`): see
    /// [TLS](crate#tls).
    pub fn new(connect: PgConnectOptions) -> Self {
        Self {
            connect,
            direct: None,
            pool: None,
            schema: "mcp_adapter".into(),
            max_connections: 10,
            wake: Wake::default(),
            pooler: Pooler::default(),
            migrate: true,
            start_timeout: Duration::from_secs(15),
        }
    }

    /// Sends statements through the application's own pool. Each statement is
    /// then a transaction of its own, because its timeouts are set in it; without
    /// a pool the adapter keeps connections of its own and saves these round
    /// trips. The pool should have at least five connections to spare.
    pub fn with_pool(pool: PgPool) -> Self {
        let connect = (*pool.connect_options()).clone();
        Self {
            max_connections: pool.options().get_max_connections(),
            pool: Some(pool),
            ..Self::new(connect)
        }
    }

    /// Where LISTEN connects to, if the other connections go through a pooler.
    pub fn direct(mut self, direct: PgConnectOptions) -> Self {
        self.direct = Some(direct);
        self
    }

    /// As [`direct`](Self::direct), as a URL.
    ///
    /// # Errors
    /// [`ConnectError::InvalidOption`] where it is none.
    pub fn direct_url(self, url: &str) -> Result<Self, ConnectError> {
        Ok(self.direct(parse(url)?))
    }

    /// The schema of all tables and functions: 1 to 48 bytes of `[a-z0-9_]`,
    /// beginning with a letter. Default `mcp_adapter`. It is made if need be.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = schema.into();
        self
    }

    /// Connections that an instance opens at most, the listening one apart; at
    /// least five. Default ten; they are opened as they are needed. Without
    /// effect on the application's own pool.
    pub fn max_connections(mut self, max: u32) -> Self {
        self.max_connections = max;
        self
    }

    /// How to hear of what others write.
    pub fn wake(mut self, wake: Wake) -> Self {
        self.wake = wake;
        self
    }

    /// Whether statements go through a pooler.
    pub fn pooler(mut self, pooler: Pooler) -> Self {
        self.pooler = pooler;
        self
    }

    /// Whether to make and update the tables. Default true; otherwise they have
    /// to be there.
    pub fn migrate(mut self, migrate: bool) -> Self {
        self.migrate = migrate;
        self
    }

    /// How long opening may take. Default 15 seconds.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    pub(crate) fn check(&self) -> Result<(), ConnectError> {
        let bytes = self.schema.as_bytes();
        let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_';
        if !bytes.first().is_some_and(u8::is_ascii_lowercase)
            || bytes.len() > 48
            || !bytes.iter().all(plain)
            || self.schema.starts_with("pg_")
        {
            return Err(ConnectError::InvalidOption(
                "the schema must be 1 to 48 bytes of [a-z0-9_], beginning with a letter",
                None,
            ));
        }
        if self.max_connections < 5 {
            return Err(ConnectError::InvalidOption(
                "at least five connections are needed",
                None,
            ));
        }
        Ok(())
    }
}

fn parse(url: &str) -> Result<PgConnectOptions, ConnectError> {
    url.parse()
        .map_err(|error| ConnectError::InvalidOption("not a URL of Postgres", Some(error)))
}

impl FromStr for PostgresOptions {
    type Err = ConnectError;

    /// From a URL, `postgres://user:password@host:port/database?sslmode=verify-full`:
    /// see [TLS](crate#tls) for what other modes do.
    fn from_str(url: &str) -> Result<Self, ConnectError> {
        parse(url).map(Self::new)
    }
}

impl fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither URL: they hold passwords.
        f.debug_struct("PostgresOptions")
            .field("schema", &self.schema)
            .field("max_connections", &self.max_connections)
            .field("wake", &self.wake)
            .field("pooler", &self.pooler)
            .field("migrate", &self.migrate)
            .finish_non_exhaustive()
    }
}
