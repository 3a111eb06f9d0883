//! Steps at once, from several handles: what one has read may not have changed by
//! the time it writes. What a race leaves is read through a handle that took no part.

mod control;
mod end;

pub(crate) use control::*;
pub(crate) use end::*;

use std::sync::Arc;

use futures::{
    FutureExt,
    future::{BoxFuture, try_join_all},
};
use mcp_adapter_core::{InstanceId, Position, SessionKey, storage::Append};
use tokio::sync::Barrier;

use super::{AnyStorage, Store, steps::*};
use crate::wait::{Failure, Verdict, claim, claim_eq, eventually, helper};

/// Appends of each writer of a race.
const EVENTS: u64 = 40;
/// So many bytes has each.
const BYTES: u64 = 10;
/// More than there ever is: a shrink to so many removes nothing, and counts.
const ALL: u64 = 1 << 40;

type Runner<T> = BoxFuture<'static, Step<T>>;

/// Runs all at once, each in a task of its own, on several threads.
async fn at_once<T: Send + 'static>(runners: Vec<Runner<T>>) -> Step<Vec<T>> {
    let start = Arc::new(Barrier::new(runners.len()));
    let spawn = |runner: Runner<T>| {
        let start = Arc::clone(&start);
        tokio::spawn(async move {
            start.wait().await;
            runner.await
        })
    };
    let running: Vec<_> = runners.into_iter().map(spawn).collect();
    let ended = try_join_all(running).await.map_err(Failure::new)?;
    ended.into_iter().collect()
}

/// The event number `n` of a stream, of `BYTES` bytes.
fn text(n: u64) -> String {
    format!("event {n:04}")
}

/// Appends to the stream `s` as its owner, up to event `to`, or until the stream is
/// ended by others; the number of the last that was acknowledged.
fn write_call(a: &AnyStorage, session: SessionKey, to: u64) -> Runner<u64> {
    let a = a.clone();
    async move {
        for seq in 1..=to {
            let answer = append(&a, &owned(session, at(1, seq), &text(seq))?).await?;
            match answer {
                mcp_adapter_core::storage::Appended::Stored { position, .. } => {
                    claim_eq!(position, at(1, seq));
                }
                mcp_adapter_core::storage::Appended::Fenced
                | mcp_adapter_core::storage::Appended::NoSession => return Ok(seq - 1),
                other => return Err(Failure::new(format!("`append` answered {other:?}"))),
            }
        }
        Ok(to)
    }
    .boxed()
}

/// Appends to the standalone stream.
fn write_shared(store: &AnyStorage, writer: InstanceId, session: SessionKey) -> Runner<u64> {
    let store = store.clone();
    async move {
        let mut last = Position::START;
        for tag in 1..=EVENTS {
            let entry: Append = shared(session, writer, tag, &text(tag))?;
            let position = stored(&store, &entry).await?;
            claim!(
                position > last,
                "positions rise: {position:?} after {last:?}"
            );
            last = position;
        }
        Ok(EVENTS)
    }
    .boxed()
}

/// The streams, and what they have to say, are whole: of the call `calls` events and
/// of the standalone stream `shares`; and so many bytes are counted.
#[track_caller]
fn is_whole(
    reader: &AnyStorage,
    session: SessionKey,
    calls: u64,
    shares: u64,
) -> impl Future<Output = Verdict> {
    helper(async move {
        let expected: Vec<_> = (1..=calls).map(text).collect();
        claim_eq!(
            texts(reader, session, "s").await?,
            expected,
            "events that were acknowledged while another step ran"
        );
        let mut found = match shares {
            0 => Vec::new(),
            _ => texts(reader, session, "standalone").await?,
        };
        found.sort();
        let writers = shares / EVENTS;
        let expected: Vec<_> = (1..=EVENTS)
            .flat_map(|tag| (0..writers).map(move |_| text(tag)))
            .collect();
        claim_eq!(
            found,
            expected,
            "shared events that were acknowledged while another step ran"
        );
        let bytes = (calls + shares) * BYTES;
        let counted = mcp_adapter_core::storage::Storage::shrink(reader, &session, ALL).await?;
        claim_eq!(counted, bytes, "the bytes of the session");
        Ok(())
    })
}

/// `stats` come to count so much: sessions, streams, events, bytes, pending requests.
#[track_caller]
fn come_to(reader: &AnyStorage, expected: [u64; 5]) -> impl Future<Output = Verdict> {
    helper(async move {
        let probe = || async { Ok((counts(reader).await? == expected).then_some(())) };
        if eventually("the counts", PATIENCE, probe).await.is_ok() {
            return Ok(());
        }
        let found = counts(reader).await?;
        Err(Failure::new(format!(
            "`stats` counts {found:?}, expected {expected:?}: sessions, streams, events, bytes, \
             pending requests"
        )))
    })
}

/// Handles of `A`, `B` and `C`, and one that only reads.
async fn handles(store: &Store) -> Step<[AnyStorage; 4]> {
    store.handles().await
}
