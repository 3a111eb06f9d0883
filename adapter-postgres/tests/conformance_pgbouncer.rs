//! The conformance suite through PgBouncer in transaction mode: nothing is
//! configured, the adapter finds out.

use std::{
    process::ExitCode,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use mcp_adapter_conformance::{
    BoxError, Restart, Suite,
    server::{PgBouncer, Postgres, ServerError},
};
use mcp_adapter_core::Capabilities;
use mcp_adapter_postgres::{PostgresAdapter, PostgresOptions};

static SERVERS: Mutex<Option<(PgBouncer, Postgres)>> = Mutex::new(None);

/// Starts both for all cases.
fn start() -> Result<String, ServerError> {
    let mut servers = SERVERS.lock().unwrap_or_else(PoisonError::into_inner);
    if servers.is_none() {
        let mut postgres = Postgres::start(&[])?;
        let addr = postgres.program().addr();
        // Prepared statements are mixed up at once where connections change hands
        // so often.
        let settings = ["server_round_robin = 1"];
        *servers = Some((PgBouncer::start(addr, &settings)?, postgres));
    }
    Ok(servers
        .as_ref()
        .map_or_else(String::new, |(pooler, _)| pooler.url()))
}

/// Restarts the server behind the pooler.
fn restart() -> Result<(), BoxError> {
    let mut servers = SERVERS.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, postgres) = servers.as_mut().ok_or("no server was started")?;
    Ok(postgres.program().restart()?)
}

fn main() -> ExitCode {
    let mut capabilities = Capabilities::server(Duration::from_millis(10));
    // No notification comes through such a pooler.
    capabilities.push = false;
    let suite =
        Suite::new("postgres_pgbouncer", capabilities).with_restart(Restart::by(|_| async {
            tokio::task::spawn_blocking(restart).await?
        }));
    let code = suite.run(|options| async move {
        let url = tokio::task::spawn_blocking(start).await??;
        let postgres: PostgresOptions = options.proxy_url(&url)?.parse()?;
        let postgres = postgres.schema(options.namespace());
        Ok(PostgresAdapter::connect_with(postgres, options.limits().clone()).await?)
    });
    SERVERS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    code
}
