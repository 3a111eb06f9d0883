//! Large and small numbers.

use mcp_adapter_core::storage::{Append, Claim, Dead, Storage, StreamEnd};

use super::{Store, steps::*};
use crate::wait::{Verdict, claim, claim_eq};

/// The highest number that the seam allows: doubles tell it from its neighbours.
const HIGHEST: u64 = (1 << 53) - 1;

pub(crate) async fn tags_are_told_apart_up_to_the_highest(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let session = session(&a).await?;
    let tags = [1, 1 << 31, 1 << 32, (1 << 32) + 1, HIGHEST - 1, HIGHEST];
    let mut places = Vec::new();
    for tag in tags {
        places.push(stored(&a, &shared(session, A, tag, &tag.to_string())?).await?);
    }
    claim!(
        places.windows(2).all(|two| two[0] < two[1]),
        "tags {tags:?} are stored one after another, at {places:?}"
    );
    for (tag, place) in tags.into_iter().zip(&places) {
        let again = stored(&a, &shared(session, A, tag, "again")?).await?;
        claim_eq!(again, *place, "tag {tag}");
    }
    let expected: Vec<_> = tags.iter().map(u64::to_string).collect();
    claim_eq!(texts(&b, session, "standalone").await?, expected);
    Ok(())
}

pub(crate) async fn places_are_told_apart_up_to_the_highest(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let session = stream(&a).await?;
    let places = [
        at(1, 1 << 31),
        at(1, (1 << 32) + 1),
        at(1, HIGHEST - 1),
        at(1, HIGHEST),
        at(7, HIGHEST - 1),
        at(u32::MAX >> 1, HIGHEST),
    ];
    for place in places {
        let text = format!("{place:?}");
        claim_eq!(stored(&a, &owned(session, place, &text)?).await?, place);
    }
    let (events, state) = page(&b, &cursor(session, "s")?).await?;
    let found: Vec<_> = events.iter().map(|event| event.position).collect();
    claim_eq!(found, places);
    claim_eq!(state.top, places[5]);
    let mut after = cursor(session, "s")?;
    for (n, place) in places.into_iter().enumerate() {
        after.after = place;
        let left = page(&b, &after).await?.0.len();
        claim_eq!(left, places.len() - n - 1, "after {place:?}");
    }
    let finish = Append {
        event: None,
        finish: Some(LONG),
        ..owned(session, places[5], "")?
    };
    claim_eq!(stored(&a, &finish).await?, places[5]);
    Ok(())
}

pub(crate) async fn a_heartbeat_counts_from_nought_to_the_highest(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let count = |beats: &[mcp_adapter_core::storage::Beat]| {
        let of_a = beats.iter().find(|beat| beat.instance == A);
        of_a.map(|beat| beat.count)
    };
    let session = stream(&a).await?;
    for _ in 0..2 {
        claim_eq!(count(&beat(&a, A, 0).await?), Some(0), "0 is a counter");
    }
    claim_eq!(count(&beat(&b, B, 1).await?), Some(0), "as others see it");
    let claim = |beat| -> Step<Claim> {
        Ok(Claim {
            session,
            stream: name("s")?,
            dead: Dead { instance: A, beat },
            finished_ttl: LONG,
        })
    };
    claim_eq!(b.claim(&[claim(None)?]).await?, 0, "there is a counter");
    for (raised, wrong) in [(1, 0), (HIGHEST - 1, 1), (HIGHEST, HIGHEST - 1)] {
        claim_eq!(count(&beat(&a, A, raised).await?), Some(raised));
        let wrong = claim(Some(wrong))?;
        claim_eq!(b.claim(&[wrong]).await?, 0, "it has raised it to {raised}");
    }
    claim_eq!(b.claim(&[claim(Some(HIGHEST))?]).await?, 1);
    claim_eq!(state(&b, session).await?.end, Some(StreamEnd::OwnerLost));
    // One that stands at 0.
    let session = stream(&a).await?;
    let [c] = store.handles().await?;
    let orphan = mcp_adapter_core::storage::OpenStream {
        owner: C,
        ..open("orphan")?
    };
    beat(&c, C, 0).await?;
    c.enter(&session, &ME, Some(&orphan)).await?;
    let dead = |beat| Claim {
        session,
        stream: orphan.stream.clone(),
        dead: Dead { instance: C, beat },
        finished_ttl: LONG,
    };
    claim_eq!(b.claim(&[dead(None)]).await?, 0, "it has a counter, 0");
    claim_eq!(b.claim(&[dead(Some(0))]).await?, 1);
    Ok(())
}
