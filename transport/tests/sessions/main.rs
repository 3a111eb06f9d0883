//! Sessions over real HTTP on loopback, at instances that share one store.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on is to fail")]

mod client;
#[cfg(feature = "cors")]
mod cors;
mod eras;
mod failures;
mod features;
mod fixture;
mod flaky;
mod fleet;
mod input;
mod lifecycle;
mod listen;
mod operation;
mod questions;
mod raw;
mod resume;
mod scenarios;
#[allow(dead_code, unreachable_pub, missing_debug_implementations)]
#[path = "../../examples/serve.rs"]
mod serve;
mod shutdown;
mod state;
mod table;
mod wire;

use crate::{
    client::Result,
    fleet::{Fleet, Kind},
    scenarios::Scenario,
};

async fn run(kind: Kind, scenario: &Scenario) -> Result {
    let mut fleet = if scenario.apart {
        Fleet::with_a_apart(kind).await
    } else {
        Fleet::start(kind).await
    };
    (scenario.run)(&mut fleet).await
}
