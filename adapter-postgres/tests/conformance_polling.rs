//! The conformance suite over this adapter, polling for wake-ups.

use std::{process::ExitCode, time::Duration};

use mcp_adapter_conformance::{Suite, server};
use mcp_adapter_core::Capabilities;
use mcp_adapter_postgres::{PostgresAdapter, PostgresOptions, Wake};

fn main() -> ExitCode {
    let mut capabilities = Capabilities::server(Duration::from_millis(10));
    capabilities.push = false;
    let suite = Suite::new("postgres_polling", capabilities);
    let suite = suite.with_restart(server::postgres_restart());
    suite.run(|options| async move {
        let url = server::postgres().await?;
        let postgres: PostgresOptions = options.proxy_url(&url)?.parse()?;
        let postgres = postgres.schema(options.namespace()).wake(Wake::Poll);
        Ok(PostgresAdapter::connect_with(postgres, options.limits().clone()).await?)
    })
}
