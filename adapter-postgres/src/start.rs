//! Opening: what the server is, what is between it and here, and its tables.

use std::time::Duration;

use mcp_adapter_core::storage::REMEMBERED;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row,
    postgres::{PgConnectOptions, PgRow},
};

use crate::{
    error::{ConnectError, code},
    options::{Pooler, PostgresOptions},
};

/// The version of the tables and functions that this crate uses.
pub(crate) const VERSION: i32 = 1;

/// Migrations in order: their version, the oldest version of this crate that can
/// still use the schema after it, and their SQL. They only add: a version in use
/// finds all that it knows.
const MIGRATIONS: &[(i32, i32, &[&str])] = &[(
    1,
    1,
    &[
        include_str!("../sql/0001/tables.sql"),
        include_str!("../sql/0001/doors.sql"),
        include_str!("../sql/0001/session.sql"),
        include_str!("../sql/0001/append.sql"),
        include_str!("../sql/0001/read.sql"),
        include_str!("../sql/0001/request.sql"),
        include_str!("../sql/0001/sweep.sql"),
    ],
)];

/// How long the direct connection may take to be made.
const DIRECT: Duration = Duration::from_secs(4);

/// Tables that change all the time: vacuumed when a fiftieth of them is dead, and
/// without pauses, for they are small.
const VACUUM: &str = "autovacuum_vacuum_scale_factor = 0.02, \
    autovacuum_vacuum_threshold = 500, autovacuum_analyze_scale_factor = 0.05, \
    autovacuum_vacuum_cost_delay = 0";

fn fill(sql: &str, schema: &str) -> String {
    sql.replace("{vacuum}", VACUUM)
        .replace("{remembered}", &REMEMBERED.to_string())
        .replace("{schema}", &format!("\"{schema}\""))
}

