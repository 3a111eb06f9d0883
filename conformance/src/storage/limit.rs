//! Trimming, paging, counting.

use mcp_adapter_core::{
    Position,
    storage::{Append, Read, Storage, Usage},
};

use super::{AnyStorage, Store, steps::*};
use crate::wait::{Failure, Verdict, claim, claim_eq, eventually};

/// Ten events of ten bytes, each under these bounds.
async fn fill(
    a: &AnyStorage,
    keep_events: usize,
    keep_bytes: usize,
    kept: u64,
) -> Result<mcp_adapter_core::SessionKey, Failure> {
    let session = stream(a).await?;
    for seq in 1..=10 {
        let entry = Append {
            keep_events,
            keep_bytes,
            // The same bound as a position, counted by the writer.
            trim: (seq > kept).then(|| at(1, seq - kept)),
            ..owned(session, at(1, seq), &format!("event {seq:04}"))?
        };
        claim_eq_position(stored(a, &entry).await?, at(1, seq))?;
    }
    Ok(session)
}

fn claim_eq_position(found: Position, expected: Position) -> Verdict {
    claim_eq!(found, expected);
    Ok(())
}

pub(crate) async fn an_append_trims_the_oldest(store: Store) -> Verdict {
    let a = store.open().await?;
    for (events, bytes) in [(4, 1000), (1000, 49)] {
        let session = fill(&a, events, bytes, 4).await?;
        let (found, state) = page(&a, &cursor(session, "s")?).await?;
        let places: Vec<_> = found.iter().map(|event| event.position).collect();
        claim_eq!(places, [at(1, 7), at(1, 8), at(1, 9), at(1, 10)]);
        claim_eq!((state.oldest, state.top), (Some(at(1, 7)), at(1, 10)));
        // What was trimmed is a repeat all the same.
        let entry = owned(session, at(1, 2), "event 0002")?;
        claim_eq!(stored(&a, &entry).await?, at(1, 2));
        claim_eq!(texts(&a, session, "s").await?.len(), 4);
    }
    // One that is too large by itself is kept all the same.
    let session = stream(&a).await?;
    stored(&a, &owned(session, at(1, 1), "former")?).await?;
    let large = Append {
        keep_bytes: 1,
        trim: Some(at(1, 1)),
        ..owned(session, at(1, 2), "newest")?
    };
    stored(&a, &large).await?;
    claim_eq!(texts(&a, session, "s").await?, ["newest"]);
    Ok(())
}

pub(crate) async fn a_page_begins_strictly_after_and_ends_in_time(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = fill(&a, 1000, 10_000, 1000).await?;
    for after in 0..=10 {
        let mut asked = cursor(session, "s")?;
        asked.after = at(u32::from(after > 0), after);
        let (events, state) = page(&a, &asked).await?;
        let places: Vec<_> = events.iter().map(|event| event.position.seq).collect();
        claim_eq!(
            places,
            (after + 1..=10).collect::<Vec<_>>(),
            "after {after}"
        );
        claim_eq!(state.top, at(1, 10));
        asked.max_events = 3;
        let count = page(&a, &asked).await?.0.len();
        claim_eq!(
            count,
            usize::try_from(10 - after).unwrap_or(0).min(3),
            "three at most"
        );
        asked.max_events = 0;
        claim!(page(&a, &asked).await?.0.is_empty(), "the state alone");
        asked.max_events = 10;
        asked.max_bytes = 25;
        let count = page(&a, &asked).await?.0.len();
        claim_eq!(
            count,
            usize::try_from(10 - after).unwrap_or(0).min(2),
            "25 bytes at most"
        );
        asked.max_bytes = 1;
        let count = page(&a, &asked).await?.0.len();
        claim_eq!(count, usize::from(after < 10), "but one event at least");
    }
    // Many at once, each with its own answer.
    let other = fill(&a, 1000, 10_000, 1000).await?;
    let asked = [
        cursor(other, "s")?,
        cursor(key(), "s")?,
        cursor(session, "none")?,
    ];
    let answers = a.read(&asked).await?;
    let [Read::Page { events, .. }, Read::NoSession, Read::NoStream] = &answers[..] else {
        return Err(Failure::new(format!("{answers:?}")));
    };
    claim_eq!(events.len(), 10);
    Ok(())
}

pub(crate) async fn stats_and_usage_count_what_is_there(store: Store) -> Verdict {
    let a = store.open().await?;
    let session = fill(&a, 4, 1000, 4).await?;
    put(&a, &request(session, 1)).await?;
    let expect = async |expected: [u64; 5]| {
        let probe = || async { Ok((counts(&a).await? == expected).then_some(())) };
        let patience = std::time::Duration::from_secs(5);
        if eventually("the counts", patience, probe).await.is_ok() {
            return Ok(());
        }
        let found = counts(&a).await?;
        Err(Failure::new(format!(
            "found {found:?}, expected {expected:?}"
        )))
    };
    expect([1, 1, 4, 40, 1]).await?;
    let entry = owned(session, at(1, 11), "0123456789")?;
    match append(&a, &entry).await? {
        mcp_adapter_core::storage::Appended::Stored { usage, .. } => {
            // A backend that cannot tell cheaply says nothing.
            let told = Usage {
                session_bytes: 50,
                principal_bytes: 50,
            };
            let fits = |found: u64, told: u64| found == 0 || found == told;
            claim!(
                fits(usage.session_bytes, told.session_bytes)
                    && fits(usage.principal_bytes, told.principal_bytes),
                "{usage:?}"
            );
        }
        other => return Err(Failure::new(format!("{other:?}"))),
    }
    settle(&a, &answer(session, 1, "x")).await?;
    a.shrink(&session, 20).await?;
    expect([1, 1, 2, 20, 0]).await?;
    a.delete(&session, &ME).await?;
    expect([0; 5]).await
}

