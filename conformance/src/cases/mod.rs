//! The bodies of the cases. What a case is about is its name in
//! [`CASES`](crate::CASES); comments say why it could fail.

pub(crate) mod death;
pub(crate) mod durable;
pub(crate) mod event;
pub(crate) mod expiry;
pub(crate) mod holder;
pub(crate) mod limit;
pub(crate) mod load;
pub(crate) mod outage;
pub(crate) mod request;
pub(crate) mod session;
pub(crate) mod signal;
pub(crate) mod start;

use mcp_adapter_core::{Count, Error, ErrorKind, Limits, Principal, RpcId, SessionRecord, Stats};
use tokio::time::Instant;

use crate::{
    fleet::Fleet,
    instance::{Instance, record},
    wait::{Failure, eventually, helper},
};

/// The kind of an error that must be there.
pub(crate) fn kind<T>(result: Result<T, Error>) -> Option<ErrorKind> {
    result.err().as_ref().map(Error::kind)
}

pub(crate) const NOT_FOUND: Option<ErrorKind> = Some(ErrorKind::SessionNotFound);

pub(crate) fn number(number: i64) -> RpcId {
    RpcId::Number(number)
}

pub(crate) fn string(text: &str) -> RpcId {
    RpcId::String(text.into())
}

pub(crate) fn record_of(principal: &Principal) -> SessionRecord {
    SessionRecord {
        principal: Some(principal.clone()),
        ..record()
    }
}

/// Counts that are not older than this call: exact ones, or estimates made since
/// (clause S6).
#[track_caller]
pub(crate) fn fresh_stats(
    fleet: &Fleet,
    instance: &Instance,
) -> impl Future<Output = Result<Stats, Failure>> {
    helper(async move {
        let since = Instant::now();
        let probe = || async {
            let stats = instance.stats().await?;
            let counts = [
                stats.sessions,
                stats.streams,
                stats.events,
                stats.bytes,
                stats.pending_requests,
            ];
            let fresh = |count: &Count| match count {
                Count::Exact(_) => true,
                Count::Estimate { age, .. } => *age <= since.elapsed(),
            };
            Ok(counts.iter().all(fresh).then_some(stats))
        };
        // Somebody polls every ten seconds, and is to learn something.
        eventually("counts that are not stale", fleet.patience() * 2, probe).await
    })
}

/// What the numbers from `from` to `to` look like as events, and then the end.
pub(crate) fn counted(from: u32, to: u32, end: Option<&str>) -> Vec<String> {
    let numbers = (from..=to).map(|number| number.to_string());
    numbers.chain(end.map(Into::into)).collect()
}

/// How often a case is tried that has to be quick between two looks.
pub(crate) const TRIES: u32 = 10;
pub(crate) const TOO_SLOW: &str = "the machine is too slow to tell before from after";

/// Whether deadlines may be told by looking: after this a thing is gone, before
/// that it is not.
pub(crate) fn is_before(since: Instant, limits: &Limits) -> bool {
    since.elapsed() < limits.idle_ttl() * 4 / 5
}
