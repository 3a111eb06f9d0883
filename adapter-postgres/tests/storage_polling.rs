//! The steps of the storage, with doors that are polled.

use std::process::ExitCode;

use mcp_adapter_postgres::{PostgresOptions, PostgresStorage, Wake};

fn main() -> ExitCode {
    mcp_adapter_conformance::run_storage("postgres_polling", |options| async move {
        let url = mcp_adapter_conformance::server::postgres().await?;
        let postgres: PostgresOptions = url.parse()?;
        let postgres = postgres.schema(options.namespace()).wake(Wake::Poll);
        Ok(PostgresStorage::connect(postgres, options.limits()).await?)
    })
}
