//! Client requests.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use bytes::Bytes;
use common::*;
use mcp_adapter_core::{
    OutcomeKind, WaiterToken,
    storage::{Beat, Dead, Put, PutRequest, RequestState, Settle, Settled, Storage as _},
};

#[test]
fn the_same_waiter_is_the_same_request() {
    let (store, session) = store();
    let first = request(session, 1, 1);
    assert_eq!(
        (put(&store, &first), put(&store, &first)),
        (Put::Done, Put::Done)
    );
    assert_eq!(stats(&store)[4], 1);
    let second = PutRequest {
        owner: B,
        ..request(session, 1, 2)
    };
    assert_eq!(put(&store, &second), Put::Replaced(A));
    assert_eq!(put(&store, &second), Put::Done);
    // The late repeat of the first one does not replace back.
    assert_eq!(put(&store, &first), Put::Done);
    assert_eq!(
        outcome(&store, session, 1, Some(2)),
        RequestState::Pending { owner: B }
    );
    let replaced = RequestState::Ended(OutcomeKind::Replaced, Bytes::new());
    assert_eq!(outcome(&store, session, 1, Some(1)), replaced);
    assert_eq!(stats(&store)[4], 1);
}

#[test]
fn one_answer_wins_and_its_repeat_wins_again() {
    let (store, session) = store();
    put(&store, &request(session, 1, 1));
    assert_eq!(settle(&store, &answer(session, 2, 1)), Settled::Unknown);
    assert_eq!(settle(&store, &answer(session, 1, 7)), Settled::Won);
    assert_eq!(
        settle(&store, &answer(session, 1, 8)),
        Settled::Already(OutcomeKind::Answered)
    );
    assert_eq!(settle(&store, &answer(session, 1, 7)), Settled::Won);
    let answered = RequestState::Ended(OutcomeKind::Answered, "answer 7".into());
    assert_eq!(outcome(&store, session, 1, None), answered);
    assert_eq!(outcome(&store, session, 2, None), RequestState::Missing);
    assert_eq!(stats(&store)[4], 0);
    // An id may be used again once its request has ended.
    assert_eq!(put(&store, &request(session, 1, 2)), Put::Done);
    assert_eq!(stats(&store)[4], 1);
}

#[test]
fn a_replaced_waiter_settles_nothing() {
    let (store, session) = store();
    put(&store, &request(session, 1, 1));
    put(&store, &request(session, 1, 2));
    let cancel = |token| Settle {
        token: Some(WaiterToken(token)),
        outcome: OutcomeKind::Cancelled,
        ..answer(session, 1, token)
    };
    assert_eq!(
        settle(&store, &cancel(1)),
        Settled::Already(OutcomeKind::Replaced)
    );
    assert_eq!(settle(&store, &cancel(2)), Settled::Won);
}

#[test]
fn a_living_owner_is_not_lost() {
    let (store, session) = store();
    put(&store, &request(session, 1, 1));
    now(store.heartbeat(
        Beat {
            instance: A,
            count: 2,
        },
        KEPT,
    ));
    let lose = |instance, beat| Settle {
        dead: Some(Dead { instance, beat }),
        outcome: OutcomeKind::OwnerLost,
        ..answer(session, 1, 3)
    };
    for (instance, beat) in [(A, None), (A, Some(1)), (B, None)] {
        assert_eq!(settle(&store, &lose(instance, beat)), Settled::Alive);
    }
    for _ in 0..2 {
        assert_eq!(settle(&store, &lose(A, Some(2))), Settled::Won);
    }
}

#[test]
fn pending_requests_are_limited_and_ended_ones_do_not_count() {
    let (store, session) = store();
    let limited = |id, token| PutRequest {
        max_pending: 2,
        ..request(session, id, token)
    };
    assert_eq!(put(&store, &limited(1, 1)), Put::Done);
    assert_eq!(put(&store, &limited(2, 2)), Put::Done);
    assert_eq!(put(&store, &limited(3, 3)), Put::TooMany);
    assert_eq!(put(&store, &limited(2, 4)), Put::Replaced(A));
    settle(&store, &answer(session, 1, 1));
    assert_eq!(put(&store, &limited(3, 3)), Put::Done);
    assert_eq!(stats(&store)[4], 2);
}
