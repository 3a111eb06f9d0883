//! Sessions: each step twice is once, and nothing brings one back.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::*;
use mcp_adapter_core::{
    InstanceId, Position, PrincipalKey, RpcId, StreamId, WaiterToken,
    storage::{
        Appended, Entered, Held, Hold, NewSession, OpenStream, Put, Read, RequestState, Settled,
        Storage as _, Updated,
    },
};

#[test]
fn a_create_is_repeated_by_its_creator_only() {
    let (store, session) = store();
    assert!(now(store.create(&new_session(session))));
    let other = NewSession {
        creator: WaiterToken(2),
        ..new_session(session)
    };
    assert!(!now(store.create(&other)));
    // An update between the two tries does not make another create of it.
    now(store.update(&update(session, 1, b"changed")));
    assert!(now(store.create(&new_session(session))));
    let Entered::Session { record, revision } = enter(&store, session, None) else {
        panic!()
    };
    assert_eq!((&*record, revision), (&b"changed"[..], 2));
    assert_eq!(stats(&store), [1, 0, 0, 0, 0]);
}

#[test]
fn an_update_is_a_compare_and_set_that_can_be_repeated() {
    let (store, session) = store();
    let made = |revision, record| now(store.update(&update(session, revision, record)));
    let first = update(session, 1, b"two");
    for _ in 0..2 {
        assert_eq!(now(store.update(&first)), Updated::Done(2));
    }
    assert_eq!(made(1, b"two"), Updated::Conflict);
    assert_eq!(made(1, b"another"), Updated::Conflict);
    assert_eq!(made(0, b"two"), Updated::Conflict);
    assert_eq!(made(3, b"two"), Updated::Conflict);
    assert_eq!(made(2, b"two"), Updated::Done(3));
    assert_eq!(now(store.update(&first)), Updated::Done(2));
    assert_eq!(
        now(store.update(&update(key(2), 1, b""))),
        Updated::NoSession
    );
}

#[test]
fn another_principal_finds_nothing_and_deletes_nothing() {
    let (store, session) = store();
    let other = PrincipalKey([8; 32]);
    let entered = now(store.enter(&session, &other, Some(&open("s"))));
    assert!(matches!(entered, Entered::NoSession));
    assert!(now(store.delete(&session, &other)).is_none());
    assert_eq!(stats(&store), [1, 0, 0, 0, 0]);
}

#[test]
fn opening_a_stream_twice_opens_one() {
    let (store, session) = stream();
    let one = OpenStream {
        max_open: 1,
        ..open("s")
    };
    assert!(matches!(
        enter(&store, session, Some(&one)),
        Entered::Session { .. }
    ));
    assert_eq!(stats(&store)[1], 1);
    let state = state(&store, session, "s");
    assert_eq!(state.owner, Some(A));
    assert_eq!(
        state.holder.map(|holder| (holder.instance, holder.number)),
        Some((A, 1))
    );
    assert_eq!(state.top, Position::START);
}

#[test]
fn open_streams_and_principal_bytes_are_limited() {
    let (store, session) = stream();
    let second = OpenStream {
        max_open: 1,
        ..open("t")
    };
    assert!(matches!(
        enter(&store, session, Some(&second)),
        Entered::TooManyStreams
    ));
    let mut last = owned(session, "s", at(1, 1), "12345");
    last.finish = Some(KEPT);
    append(&store, &last);
    // Finished ones do not count, the standalone one does not either.
    append(&store, &shared(session, A, 1, "12345"));
    assert!(matches!(
        enter(&store, session, Some(&second)),
        Entered::Session { .. }
    ));

    assert!(now(store.create(&new_session(key(2)))));
    let quota = |max_principal_bytes| OpenStream {
        max_principal_bytes,
        ..open("s")
    };
    assert!(matches!(
        enter(&store, key(2), Some(&quota(9))),
        Entered::PrincipalQuota
    ));
    assert!(matches!(
        enter(&store, key(2), Some(&quota(10))),
        Entered::Session { .. }
    ));
    assert_eq!(stats(&store), [2, 4, 2, 10, 0]);
}

#[test]
fn a_delete_takes_all_along_and_names_who_is_concerned() {
    let (store, session) = stream();
    append(&store, &owned(session, "s", at(1, 1), "data"));
    hold(&store, session, "standalone", B, Hold::Take);
    let mut asked = request(session, 1, 1);
    asked.owner = InstanceId(3);
    put(&store, &asked);
    let mut parties = now(store.delete(&session, &ME)).unwrap();
    parties.sort();
    assert_eq!(parties, [A, B, InstanceId(3)]);
    assert!(now(store.delete(&session, &ME)).is_none());
    assert_eq!(stats(&store), [0; 5]);
}

#[test]
fn no_step_brings_a_deleted_session_back() {
    let (store, session) = stream();
    now(store.delete(&session, &ME));
    let standalone = StreamId::standalone();
    assert!(matches!(
        enter(&store, session, Some(&open("t"))),
        Entered::NoSession
    ));
    for one in [
        owned(session, "s", at(1, 1), "x"),
        shared(session, A, 1, "x"),
    ] {
        assert_eq!(append(&store, &one), Appended::NoSession);
    }
    assert!(matches!(
        read(&store, session, "s", Position::START),
        Read::NoSession
    ));
    assert!(matches!(
        now(store.hold(&session, &standalone, A, Hold::Take)),
        Held::NoSession
    ));
    assert_eq!(put(&store, &request(session, 1, 1)), Put::NoSession);
    assert_eq!(settle(&store, &answer(session, 1, 1)), Settled::Unknown);
    assert_eq!(outcome(&store, session, 1, None), RequestState::NoSession);
    assert_eq!(now(store.mark_cancel(&session, &RpcId::Number(1))), None);
    assert_eq!(now(store.shrink(&session, 0)), 0);
    assert_eq!(stats(&store), [0; 5]);
}

#[test]
fn a_batch_takes_each_entry_on_its_own_merits() {
    let (store, session) = stream();
    let batch = [
        owned(session, "s", at(1, 1), "a"),
        owned(key(2), "s", at(1, 1), "b"),
        owned(session, "t", at(1, 1), "c"),
        owned(session, "s", at(1, 2), "d"),
    ];
    let answers = now(store.append(&batch));
    assert!(matches!(answers[0], Appended::Stored { .. }));
    assert_eq!(answers[1..3], [Appended::NoSession, Appended::NoStream]);
    assert_eq!(stored_at(answers[3]), at(1, 2));
}