/// What our calls run with. Nothing of the application's can change what they mean,
/// and their plans suit tables of any size. The functions have no settings of their
/// own: changing these at each call costs more than many a call itself.
fn settings(schema: &str, statement: Duration) -> [(&'static str, String); 9] {
    let millis = |timeout: Duration| timeout.as_millis().max(1).to_string();
    let off = || "off".to_owned();
    [
        ("statement_timeout", millis(statement)),
        ("lock_timeout", millis(statement / 2)),
        ("idle_in_transaction_session_timeout", millis(statement)),
        ("search_path", format!("\"{schema}\",pg_temp")),
        ("plan_cache_mode", "force_generic_plan".into()),
        ("jit", off()),
        ("enable_seqscan", off()),
        ("enable_hashjoin", off()),
        ("enable_mergejoin", off()),
    ]
}

/// The settings as one statement, which costs a fraction of one for each.
fn set(schema: &str, statement: Duration, local: bool) -> String {
    let settings = settings(schema, statement);
    let each = settings
        .iter()
        .map(|(name, value)| format!("set_config('{name}', '{value}', {local})"));
    format!("SELECT {}", each.collect::<Vec<_>>().join(", "))
}

/// What begins a transaction where the settings of a connection are not ours.
pub(crate) fn begin(schema: &str, statement: Duration) -> String {
    format!("BEGIN; {}", set(schema, statement, true))
}

/// A server that can be used.
#[derive(Debug)]
pub(crate) struct Found {
    /// How to connect to it.
    pub(crate) connect: PgConnectOptions,
    /// Each statement needs a transaction of its own.
    pub(crate) pooled: bool,
    /// What sets a new connection up, where it cannot be told as it is opened.
    pub(crate) set: Option<String>,
    /// A commit may be acknowledged before the disk has it.
    pub(crate) lossy: bool,
}

fn text(row: &PgRow, column: usize) -> Result<String, ConnectError> {
    row.try_get(column).map_err(ConnectError::Server)
}

/// Only whole texts and no parameters: this may go through a pooler.
async fn ask(connection: &mut PgConnection, sql: &'static str) -> Result<PgRow, ConnectError> {
    sqlx::raw_sql(sql)
        .fetch_one(connection)
        .await
        .map_err(ConnectError::Server)
}

/// So that nothing that is sent gets into a log, and people see whose a connection is.
pub(crate) fn quiet(connect: &PgConnectOptions) -> PgConnectOptions {
    let connect = connect.clone().disable_statement_logging();
    match connect.get_application_name() {
        Some(_) => connect,
        None => connect.application_name("mcp-adapter"),
    }
}

/// Says what is wrong with a direct URL. One that does not answer is left to the test
/// by a notification, without which the adapter may poll.
pub(crate) async fn try_direct(direct: &PgConnectOptions) -> Result<(), ConnectError> {
    match tokio::time::timeout(DIRECT, PgConnection::connect_with(direct)).await {
        Ok(Err(error)) => {
            let why = ConnectError::connecting(error);
            Err(ConnectError::Direct(Box::new(why)))
        }
        Ok(Ok(connection)) => {
            // It only says goodbye.
            let _ = connection.close().await;
            Ok(())
        }
        Err(_) => Ok(()),
    }
}

/// Connects, finds out what is there, and makes the tables if need be.
pub(crate) async fn start(
    options: &PostgresOptions,
    statement: Duration,
) -> Result<Found, ConnectError> {
    let base = quiet(&options.connect);
    let token = format!("{:016x}", mcp_adapter_core::InstanceId::generate().0 >> 64);
    let marked = base
        .clone()
        .options(settings(&options.schema, statement))
        .options([("mcp_adapter.link", &token)]);
    // A pooler either refuses settings at the start or does not hand them on.
    let (mut connection, seen) = match PgConnection::connect_with(&marked).await {
        Ok(mut connection) => {
            let row = ask(
                &mut connection,
                "SELECT coalesce(current_setting('mcp_adapter.link', true), '')",
            );
            let row = row.await?;
            (connection, text(&row, 0)? == token)
        }
        Err(error) if code(&error).as_deref() == Some("08P01") => {
            let plain = base.clone().extra_float_digits(None);
            let connection = PgConnection::connect_with(&plain).await;
            (connection.map_err(ConnectError::connecting)?, false)
        }
        Err(error) => return Err(ConnectError::connecting(error)),
    };
    let pooled = match options.pooler {
        Pooler::Auto => !seen,
        Pooler::Transaction => true,
        Pooler::None => false,
    };
    if pooled && options.pooler == Pooler::Auto {
        tracing::warn!(
            "settings of the connection do not reach Postgres: taken for a pooler in transaction \
             mode, each statement is a transaction of its own"
        );
    }
    let lossy = check_server(&mut connection).await?;
    prepare(&mut connection, options).await?;
    // It only says goodbye.
    let _ = connection.close().await;
    let mut by_hand = None;
    let connect = if pooled {
        base.extra_float_digits(None).statement_cache_capacity(0)
    } else if seen {
        base.options(settings(&options.schema, statement))
    } else {
        by_hand = Some(set(&options.schema, statement, false));
        base.extra_float_digits(None)
    };
    Ok(Found {
        connect,
        pooled,
        set: by_hand,
        lossy,
    })
}

async fn check_server(connection: &mut PgConnection) -> Result<bool, ConnectError> {
    let row = ask(
        connection,
        "SELECT current_setting('server_version_num'), \
         (pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean)::text, \
         (current_setting('synchronous_commit') = 'off' \
            OR NOT current_setting('fsync')::boolean)::text",
    );
    let row = row.await?;
    let found = text(&row, 0)?.parse().unwrap_or(0);
    if found < 130_000 {
        return Err(ConnectError::ServerTooOld { found });
    }
    if text(&row, 1)? == "true" {
        return Err(ConnectError::ReadOnly);
    }
    Ok(text(&row, 2)? == "true")
}

/// The version of the schema and the oldest version that can use it; `None` where
/// there are no tables of ours.
async fn versions(
    connection: &mut PgConnection,
    schema: &str,
) -> Result<Option<(i32, i32)>, ConnectError> {
    // Not `to_regclass`: what a user may not see is not absent.
    let there = format!(
        "SELECT 1 FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = '{schema}' AND c.relname = 'migration'"
    );
    let there = sqlx::raw_sql(AssertSqlSafe(there))
        .fetch_optional(&mut *connection)
        .await
        .map_err(ConnectError::Server)?;
    if there.is_none() {
        return Ok(None);
    }
    let sql = format!(
        "SELECT coalesce(max(version), 0)::text, coalesce(max(needs), 0)::text \
         FROM \"{schema}\".migration"
    );
    let row = sqlx::raw_sql(AssertSqlSafe(sql))
        .fetch_one(connection)
        .await
        .map_err(ConnectError::needing(
            "USAGE on the schema and SELECT on its tables",
        ))?;
    let number = |column| text(&row, column).map(|text| text.parse().unwrap_or(0));
    Ok(Some((number(0)?, number(1)?)))
}

fn is_ready(found: Option<(i32, i32)>) -> Result<bool, ConnectError> {
    match found {
        Some((_, needs)) if needs > VERSION => Err(ConnectError::NewerSchema {
            needs,
            supported: VERSION,
        }),
        Some((version, _)) => Ok(version >= VERSION),
        None => Ok(false),
    }
}

async fn prepare(
    connection: &mut PgConnection,
    options: &PostgresOptions,
) -> Result<(), ConnectError> {
    let schema = &options.schema;
    if is_ready(versions(connection, schema).await?)? {
        return Ok(());
    }
    if !options.migrate {
        return Err(ConnectError::NotMigrated);
    }
    let needing = ConnectError::needing(
        "CREATE on the schema, or CREATE on the database where there is no schema yet",
    );
    // One at a time; the others find the work done. All of it is one transaction.
    let lock = lock_key(schema, b"migrate");
    let begin = format!(
        "BEGIN; SET LOCAL statement_timeout = '60s'; SET LOCAL lock_timeout = '60s'; \
         SELECT pg_advisory_xact_lock({lock})"
    );
    let execute = |sql: String| sqlx::raw_sql(AssertSqlSafe(sql));
    connection.execute(execute(begin)).await.map_err(&needing)?;
    let found = versions(connection, schema).await?;
    if !is_ready(found)? {
        let present = format!("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = '{schema}'");
        let present = execute(present).fetch_optional(&mut *connection).await;
        let mut sql = String::new();
        // `IF NOT EXISTS` would ask for the privilege all the same.
        if present.map_err(&needing)?.is_none() {
            sql += &format!("CREATE SCHEMA \"{schema}\";\n");
        }
        // Functions are checked as they are made, by the path of this transaction.
        sql += &format!("SET LOCAL search_path = \"{schema}\", pg_temp;\n");
        if found.is_none() {
            sql += &format!(
                "CREATE TABLE \"{schema}\".migration (version integer PRIMARY KEY, \
                 needs integer NOT NULL, applied timestamptz NOT NULL DEFAULT now());\n"
            );
        }
        let at = found.map_or(0, |(version, _)| version);
        for (version, needs, parts) in MIGRATIONS.iter().filter(|(version, ..)| *version > at) {
            for part in *parts {
                sql += &fill(part, schema);
            }
            sql += &format!(
                "INSERT INTO \"{schema}\".migration (version, needs) VALUES ({version}, {needs});\n"
            );
        }
        connection.execute(execute(sql)).await.map_err(&needing)?;
    }
    let commit = connection.execute(sqlx::raw_sql("COMMIT")).await;
    commit.map(drop).map_err(&needing)
}

/// A number for an advisory lock, from a name that nobody else uses.
pub(crate) fn lock_key(schema: &str, name: &[u8]) -> i64 {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    hash.update(b"mcp-adapter\0");
    hash.update(schema.as_bytes());
    hash.update(b"\0");
    hash.update(name);
    let digest: [u8; 32] = hash.finalize().into();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first)
}
