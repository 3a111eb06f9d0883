//! The steps of the storage, one at a time.

use std::process::ExitCode;

use mcp_adapter_postgres::{PostgresOptions, PostgresStorage};

fn main() -> ExitCode {
    mcp_adapter_conformance::run_storage("postgres", |options| async move {
        let url = mcp_adapter_conformance::server::postgres().await?;
        let postgres: PostgresOptions = url.parse()?;
        let postgres = postgres.schema(options.namespace());
        Ok(PostgresStorage::connect(postgres, options.limits()).await?)
    })
}
