//! The table of what stock rmcp does with the same scenarios, in the docs.

use std::{fmt::Write as _, fs, path::Path};

use futures::StreamExt;

use crate::{client::Result, fleet::Kind, run, scenarios::SCENARIOS};

const HEAD: &str = "\
# The same scenarios with stock rmcp

Two or more instances; A and B are two of them. *Stock rmcp* is `StreamableHttpService` with a
`LocalSessionManager` per instance, as its documentation shows it; *ours* is
`StreamableHttpTransport` with one shared store. The server code is the same.

This page is written by the test `the_table_is_up_to_date` from a run of `tests/sessions`
(`UPDATE_DOCS=1` rewrites it), with rmcp ";

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/stock-rmcp.md");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_is_up_to_date() {
    let mut table = format!("{HEAD}{}.\n\n", rmcp_version());
    table.push_str("| scenario | stock rmcp | ours |\n|---|---|---|\n");
    let rows = futures::stream::iter(SCENARIOS).map(async |scenario| {
        let stock = run(Kind::Stock, scenario).await;
        let ours = run(Kind::Ours, scenario).await;
        (scenario.name, stock, ours)
    });
    let mut rows = rows.buffered(4);
    while let Some((name, stock, ours)) = rows.next().await {
        writeln!(table, "| {name} | {} | {} |", cell(stock), cell(ours)).unwrap();
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::create_dir_all(Path::new(PATH).parent().unwrap()).unwrap();
        fs::write(PATH, &table).unwrap();
    }
    let committed = fs::read_to_string(PATH).unwrap_or_default();
    assert_eq!(
        committed, table,
        "docs/stock-rmcp.md is stale: run this test with UPDATE_DOCS=1"
    );
}

fn cell(outcome: Result) -> String {
    match outcome {
        Ok(()) => "works".into(),
        Err(failure) => format!("**fails**: {}", failure.replace('|', "\\|")),
    }
}

/// The version of the lock file, which is what was run.
fn rmcp_version() -> String {
    let lock = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock")).unwrap();
    let (_, package) = lock.split_once("name = \"rmcp\"\nversion = \"").unwrap();
    package.split('"').next().unwrap().to_owned()
}
