//! The second life of an id: nothing of the first is in it.

use mcp_adapter_core::{
    RpcId, SessionKey, StreamId,
    storage::{
        Append, Appended, Entered, Held, Hold, NewSession, OpenStream, Put, Read, RequestState,
        Storage,
    },
};
use tokio::time::sleep;

use super::{AnyStorage, Store, steps::*};
use crate::wait::{Failure, Verdict, claim, claim_eq};

/// Everything that a session can have, under `new`.
async fn live([a, b]: [&AnyStorage; 2], new: &NewSession) -> Verdict {
    let session = new.session;
    claim!(a.create(new).await?, "a free id");
    a.enter(&session, &ME, Some(&open("s")?)).await?;
    let done = OpenStream {
        request: RpcId::Number(2),
        ..open("done")?
    };
    a.enter(&session, &ME, Some(&done)).await?;
    for seq in 1..=5 {
        stored(a, &owned(session, at(1, seq), "of the first life")?).await?;
        stored(a, &shared(session, A, seq, "of the first life")?).await?;
    }
    let last = Append {
        stream: done.stream,
        finish: Some(LONG),
        ..owned(session, at(1, 1), "of the first life")?
    };
    stored(a, &last).await?;
    hold(b, session, B, Hold::Take).await?;
    let standalone = StreamId::standalone();
    b.hold(&session, &standalone, B, Hold::Take).await?;
    a.mark_cancel(&session, &RpcId::Number(1)).await?;
    put(a, &request(session, 1)).await?;
    put(a, &request(session, 2)).await?;
    settle(b, &answer(session, 2, "of the first life")).await?;
    let next = update(session, 1, "of the first life".into());
    a.update(&next).await?;
    Ok(())
}

/// The id is free, and its next session has nothing in it.
async fn begins_anew([a, b]: [&AnyStorage; 2], session: SessionKey) -> Verdict {
    let again = new_session(session)?;
    claim!(
        a.create(&again).await?,
        "the id is free for another creator"
    );
    match b.enter(&session, &ME, None).await? {
        Entered::Session { record, revision } => {
            claim_eq!((record, revision), (again.record, 1));
        }
        other => return Err(Failure::new(format!("{other:?}"))),
    }
    for stream in ["s", "done"] {
        let found = read(b, &cursor(session, stream)?).await?;
        claim!(matches!(found, Read::NoStream), "`{stream}`: {found:?}");
    }
    for id in [1, 2] {
        let found = request_state(b, session, id, None).await?;
        claim_eq!(found, RequestState::Missing, "request {id}");
    }
    claim_eq!(b.shrink(&session, 1 << 40).await?, 0, "bytes");
    // The same names, made again: what was under them is not found by its place.
    for stream in ["s", "done"] {
        let opened = OpenStream {
            owner: B,
            ..open(stream)?
        };
        b.enter(&session, &ME, Some(&opened)).await?;
        let (events, found) = page(a, &cursor(session, stream)?).await?;
        claim!(events.is_empty(), "`{stream}` has {events:?}");
        claim_eq!((found.end, found.cancelled), (None, false), "`{stream}`");
        let holder = found.holder.map(|holder| (holder.instance, holder.number));
        claim_eq!(holder, Some((B, 1)), "`{stream}`");
    }
    let standalone = StreamId::standalone();
    let held = a.hold(&session, &standalone, A, Hold::Take).await?;
    let Held::Done { number, former, .. } = held else {
        return Err(Failure::new(format!("{held:?}")));
    };
    claim_eq!((number, former), (1, None), "the first holder");
    let entry = Append {
        place: mcp_adapter_core::storage::Place::Owned {
            owner: B,
            position: at(1, 1),
        },
        ..owned(session, at(1, 1), "new")?
    };
    for (store, entry) in [(b, entry), (a, shared(session, A, 1, "new")?)] {
        match append(store, &entry).await? {
            Appended::Stored { repeat: false, .. } => {}
            other => return Err(Failure::new(format!("the first append: {other:?}"))),
        }
    }
    for stream in ["s", "standalone"] {
        let found = texts(a, session, stream).await?;
        claim_eq!(found, ["new"], "`{stream}`");
    }
    claim_eq!(put(a, &request(session, 1)).await?, Put::Done);
    claim_eq!(b.shrink(&session, 1 << 40).await?, 6, "bytes");
    Ok(())
}

pub(crate) async fn a_deleted_id_begins_anew(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    for swept in [false, true] {
        let new = new_session(key())?;
        live([&a, &b], &new).await?;
        b.delete(&new.session, &ME).await?;
        if swept {
            sweep(&a).await?;
        }
        begins_anew([&a, &b], new.session).await?;
        // What was left of the first is removed, and nothing of the second.
        sweep(&a).await?;
        for stream in ["s", "standalone"] {
            claim_eq!(texts(&b, new.session, stream).await?, ["new"], "`{stream}`");
        }
    }
    Ok(())
}

pub(crate) async fn an_expired_id_begins_anew(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let ttl = store.ticks(&a, 100);
    for swept in [false, true] {
        let new = NewSession {
            idle_ttl: ttl,
            ..new_session(key())?
        };
        live([&a, &b], &new).await?;
        sleep(ttl + store.ticks(&a, 10)).await;
        if swept {
            sweep(&a).await?;
        }
        begins_anew([&a, &b], new.session).await?;
        sweep(&a).await?;
        for stream in ["s", "standalone"] {
            claim_eq!(texts(&b, new.session, stream).await?, ["new"], "`{stream}`");
        }
    }
    Ok(())
}

/// Until there is nothing left to do.
async fn sweep(a: &AnyStorage) -> Verdict {
    for _ in 0..1000 {
        let swept = a.sweep(100, &[], LONG).await?;
        if !swept.more && swept.removed == 0 {
            return Ok(());
        }
    }
    Err(Failure::new("there is more for ever"))
}
