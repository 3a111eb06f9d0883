//! What slides the expiry of a session, and what does not.

use std::time::Duration;

use bytes::Bytes;
use mcp_adapter_core::{
    OutcomeKind, RpcId, SessionKey, StreamId, WaiterToken,
    storage::{
        Append, Appended, Claim, Dead, Entered, Hold, NewSession, OpenStream, PutRequest, Read,
        RequestKey, Settle, Storage, UpdateSession, Updated,
    },
};
use tokio::time::{Instant, sleep};

use super::{AnyStorage, Store, steps::*};
use crate::wait::{Failure, Verdict, claim};

/// A session of the principal with a short life, the open stream `s`, the finished one
/// `done`, and a request that waits.
async fn young(a: &AnyStorage, ttl: Duration) -> Step<SessionKey> {
    let new = NewSession {
        idle_ttl: ttl,
        ..new_session(key())?
    };
    let session = new.session;
    a.create(&new).await?;
    a.enter(&session, &ME, Some(&open("s")?)).await?;
    let done = OpenStream {
        request: RpcId::Number(2),
        ..open("done")?
    };
    a.enter(&session, &ME, Some(&done)).await?;
    let last = Append {
        stream: done.stream,
        finish: Some(LONG),
        ..owned(session, at(1, 1), "last")?
    };
    stored(a, &last).await?;
    put(a, &request(session, 1)).await?;
    Ok(session)
}

/// A life that is long beside the time that the steps take here.
async fn life(store: &Store, a: &AnyStorage) -> Step<Duration> {
    let begun = Instant::now();
    young(a, LONG).await?;
    Ok(store.ticks(a, 60).max(begun.elapsed() * 40))
}

/// One thing that slides nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Idle {
    Fenced,
    Finished,
    NoStream,
    SharedOnCall,
    Thief,
    TooManyStreams,
    PrincipalQuota,
    OtherPrincipal,
    Update,
    Hold,
    Requests,
    Cancel,
    Claim,
    Shrink,
    Look,
}

const IDLE: [Idle; 15] = [
    Idle::Fenced,
    Idle::Finished,
    Idle::NoStream,
    Idle::SharedOnCall,
    Idle::Thief,
    Idle::TooManyStreams,
    Idle::PrincipalQuota,
    Idle::OtherPrincipal,
    Idle::Update,
    Idle::Hold,
    Idle::Requests,
    Idle::Cancel,
    Idle::Claim,
    Idle::Shrink,
    Idle::Look,
];

impl Idle {
    /// Does it, and says whether it was refused as it must be, or is none that is.
    async fn run(self, [a, b]: [&AnyStorage; 2], session: SessionKey) -> Step<bool> {
        let refused = |found: Appended, expected: Appended| found == expected;
        let enter = async |open: &OpenStream| a.enter(&session, &ME, Some(open)).await;
        Ok(match self {
            Self::Fenced => {
                // Of an epoch that is over; epoch 2 was opened before.
                let late = owned(session, at(1, 9), "x")?;
                refused(append(a, &late).await?, Appended::Fenced)
            }
            Self::Finished => {
                let late = Append {
                    stream: name("done")?,
                    ..owned(session, at(1, 2), "x")?
                };
                refused(append(a, &late).await?, Appended::Finished)
            }
            Self::NoStream => {
                let lost = Append {
                    stream: name("none")?,
                    ..owned(session, at(1, 1), "x")?
                };
                refused(append(a, &lost).await?, Appended::NoStream)
            }
            Self::SharedOnCall => {
                let forged = Append {
                    stream: name("s")?,
                    ..shared(session, A, 1, "x")?
                };
                refused(append(a, &forged).await?, Appended::Fenced)
            }
            Self::Thief => {
                let thief = Append {
                    place: mcp_adapter_core::storage::Place::Owned {
                        owner: B,
                        position: at(2, 9),
                    },
                    ..owned(session, at(2, 9), "x")?
                };
                refused(append(b, &thief).await?, Appended::Fenced)
            }
            Self::TooManyStreams => {
                let full = OpenStream {
                    max_open: 1,
                    ..open("t")?
                };
                matches!(enter(&full).await?, Entered::TooManyStreams)
            }
            Self::PrincipalQuota => {
                let full = OpenStream {
                    max_principal_bytes: 0,
                    ..open("t")?
                };
                matches!(enter(&full).await?, Entered::PrincipalQuota)
            }
            Self::OtherPrincipal => {
                let entered = a.enter(&session, &OTHER, None).await?;
                matches!(entered, Entered::NoSession)
            }
            Self::Update => {
                let stale = update(session, 1 << 40, Bytes::from_static(b"x"));
                let conflict = a.update(&stale).await? == Updated::Conflict;
                let theirs = UpdateSession {
                    principal: OTHER,
                    ..stale
                };
                conflict && a.update(&theirs).await? == Updated::NoSession
            }
            Self::Hold => {
                hold(b, session, B, Hold::Take).await?;
                let standalone = StreamId::standalone();
                b.hold(&session, &standalone, B, Hold::Take).await?;
                true
            }
            Self::Requests => {
                put(a, &request(session, 1)).await?;
                let full = PutRequest {
                    max_pending: 0,
                    ..request(session, 5)
                };
                put(a, &full).await?;
                let late = Settle {
                    token: Some(WaiterToken::generate()),
                    outcome: OutcomeKind::TimedOut,
                    ..answer(session, 1, "")
                };
                settle(b, &late).await?;
                let key = RequestKey {
                    session,
                    id: RpcId::Number(1),
                    token: None,
                };
                a.requests(&[key]).await?;
                true
            }
            Self::Cancel => {
                a.mark_cancel(&session, &RpcId::Number(1)).await?;
                true
            }
            Self::Claim => {
                let claim = Claim {
                    session,
                    stream: name("s")?,
                    dead: Dead {
                        instance: A,
                        beat: Some(1 << 40),
                    },
                    finished_ttl: LONG,
                };
                a.claim(&[claim]).await? == 0
            }
            Self::Shrink => {
                a.shrink(&session, 1 << 40).await?;
                true
            }
            Self::Look => {
                page(b, &cursor(session, "s")?).await?;
                a.stats().await?;
                a.sweep(1, &[], LONG).await?;
                true
            }
        })
    }
}

