//! Holders, dead owners and cancels.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::*;
use mcp_adapter_core::{
    Cancelled, Position, RpcId,
    storage::{Append, Appended, Beat, Claim, Dead, Held, Hold, Holder, Storage as _, StreamEnd},
};

#[test]
fn holders_take_over_and_let_go_with_their_cursor() {
    let (store, session) = store();
    let standalone = |me, change| hold(&store, session, "standalone", me, change);
    assert_eq!(
        held(&standalone(A, Hold::TakeFrom(None))),
        (1, None, Position::START)
    );
    append(&store, &shared(session, A, 1, "x"));
    let busy = standalone(B, Hold::TakeFrom(None));
    assert!(matches!(
        busy,
        Held::Busy(Holder {
            instance: A,
            number: 1
        })
    ));
    // The repeat of a take that was answered is no take of somebody else's.
    assert_eq!(
        held(&standalone(A, Hold::TakeFrom(None))),
        (1, None, Position::START)
    );

    let release = Hold::Release {
        number: 1,
        cursor: at(1, 7),
    };
    for _ in 0..2 {
        standalone(A, release);
        assert_eq!(state(&store, session, "standalone").holder, None);
    }
    // No further than the top, whatever the holder says.
    assert_eq!(
        held(&standalone(B, Hold::TakeFrom(None))),
        (2, None, at(1, 1))
    );
    // A release that comes late is of another hold.
    standalone(A, release);
    assert_eq!(
        state(&store, session, "standalone")
            .holder
            .map(|holder| holder.number),
        Some(2)
    );
    // B says nothing: the next one begins at the top.
    assert_eq!(held(&standalone(A, Hold::Take)), (3, Some(B), at(1, 1)));
    // Who takes again goes on with the cursor of its own hold.
    append(&store, &shared(session, A, 2, "x"));
    assert_eq!(held(&standalone(A, Hold::Take)), (4, Some(A), at(1, 1)));
}

#[test]
fn a_take_from_the_dead_compares() {
    let (store, session) = stream();
    let stale = Holder {
        instance: A,
        number: 7,
    };
    let change = |holder| hold(&store, session, "s", B, Hold::TakeFrom(Some(holder)));
    assert!(matches!(change(stale), Held::Busy(_)));
    let dead = Holder { number: 1, ..stale };
    assert_eq!(held(&change(dead)), (2, Some(A), Position::START));
    assert_eq!(held(&change(dead)), (2, None, Position::START));
    assert!(matches!(
        hold(&store, session, "t", A, Hold::Take),
        Held::NoStream
    ));
}

#[test]
fn a_dead_owner_is_fenced_unless_it_lives() {
    let (store, session) = stream();
    append(&store, &owned(session, "s", at(1, 1), "one"));
    let beat = |count| now(store.heartbeat(Beat { instance: A, count }, KEPT));
    let claim = |beat| {
        let dead = Dead { instance: A, beat };
        let claim = Claim {
            session,
            stream: name("s"),
            dead,
            finished_ttl: KEPT,
        };
        now(store.claim(&[claim]))
    };
    beat(4);
    assert_eq!((claim(None), claim(Some(3))), (0, 0));
    beat(5);
    assert_eq!(claim(Some(4)), 0);
    assert_eq!((claim(Some(5)), claim(Some(5))), (1, 0));
    let state = state(&store, session, "s");
    assert_eq!(
        (state.top, state.end),
        (at(2, 0), Some(StreamEnd::OwnerLost))
    );
    assert_eq!(
        stored_at(append(&store, &owned(session, "s", at(1, 1), "one"))),
        at(1, 1)
    );
    for position in [at(1, 2), at(2, 1), at(3, 1)] {
        assert_eq!(
            append(&store, &owned(session, "s", position, "x")),
            Appended::Fenced
        );
    }
    let finish = Append {
        event: None,
        finish: Some(KEPT),
        ..owned(session, "s", at(1, 1), "")
    };
    assert_eq!(append(&store, &finish), Appended::Fenced);
}

#[test]
fn a_cancel_marks_the_one_running_call() {
    let (store, session) = stream();
    let cancel = |id| now(store.mark_cancel(&session, &RpcId::Number(id)));
    assert_eq!(cancel(2), Some(Cancelled::NotRunning));
    let marked = |stream| Some(Cancelled::Marked(common::name(stream)));
    assert_eq!((cancel(1), cancel(1)), (marked("s"), marked("s")));
    assert!(state(&store, session, "s").cancelled);
    enter(&store, session, Some(&open("t")));
    assert_eq!(cancel(1), Some(Cancelled::Ambiguous));
    assert!(!state(&store, session, "t").cancelled);
    let finish = Append {
        finish: Some(KEPT),
        ..owned(session, "s", at(1, 1), "done")
    };
    append(&store, &finish);
    assert_eq!(cancel(1), marked("t"));
    assert!(state(&store, session, "t").cancelled);
}
