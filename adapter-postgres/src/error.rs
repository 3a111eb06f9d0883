//! What goes wrong at the start, and what errors of statements mean.

use mcp_adapter_core::{Applied, Error, ErrorKind};
use sqlx::error::BoxDynError;

/// Why an adapter could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// An option is malformed: a URL, or the name of the schema.
    #[error("invalid option: {0}")]
    InvalidOption(&'static str, #[source] Option<sqlx::Error>),
    /// The server does not answer, or takes no client.
    #[error("Postgres cannot be reached, or takes no client")]
    Unreachable(#[source] sqlx::Error),
    /// There is no TLS with the server, although `sslmode` asks for it, or its
    /// certificate is not accepted.
    #[error("no TLS with the server: it has none, or its certificate is not accepted")]
    Tls(#[source] sqlx::Error),
    /// The server does not know the role, the password is wrong, or `pg_hba.conf`
    /// does not let this client in. The source says which.
    #[error(
        "the login is refused: the role is unknown, the password wrong, or the client not let in"
    )]
    Login(#[source] sqlx::Error),
    /// The server has no such database.
    #[error("the server has no such database")]
    NoDatabase(#[source] sqlx::Error),
    /// The [direct](crate::PostgresOptions::direct) connection, for notifications,
    /// cannot be made.
    #[error("the direct connection, for notifications, cannot be made")]
    Direct(#[source] Box<Self>),
    /// The server did not answer in time.
    #[error("Postgres did not answer within {0:?}")]
    Timeout(std::time::Duration),
    /// The server is older than Postgres 13.
    #[error("Postgres 13 or newer is needed, and this server has version number {found}")]
    ServerTooOld {
        /// Its `server_version_num`.
        found: u32,
    },
    /// The server, or this user's transactions, accept no writes: a standby.
    #[error("the server accepts no writes: it is a standby, or read-only")]
    ReadOnly,
    /// The user lacks a privilege.
    #[error("a privilege is missing: {needed}")]
    Privilege {
        /// What the user has to be able to do.
        needed: &'static str,
        /// What the server said.
        #[source]
        source: sqlx::Error,
    },
    /// A newer version of this crate has changed the schema in a way that this
    /// version cannot use.
    #[error("the schema needs version {needs} of the adapter's tables, and this is {supported}")]
    NewerSchema {
        /// The oldest version that can use the schema.
        needs: i32,
        /// The version that this crate has.
        supported: i32,
    },
    /// There are no tables, and making them was switched off.
    #[error("the tables are missing or outdated, and migrations are switched off")]
    NotMigrated,
    /// Nothing comes through the listening connection, although polling was
    /// ruled out.
    #[error("notifications do not arrive: the direct connection goes through a pooler?")]
    NoNotifications,
    /// Another failure of the server.
    #[error("Postgres failed at the start")]
    Server(#[source] sqlx::Error),
    /// A step of the adapter failed.
    #[error("the first step failed")]
    Step(#[source] Error),
}

impl ConnectError {
    /// From an attempt to connect.
    pub(crate) fn connecting(error: sqlx::Error) -> Self {
        match (code(&error).as_deref(), &error) {
            (Some("28000" | "28P01"), _) => Self::Login(error),
            (Some("3D000"), _) => Self::NoDatabase(error),
            (Some("42501"), _) => Self::Privilege {
                needed: "CONNECT on the database",
                source: error,
            },
            (None, sqlx::Error::Tls(_)) => Self::Tls(error),
            // What a handshake fails with.
            (None, sqlx::Error::Io(io)) if io.kind() == std::io::ErrorKind::InvalidData => {
                Self::Tls(error)
            }
            _ => Self::Unreachable(error),
        }
    }

    pub(crate) fn needing(needed: &'static str) -> impl Fn(sqlx::Error) -> Self {
        move |source| match code(&source).as_deref() {
            Some("42501") => Self::Privilege { needed, source },
            Some("25006") => Self::ReadOnly,
            _ => Self::Server(source),
        }
    }
}

/// The SQLSTATE, if the server sent one.
pub(crate) fn code(error: &sqlx::Error) -> Option<String> {
    let code = error.as_database_error()?.code()?;
    Some(code.into_owned())
}

/// The lease on a stream is over: its appends are to be sent again with all checks.
pub(crate) const LEASE_IS_OVER: &str = "MA001";
/// The server has another history than the one attached to.
pub(crate) const OTHER_HISTORY: &str = "MA002";

/// Whether the queue of notifications is full: then the transaction failed, and
/// would not have failed without its wake-ups.
pub(crate) fn is_queue_full(error: &sqlx::Error) -> bool {
    code(error).as_deref() == Some("54000")
        && error
            .as_database_error()
            .is_some_and(|error| error.message().contains("NOTIFY"))
}

/// Whether the connection is of no use any more.
pub(crate) fn breaks_connection(error: &sqlx::Error) -> bool {
    match code(error) {
        // The server is shutting down, starting up, or was told to end this one; a
        // server that turned read-only is not where to write any more.
        Some(code) => code.starts_with("57P") || code.starts_with("08") || code == "25006",
        None => true,
    }
}

/// What the failure of a statement means for its step.
pub(crate) fn of_statement(operation: &'static str, error: sqlx::Error) -> Error {
    let (kind, applied) = match code(&error) {
        Some(code) => match code.as_str() {
            // It was cancelled, or waited too long for a lock.
            "57014" | "55P03" => (ErrorKind::Timeout, Applied::No),
            // The answer may be from after the commit.
            code if code.starts_with("57P") || code.starts_with("08") => {
                (ErrorKind::Unavailable, Applied::Unknown)
            }
            // The server's answer is that nothing was done.
            _ => (ErrorKind::Unavailable, Applied::No),
        },
        None => match error {
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::Decode(_) => (ErrorKind::Corrupt, Applied::Unknown),
            sqlx::Error::Encode(_) => (ErrorKind::InvalidArgument, Applied::No),
            _ => (ErrorKind::Unavailable, Applied::Unknown),
        },
    };
    Error::new(kind, operation)
        .with_applied(applied)
        .with_source(error)
}

/// What the failure to get a connection means: nothing was sent.
pub(crate) fn of_connecting(operation: &'static str, error: sqlx::Error) -> Error {
    let kind = match error {
        sqlx::Error::PoolTimedOut => ErrorKind::Timeout,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, operation)
        .with_message("no connection")
        .with_source(error)
}

/// An answer that is not of the form agreed upon.
pub(crate) fn corrupt(operation: &'static str, source: impl Into<BoxDynError>) -> Error {
    Error::new(ErrorKind::Corrupt, operation)
        .with_applied(Applied::Unknown)
        .with_source(source)
}