pub(crate) async fn what_is_refused_is_not_counted(store: Store) -> Verdict {
    const REFUSED: u64 = 1000;
    let [a, b] = store.handles().await?;
    let session = stream(&a).await?;
    let done = mcp_adapter_core::storage::OpenStream {
        request: mcp_adapter_core::RpcId::Number(2),
        ..open("done")?
    };
    a.enter(&session, &ME, Some(&done)).await?;
    let last = Append {
        stream: done.stream.clone(),
        finish: Some(LONG),
        ..owned(session, at(1, 1), "0123456789")?
    };
    stored(&a, &last).await?;
    // Its second epoch: the first is over.
    let first = owned(session, at(2, 1), "0123456789")?;
    stored(&a, &first).await?;
    let shared_first = shared(session, A, 1, "0123456789")?;
    stored(&a, &shared_first).await?;
    let large = "x".repeat(usize::try_from(REFUSED).unwrap_or(0));
    let refused = [
        // Fenced, finished, not there, shared.
        owned(session, at(1, 5), &large)?,
        Append {
            stream: done.stream,
            ..owned(session, at(1, 2), &large)?
        },
        Append {
            stream: name("none")?,
            ..owned(session, at(1, 1), &large)?
        },
        Append {
            stream: name("s")?,
            ..shared(session, A, 2, &large)?
        },
    ];
    // Alone, in a batch of their own, and with one that is stored.
    for entry in &refused {
        let answer = append(&a, entry).await?;
        let stored = matches!(answer, mcp_adapter_core::storage::Appended::Stored { .. });
        claim!(!stored, "{:?} is to be refused: {answer:?}", entry.place);
    }
    a.append(&refused).await?;
    let mut batch = refused.to_vec();
    batch.push(owned(session, at(2, 2), "0123456789")?);
    // Repeats are not stored again, and not counted again.
    batch.extend([first, shared_first]);
    let answers = a.append(&batch).await?;
    claim_eq!(
        b.shrink(&session, 1 << 40).await?,
        40,
        "the bytes of the session"
    );
    let next = owned(session, at(2, 3), "0123456789")?;
    let answer = append(&a, &next).await?;
    for answer in answers.iter().chain([&answer]) {
        if let mcp_adapter_core::storage::Appended::Stored { usage, .. } = answer {
            // It may lag behind, by less than one of those that were refused.
            claim!(
                usage.session_bytes < 50 + REFUSED,
                "what was refused is counted: {usage:?}, and there are 50 bytes at the most"
            );
        }
    }
    claim_eq!(
        b.shrink(&session, 1 << 40).await?,
        50,
        "the bytes of the session"
    );
    Ok(())
}

pub(crate) async fn a_shrink_takes_the_oldest_across_streams(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let session = stream(&a).await?;
    let apart = store.ticks(&a, 3);
    let call = |stream: &str, id: i64| -> Step<mcp_adapter_core::storage::OpenStream> {
        Ok(mcp_adapter_core::storage::OpenStream {
            request: mcp_adapter_core::RpcId::Number(id),
            ..open(stream)?
        })
    };
    for (stream, id) in [("t", 2), ("late", 3), ("soon", 4)] {
        a.enter(&session, &ME, Some(&call(stream, id)?)).await?;
    }
    let event = |stream: &str, seq| -> Step<Append> {
        Ok(Append {
            stream: name(stream)?,
            ..owned(session, at(1, seq), "0123456789")?
        })
    };
    let finish = |entry: Append, finish| Append {
        finish: Some(finish),
        ..entry
    };
    // From the oldest to the newest.
    let order = [("s", 1), ("t", 1), ("t", 2), ("s", 2), ("t", 3), ("s", 3)];
    for (tag, (stream, seq)) in (1..).zip(order) {
        stored(&a, &event(stream, seq)?).await?;
        stored(&b, &shared(session, B, tag, "0123456789")?).await?;
        tokio::time::sleep(apart).await;
    }
    stored(&a, &finish(event("late", 1)?, LONG * 2)).await?;
    stored(&a, &finish(event("soon", 1)?, LONG)).await?;
    let left = async |left: u64, expected: [usize; 3], finished: [bool; 2]| {
        claim_eq!(a.shrink(&session, left).await?, left, "bytes that are left");
        let mut found = [0; 3];
        for (n, stream) in ["s", "t", "standalone"].into_iter().enumerate() {
            found[n] = texts(&b, session, stream).await?.len();
        }
        claim_eq!(
            found,
            expected,
            "events of s, t and the standalone stream with {left} bytes"
        );
        for (stream, there) in ["late", "soon"].into_iter().zip(finished) {
            let found = read(&b, &cursor(session, stream)?).await?;
            claim_eq!(
                matches!(found, Read::Page { .. }),
                there,
                "`{stream}` with {left} bytes"
            );
        }
        Ok::<_, Failure>(())
    };
    left(140, [3, 3, 6], [true, true]).await?;
    // The finished ones first, though theirs are the newest events.
    left(130, [3, 3, 6], [true, false]).await?;
    left(120, [3, 3, 6], [false, false]).await?;
    left(100, [2, 3, 5], [false, false]).await?;
    left(80, [2, 2, 4], [false, false]).await?;
    left(60, [2, 1, 3], [false, false]).await?;
    left(20, [1, 0, 1], [false, false]).await?;
    left(0, [0; 3], [false, false]).await
}
