//! What belongs to the dead.

use bytes::Bytes;
use mcp_adapter_core::{
    OutcomeKind,
    storage::{
        Append, Claim, Dead, OpenStream, PutRequest, RequestState, Settle, Settled, Storage,
        StreamEnd,
    },
};

use super::{Store, steps::*};
use crate::wait::{Verdict, claim, claim_eq};

pub(crate) async fn a_claim_needs_a_counter_that_stands_still(store: Store) -> Verdict {
    let [a, c] = store.handles().await?;
    let session = stream(&a).await?;
    put(&a, &request(session, 1)).await?;
    beat(&a, A, 4).await?;
    let proof = |instance, beat| Dead { instance, beat };
    // It has thawed, was never seen, or is somebody else.
    for wrong in [
        proof(A, Some(3)),
        proof(A, Some(5)),
        proof(A, None),
        proof(B, None),
    ] {
        let claim = Claim {
            session,
            stream: name("s")?,
            dead: wrong,
            finished_ttl: LONG,
        };
        claim_eq!(a.claim(&[claim]).await?, 0, "{wrong:?}");
        let end = Settle {
            outcome: OutcomeKind::OwnerLost,
            payload: Bytes::new(),
            dead: Some(wrong),
            ..answer(session, 1, "")
        };
        claim_eq!(settle(&a, &end).await?, Settled::Alive, "{wrong:?}");
        a.sweep(100, &[wrong], LONG).await?;
    }
    claim_eq!(state(&a, session).await?.end, None, "it runs");
    let pending = RequestState::Pending { owner: A };
    claim_eq!(
        request_state(&a, session, 1, None).await?,
        pending,
        "it waits"
    );
    let end = Settle {
        outcome: OutcomeKind::OwnerLost,
        payload: Bytes::new(),
        dead: Some(proof(A, Some(4))),
        ..answer(session, 1, "")
    };
    for _ in 0..2 {
        claim_eq!(settle(&a, &end).await?, Settled::Won);
    }
    let claim = Claim {
        session,
        stream: name("s")?,
        dead: proof(A, Some(4)),
        finished_ttl: LONG,
    };
    claim_eq!(a.claim(&[claim]).await?, 1);
    // One that never had a counter, or whose counter is no longer kept.
    let orphan = OpenStream {
        owner: C,
        ..open("orphan")?
    };
    c.enter(&session, &ME, Some(&orphan)).await?;
    let claim = Claim {
        session,
        stream: name("orphan")?,
        dead: proof(C, None),
        finished_ttl: LONG,
    };
    claim_eq!(a.claim(&[claim]).await?, 1);
    Ok(())
}

pub(crate) async fn a_sweep_ends_what_belongs_to_the_dead(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    beat(&a, A, 1).await?;
    beat(&b, B, 1).await?;
    let mut sessions = Vec::new();
    for _ in 0..20 {
        let session = stream(&a).await?;
        put(&a, &request(session, 1)).await?;
        let living = OpenStream {
            owner: B,
            ..open("living")?
        };
        b.enter(&session, &ME, Some(&living)).await?;
        let asked = PutRequest {
            owner: B,
            ..request(session, 2)
        };
        put(&b, &asked).await?;
        sessions.push(session);
    }
    let finished = stream(&a).await?;
    let last = Append {
        finish: Some(LONG),
        ..owned(finished, at(1, 1), "last")?
    };
    stored(&a, &last).await?;
    let dead = [Dead {
        instance: A,
        beat: Some(1),
    }];
    let mut steps = 0;
    loop {
        let swept = a.sweep(5, &dead, LONG).await?;
        claim!(swept.removed <= 5, "{swept:?} over its budget");
        steps += 1;
        claim!(steps < 1000, "there is more for ever");
        // Rounds go on for as long as an instance is dead.
        if !swept.more && swept.removed == 0 {
            break;
        }
    }
    for session in sessions {
        claim_eq!(state(&a, session).await?.end, Some(StreamEnd::OwnerLost));
        let lost = RequestState::Ended(OutcomeKind::OwnerLost, Bytes::new());
        claim_eq!(request_state(&a, session, 1, None).await?, lost);
        let (_, living) = page(&a, &cursor(session, "living")?).await?;
        claim_eq!(living.end, None, "it is another's");
        let pending = RequestState::Pending { owner: B };
        claim_eq!(
            request_state(&a, session, 2, None).await?,
            pending,
            "it is another's"
        );
    }
    let end = state(&a, finished).await?.end;
    claim_eq!(end, Some(StreamEnd::Finished), "it had ended before");
    Ok(())
}