pub(crate) async fn what_is_refused_or_looks_slides_nothing(store: Store) -> Verdict {
    let [a, b] = store.handles().await?;
    let ttl = life(&store, &a).await?;
    // One session for each, so that the case says which it was.
    let mut sessions = Vec::new();
    let born = Instant::now();
    for idle in IDLE {
        let session = young(&a, ttl).await?;
        // Its last use.
        stored(&a, &owned(session, at(2, 1), "1")?).await?;
        sessions.push((idle, session));
    }
    let used = Instant::now();
    let end = used + ttl + store.ticks(&a, 10);
    let (mut rounds, mut quota) = (0, true);
    while Instant::now() < end {
        let begun = Instant::now();
        // Only before the first of them can be gone is it known what is answered.
        let judged = begun.duration_since(born) < ttl / 2;
        for (idle, session) in &sessions {
            let refused = idle.run([&a, &b], *session).await;
            if judged && born.elapsed() < ttl * 4 / 5 {
                let refused = refused?;
                rounds += 1;
                if *idle == Idle::PrincipalQuota {
                    // Some count the bytes of a principal now and then, and let it in.
                    quota &= refused;
                } else {
                    claim!(refused, "{idle:?} is refused");
                }
            }
        }
        sleep((ttl / 8).saturating_sub(begun.elapsed())).await;
    }
    claim!(
        rounds > 0,
        "the machine is too slow to tell before from after"
    );
    let mut slid = Vec::new();
    sessions.retain(|(idle, _)| quota || *idle != Idle::PrincipalQuota);
    for (idle, session) in &sessions {
        if is_there(&b, *session).await? {
            slid.push(*idle);
        }
    }
    claim!(
        slid.is_empty(),
        "the expiry was slid by {slid:?}: a session that is not used has not expired"
    );
    Ok(())
}

/// One thing that slides the expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Enter,
    Opening,
    Append,
    Shared,
    Repeat,
    SharedRepeat,
    Reading,
}

const USES: [Use; 7] = [
    Use::Enter,
    Use::Opening,
    Use::Append,
    Use::Shared,
    Use::Repeat,
    Use::SharedRepeat,
    Use::Reading,
];

pub(crate) async fn what_is_used_slides(store: Store) -> Verdict {
    let a = store.open().await?;
    let ttl = life(&store, &a).await?;
    for _ in 0..3 {
        let mut sessions = Vec::new();
        for used in USES {
            let session = young(&a, ttl).await?;
            stored(&a, &owned(session, at(1, 1), "1")?).await?;
            stored(&a, &shared(session, A, 1, "1")?).await?;
            sessions.push((used, session));
        }
        let end = Instant::now() + ttl * 2;
        let (mut n, mut slow) = (1, false);
        let mut gone = Vec::new();
        while Instant::now() < end && gone.is_empty() {
            let begun = Instant::now();
            sleep(ttl / 8).await;
            n += 1;
            for (used, session) in &sessions {
                let session = *session;
                let there = match used {
                    Use::Enter => {
                        let entered = a.enter(&session, &ME, None).await?;
                        matches!(entered, Entered::Session { .. })
                    }
                    Use::Opening => {
                        let entered = a.enter(&session, &ME, Some(&open("s")?)).await?;
                        matches!(entered, Entered::Session { .. })
                    }
                    Use::Append => is_stored(&a, owned(session, at(1, n), "n")?).await?,
                    Use::Shared => is_stored(&a, shared(session, A, n, "n")?).await?,
                    Use::Repeat => is_stored(&a, owned(session, at(1, 1), "1")?).await?,
                    Use::SharedRepeat => is_stored(&a, shared(session, A, 1, "1")?).await?,
                    Use::Reading => {
                        let mut touching = cursor(session, "s")?;
                        touching.touch = true;
                        !matches!(read(&a, &touching).await?, Read::NoSession)
                    }
                };
                if !there {
                    gone.push(*used);
                }
            }
            slow |= begun.elapsed() > ttl / 2;
        }
        if slow {
            continue; // the machine was too slow to tell
        }
        claim!(gone.is_empty(), "expired although it is used, by {gone:?}");
        return Ok(());
    }
    Err(Failure::new(
        "the machine is too slow to tell before from after",
    ))
}

async fn is_stored(a: &AnyStorage, entry: Append) -> Step<bool> {
    Ok(matches!(append(a, &entry).await?, Appended::Stored { .. }))
}
