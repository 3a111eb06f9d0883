//! Streams whose time is over, made again.

use mcp_adapter_core::{
    StreamId,
    storage::{Append, Appended, Entered, Held, Hold, OpenStream, Read, Storage},
};
use tokio::time::sleep;

use super::{AnyStorage, Store, steps::*};
use crate::wait::{Failure, Verdict, claim, claim_eq};

pub(crate) async fn a_call_is_opened_anew_under_its_name(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let kept = store.ticks(&a, 20);
    let session = stream(&a).await?;
    let last = Append {
        finish: Some(kept),
        ..owned(session, at(1, 5), "of the first")?
    };
    stored(&a, &last).await?;
    sleep(kept + store.ticks(&a, 10)).await;
    // Nobody has swept, or looked.
    let again = OpenStream {
        owner: B,
        max_open: 1,
        ..open("s")?
    };
    for _ in 0..2 {
        let entered = b.enter(&session, &ME, Some(&again)).await?;
        claim!(matches!(entered, Entered::Session { .. }), "{entered:?}");
    }
    let (events, found) = page(&a, &cursor(session, "s")?).await?;
    claim!(events.is_empty(), "events of the first: {events:?}");
    claim_eq!((found.owner, found.end), (Some(B), None));
    let first = Append {
        place: mcp_adapter_core::storage::Place::Owned {
            owner: B,
            position: at(1, 1),
        },
        ..owned(session, at(1, 1), "new")?
    };
    match append(&b, &first).await? {
        Appended::Stored {
            position,
            repeat: false,
            ..
        } => claim_eq!(position, at(1, 1)),
        other => return Err(Failure::new(format!("its first append: {other:?}"))),
    }
    claim_eq!(texts(&a, session, "s").await?, ["new"]);
    claim_eq!(a.shrink(&session, 1 << 40).await?, 3, "bytes");
    // What was left of the first is swept, and nothing of the second.
    a.sweep(100, &[], LONG).await?;
    claim_eq!(texts(&a, session, "s").await?, ["new"]);
    Ok(())
}

/// A standalone stream with two events, finished, and past its time.
async fn expired(store: &Store, a: &AnyStorage) -> Step<mcp_adapter_core::SessionKey> {
    let kept = store.ticks(a, 20);
    let session = session(a).await?;
    stored(a, &shared(session, A, 1, "old 1")?).await?;
    let last = Append {
        finish: Some(kept),
        ..shared(session, A, 2, "old 2")?
    };
    stored(a, &last).await?;
    sleep(kept + store.ticks(a, 10)).await;
    Ok(session)
}

pub(crate) async fn the_standalone_stream_is_made_for_its_holder(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let standalone = StreamId::standalone();
    for swept in [false, true] {
        let session = expired(&store, &a).await?;
        if swept {
            a.sweep(100, &[], LONG).await?;
        }
        let held = b.hold(&session, &standalone, B, Hold::Take).await?;
        let Held::Done { former, state, .. } = held else {
            return Err(Failure::new(format!(
                "a standalone stream that is gone is made for its holder: {held:?}"
            )));
        };
        claim_eq!((former, state.end, state.oldest), (None, None, None));
        let holder = state.holder.map(|holder| holder.instance);
        claim_eq!(holder, Some(B));
        claim_eq!(b.shrink(&session, 1 << 40).await?, 0, "bytes");
        stored(&a, &shared(session, A, 3, "new")?).await?;
        claim_eq!(texts(&b, session, "standalone").await?, ["new"]);
        claim_eq!(b.shrink(&session, 1 << 40).await?, 3, "bytes");
    }
    Ok(())
}

pub(crate) async fn the_standalone_stream_issues_no_id_twice(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let kept = store.ticks(&a, 20);
    for swept in [false, true] {
        let session = session(&a).await?;
        let mut last = mcp_adapter_core::Position::START;
        // Again and again.
        for life in 1..=3 {
            for tag in 1..=2 {
                let entry = Append {
                    finish: (tag == 2).then_some(kept),
                    ..shared(session, A, life * 10 + tag, "x")?
                };
                let position = stored(&a, &entry).await?;
                claim!(
                    position > last,
                    "life {life}: {position:?} was given out before, up to {last:?}"
                );
                if life > 1 && tag == 1 {
                    claim!(position.epoch > last.epoch, "a higher epoch: {position:?}");
                    let (events, state) = page(&b, &cursor(session, "standalone")?).await?;
                    let prevs: Vec<_> = events.iter().map(|event| event.prev).collect();
                    let lost = mcp_adapter_core::Position::new(last.epoch, u64::MAX);
                    claim!(
                        prevs.len() == 1 && prevs[0].is_some_and(|prev| prev >= lost),
                        "it follows {lost:?}, so that a reader who was behind sees a gap: {prevs:?}"
                    );
                    claim_eq!(state.top, position);
                }
                last = position;
            }
            sleep(kept + store.ticks(&a, 10)).await;
            if swept {
                a.sweep(100, &[], LONG).await?;
            }
            let found = read(&b, &cursor(session, "standalone")?).await?;
            claim!(
                matches!(found, Read::NoStream),
                "its time is over: {found:?}"
            );
        }
    }
    Ok(())
}
