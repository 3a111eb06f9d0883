//! The conformance suite over this adapter, with LISTEN.

use std::{process::ExitCode, time::Duration};

use mcp_adapter_conformance::{Suite, server};
use mcp_adapter_core::Capabilities;
use mcp_adapter_postgres::{PostgresAdapter, PostgresOptions};

fn main() -> ExitCode {
    let capabilities = Capabilities::server(Duration::from_millis(10));
    let suite = Suite::new("postgres", capabilities).with_restart(server::postgres_restart());
    suite.run(|options| async move {
        let url = server::postgres().await?;
        let postgres: PostgresOptions = options.proxy_url(&url)?.parse()?;
        let postgres = postgres.schema(options.namespace());
        Ok(PostgresAdapter::connect_with(postgres, options.limits().clone()).await?)
    })
}
