//! The steps of the storage, one at a time.

use std::{process::ExitCode, time::Duration};

use mcp_adapter_conformance::{Suite, server};
use mcp_adapter_core::Capabilities;
use mcp_adapter_postgres::{PostgresOptions, PostgresStorage};

fn main() -> ExitCode {
    let capabilities = Capabilities::server(Duration::from_millis(10));
    let suite = Suite::new("postgres", capabilities);
    let suite = suite.with_restart(server::postgres_restart());
    suite.run_storage(|options| async move {
        let url = server::postgres().await?;
        let postgres: PostgresOptions = url.parse()?;
        let postgres = postgres.schema(options.namespace());
        Ok(PostgresStorage::connect(postgres, options.limits()).await?)
    })
}
