//! Steps whose answers need more than what a row says now: what was there before, and
//! what is counted. Time passes by a change of the file.

#![allow(clippy::unwrap_used, reason = "a step that fails ends the test")]

mod common;

use std::{path::Path, time::Duration};

use bytes::Bytes;
use common::{LONG, ME, new_session, session, shared, store};
use mcp_adapter_core::{
    InstanceId, OutcomeKind, Position, PrincipalKey, RpcId, SessionKey, StreamId, WaiterToken,
    storage::{
        Append, Beat, Cursor, Dead, Door, Entered, Held, Hold, HoldStart, Knock, NewSession,
        OpenStream, Put, PutRequest, REMEMBERED, Read, RequestKey, RequestState, Settle, Settled,
        Storage, StoredEvent, StreamState, Swept, UpdateSession, Updated,
    },
};
use mcp_adapter_sqlite::{SqliteOptions, SqliteStorage};

const A: InstanceId = InstanceId(1);
const B: InstanceId = InstanceId(2);

/// Two processes on one file.
struct Two {
    folder: tempfile::TempDir,
    a: SqliteStorage,
    b: SqliteStorage,
}

impl Two {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let open = || SqliteStorage::new(SqliteOptions::new(folder.path().join("mcp"))).unwrap();
        let (a, b) = (open(), open());
        Self { folder, a, b }
    }

    fn sql(&self, sql: &str) -> usize {
        let path: &Path = &self.folder.path().join("mcp");
        let conn = rusqlite::Connection::open(path).unwrap();
        conn.busy_timeout(Duration::from_secs(10)).unwrap();
        conn.execute(sql, []).unwrap()
    }

    fn count(&self, table: &str) -> i64 {
        let conn = rusqlite::Connection::open(self.folder.path().join("mcp")).unwrap();
        let sql = format!("SELECT count(*) FROM {table}");
        conn.query_row(&sql, [], |row| row.get(0)).unwrap()
    }

    async fn sweep(&self, dead: &[Dead]) -> usize {
        let mut removed = 0;
        loop {
            let swept: Swept = self.a.sweep(100, dead, LONG).await.unwrap();
            removed += swept.removed;
            if !swept.more {
                return removed;
            }
        }
    }
}

fn update(session: SessionKey, revision: u64, record: &'static str) -> UpdateSession {
    UpdateSession {
        session,
        principal: ME,
        revision,
        record: Bytes::from_static(record.as_bytes()),
        attempt: WaiterToken::generate(),
    }
}

#[tokio::test]
async fn of_two_equal_updates_one_wins_and_each_repeat_is_known_by_its_name() {
    let Two { a, b, .. } = &Two::new();
    let key = session(a).await;
    let first = update(key, 1, "same");
    assert_eq!(a.update(&first).await.unwrap(), Updated::Done(2));
    let other = update(key, 1, "same");
    assert_eq!(b.update(&other).await.unwrap(), Updated::Conflict);
    for revision in 2..=REMEMBERED as u64 {
        let next = update(key, revision, "next");
        let done = Updated::Done(revision + 1);
        assert_eq!(b.update(&next).await.unwrap(), done);
        assert_eq!(a.update(&next).await.unwrap(), done);
        // A late repeat changes nothing and answers as the first did.
        assert_eq!(a.update(&first).await.unwrap(), Updated::Done(2));
    }
    let stranger = UpdateSession {
        principal: PrincipalKey([1; 32]),
        ..update(key, 9, "stranger's")
    };
    assert_eq!(a.update(&stranger).await.unwrap(), Updated::NoSession);
    let last = update(key, 9, "last");
    assert_eq!(a.update(&last).await.unwrap(), Updated::Done(10));
    // Only so many are remembered.
    assert_eq!(a.update(&first).await.unwrap(), Updated::Conflict);
    match b.enter(&key, &ME, None).await.unwrap() {
        Entered::Session { record, revision } => {
            assert_eq!((&*record, revision), (&b"last"[..], 10))
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_late_create_of_any_former_creator_brings_nothing_back() {
    let two = Two::new();
    let Two { a, b, .. } = &two;
    let first = new_session();
    let by = |creator| NewSession {
        creator: WaiterToken(creator),
        ..first.clone()
    };
    for creator in 1..=3 {
        assert!(a.create(&by(creator)).await.unwrap());
        assert!(b.delete(&first.session, &ME).await.unwrap().is_some());
    }
    for creator in [1, 2, 3] {
        assert!(!b.create(&by(creator)).await.unwrap(), "creator {creator}");
    }
    // So many at once that the first of all is forgotten, and no more are kept.
    for creator in 4..=70 {
        assert!(a.create(&by(creator)).await.unwrap());
        assert!(a.delete(&first.session, &ME).await.unwrap().is_some());
    }
    assert_eq!(two.count("mcp_deleted"), 64);
    assert!(!a.create(&by(7)).await.unwrap());
    assert_eq!(two.sweep(&[]).await, 0);
    two.sql("UPDATE mcp_deleted SET until = 0");
    assert_eq!(two.sweep(&[]).await, 0, "it is no session");
    assert_eq!(two.count("mcp_deleted"), 0);
    assert!(a.create(&by(7)).await.unwrap());
}

async fn standalone(
    store: &SqliteStorage,
    key: SessionKey,
) -> Option<(Vec<StoredEvent>, StreamState)> {
    let cursor = Cursor {
        max_events: 100,
        max_bytes: 1000,
        ..Cursor::state_of(key, StreamId::standalone())
    };
    match store.read(&[cursor]).await.unwrap().pop() {
        Some(Read::Page { events, state }) => Some((events, state)),
        _ => None,
    }
}

#[tokio::test]
async fn a_shared_stream_that_is_made_again_gives_out_no_id_again() {
    for swept in [false, true] {
        let two = Two::new();
        let Two { a, b, .. } = &two;
        let key = session(a).await;
        let mut last = store(a, &shared(key, 1, 1, b"1")).await.unwrap();
        let (events, _) = standalone(b, key).await.unwrap();
        assert_eq!(events[0].prev, None, "nothing was before it");
        for life in 2..4 {
            let end = Append {
                finish: Some(LONG),
                ..shared(key, 1, life * 10, b"end")
            };
            last = last.max(store(b, &end).await.unwrap());
            assert_eq!(two.sql("UPDATE mcp_stream SET expires = 1"), 1);
            if swept {
                assert_eq!(two.sweep(&[]).await, 1);
                assert_eq!(two.count("mcp_stream"), 0);
            }
            assert_eq!(standalone(a, key).await, None);
            // Who holds it sees that it is ahead, before anything is stored.
            let held = b.hold(&key, &StreamId::standalone(), B, Hold::Take).await;
            let Held::Done { state, .. } = held.unwrap() else {
                panic!()
            };
            assert_eq!(state.top, Position::new(last.epoch + 1, 0));
            let next = store(a, &shared(key, 1, life * 10 + 1, b"next"))
                .await
                .unwrap();
            assert_eq!(next, Position::new(last.epoch + 1, 1));
            let (events, _) = standalone(b, key).await.unwrap();
            let unknown = Position::new(last.epoch, u64::MAX);
            assert_eq!((events.len(), events[0].prev), (1, Some(unknown)));
            assert!(
                !next.follows(events[0].prev, last),
                "a reader is told of a gap"
            );
            // The second goes on.
            last = store(b, &shared(key, 1, life * 10 + 2, b"on"))
                .await
                .unwrap();
            assert_eq!(last, Position::new(next.epoch, 2));
        }
    }
}

fn put(session: SessionKey, id: i64) -> PutRequest {
    PutRequest {
        session,
        id: RpcId::Number(id),
        token: WaiterToken::generate(),
        owner: A,
        timeout: LONG,
        result_ttl: LONG,
        max_pending: 100,
    }
}

fn settle(session: SessionKey, id: i64) -> Settle {
    Settle {
        session,
        id: RpcId::Number(id),
        token: None,
        outcome: OutcomeKind::Answered,
        payload: Bytes::new(),
        dead: None,
        attempt: WaiterToken::generate(),
    }
}

async fn open_stream(store: &SqliteStorage, session: SessionKey, name: &str) {
    let open = OpenStream {
        stream: name.parse().unwrap(),
        owner: A,
        request: RpcId::Number(1),
        max_open: 100,
        max_principal_bytes: 1 << 30,
    };
    let entered = store.enter(&session, &ME, Some(&open)).await.unwrap();
    assert!(matches!(entered, Entered::Session { .. }), "{entered:?}");
}

#[tokio::test]
async fn a_sweep_counts_what_expired_and_what_belonged_to_the_dead() {
    let two = Two::new();
    let Two { a, b, .. } = &two;
    // A session with all that is in it.
    let gone = session(a).await;
    open_stream(a, gone, "s").await;
    a.put_requests(&[put(gone, 1)]).await.unwrap();
    store(a, &shared(gone, 1, 1, b"x")).await.unwrap();
    two.sql("UPDATE mcp_session SET hard = 1");
    two.sql("UPDATE mcp_used SET due = 1");
    assert_eq!(two.sweep(&[]).await, 1, "a session is one thing");
    // What a delete has left, and what is the backend's own.
    let gone = session(a).await;
    open_stream(a, gone, "s").await;
    a.put_requests(&[put(gone, 1)]).await.unwrap();
    store(a, &shared(gone, 1, 2, b"x")).await.unwrap();
    a.delete(&gone, &ME).await.unwrap().unwrap();
    let beat = Beat {
        instance: B,
        count: 0,
    };
    a.heartbeat(beat, LONG).await.unwrap();
    let knock = [
        (Door::Of(B), Knock::Probe(1)),
        (Door::Of(B), Knock::Probe(2)),
    ];
    b.knock(&knock).await.unwrap();
    two.sql("UPDATE mcp_beat SET until = 1");
    two.sql("UPDATE mcp_knock SET at = 1");
    two.sql("UPDATE mcp_deleted SET until = 1");
    assert!(two.count("mcp_trash") > 0);
    assert_eq!(two.sweep(&[]).await, 0);
    for table in ["mcp_trash", "mcp_beat", "mcp_deleted", "mcp_event"] {
        assert_eq!(two.count(table), 0, "{table}");
    }
    // A stream that has ended, a request that is remembered and one that is not.
    let stays = session(b).await;
    let end = Append {
        finish: Some(LONG),
        ..shared(stays, 1, 3, b"x")
    };
    store(a, &end).await.unwrap();
    two.sql("UPDATE mcp_stream SET expires = 1");
    a.put_requests(&[put(stays, 1)]).await.unwrap();
    two.sql("UPDATE mcp_request SET due = due - 1000000");
    // The one is past its deadline, and its outcome is kept for as long again.
    two.sql("UPDATE mcp_request SET ttl = 10000000");
    assert_eq!(
        two.sweep(&[]).await,
        1,
        "the stream; nothing of the request was removed"
    );
    assert_eq!(two.count("mcp_request"), 1);
    two.sql("UPDATE mcp_request SET due = 1");
    assert_eq!(two.sweep(&[]).await, 1, "the request is forgotten");
    assert_eq!(two.count("mcp_request"), 0);
    // What the dead leave is ended, and that is counted once.
    open_stream(a, stays, "s").await;
    open_stream(a, stays, "t").await;
    a.put_requests(&[put(stays, 2)]).await.unwrap();
    let dead = [Dead {
        instance: A,
        beat: None,
    }];
    assert_eq!(two.sweep(&dead).await, 3);
    assert_eq!(two.sweep(&dead).await, 0);
}

#[tokio::test]
async fn a_heartbeat_of_0_is_one_like_any_other() {
    let Two { a, b, .. } = &Two::new();
    let key = session(a).await;
    open_stream(a, key, "s").await;
    let beat = Beat {
        instance: A,
        count: 0,
    };
    assert_eq!(a.heartbeat(beat, LONG).await.unwrap(), [beat]);
    let other = Beat {
        instance: B,
        count: 1,
    };
    assert!(b.heartbeat(other, LONG).await.unwrap().contains(&beat));
    let dead = |beat| [Dead { instance: A, beat }];
    let sweep = async |dead: &[Dead]| b.sweep(100, dead, LONG).await.unwrap().removed;
    assert_eq!(sweep(&dead(None)).await, 0, "it has one");
    assert_eq!(sweep(&dead(Some(0))).await, 1);
}

#[tokio::test]
async fn a_request_remembers_the_waiters_and_the_answers_of_those_before_it() {
    let Two { a, b, .. } = &Two::new();
    let key = session(a).await;
    let put_one = async |store: &SqliteStorage, put: &PutRequest| {
        only(store.put_requests(std::slice::from_ref(put)).await)
    };
    let answer_one = async |store: &SqliteStorage, settle: &Settle| {
        only(store.settle(std::slice::from_ref(settle)).await)
    };
    let (mut puts, mut answers) = (Vec::new(), Vec::new());
    // Each is answered, and replaced by the next one.
    for _ in 0..REMEMBERED {
        let one = put(key, 1);
        assert_eq!(put_one(a, &one).await, Put::Done);
        let answer = settle(key, 1);
        assert_eq!(answer_one(b, &answer).await, Settled::Won);
        puts.push(one);
        answers.push(answer);
    }
    // The last ones wait, and replace each other.
    let waits = [put(key, 1), put(key, 1)];
    assert_eq!(put_one(a, &waits[0]).await, Put::Done);
    assert_eq!(put_one(b, &waits[1]).await, Put::Replaced(A));
    // A late repeat of any of them changes nothing.
    let asked = [RequestKey {
        session: key,
        id: RpcId::Number(1),
        token: Some(waits[1].token),
    }];
    for late in puts.iter().skip(1).chain(&waits) {
        assert_eq!(put_one(a, late).await, Put::Done);
        let pending = RequestState::Pending { owner: A };
        assert_eq!(b.requests(&asked).await.unwrap(), [pending]);
    }
    for late in &answers {
        assert_eq!(answer_one(a, late).await, Settled::Won);
        let pending = RequestState::Pending { owner: A };
        assert_eq!(b.requests(&asked).await.unwrap(), [pending]);
    }
    // Only so many are remembered.
    assert_eq!(put_one(a, &puts[0]).await, Put::Replaced(A));
}

fn only<T>(answers: mcp_adapter_core::Result<Vec<T>>) -> T {
    let mut answers = answers.unwrap();
    assert_eq!(answers.len(), 1);
    answers.remove(0)
}

#[tokio::test]
async fn the_last_holds_are_remembered_and_can_be_continued() {
    let Two { a, b, .. } = &Two::new();
    let key = session(a).await;
    let name = StreamId::standalone();
    let hold =
        async |store: &SqliteStorage, me, hold| store.hold(&key, &name, me, hold).await.unwrap();
    let done = |held: Held| match held {
        Held::Done {
            number,
            former,
            cursor,
            state,
        } => (number, former, cursor, state),
        other => panic!("{other:?}"),
    };
    let (number, former, cursor, state) = done(hold(a, A, Hold::Take).await);
    assert_eq!((number, former, cursor), (1, None, Position::START));
    let start = |number, began| HoldStart { number, began };
    assert_eq!(state.holds, [start(1, Position::START)]);
    let top = store(a, &shared(key, 1, 1, b"1")).await.unwrap();
    // The client comes back at another instance: the hold goes on.
    let (number, former, cursor, state) = done(hold(b, B, Hold::Continue { number: 1 }).await);
    assert_eq!((number, former, cursor), (2, Some(A), Position::START));
    assert_eq!(state.holds, [start(2, Position::START)]);
    // The same, come late; and another instance that asks for it.
    let (number, former, ..) = done(hold(a, B, Hold::Continue { number: 1 }).await);
    assert_eq!((number, former), (2, None));
    assert!(matches!(
        hold(a, A, Hold::Continue { number: 1 }).await,
        Held::Past
    ));
    // No further than the top, whatever the holder says.
    let far = Position::new(top.epoch + 7, 9);
    let release = Hold::Release {
        number: 2,
        cursor: far,
    };
    let (_, _, cursor, state) = done(hold(b, B, release).await);
    assert_eq!((cursor, state.holder), (far, None));
    // Let go of, it can be continued as well, and the place is forgotten.
    let (number, former, cursor, _) = done(hold(a, A, Hold::Continue { number: 2 }).await);
    assert_eq!((number, former, cursor), (3, None, Position::START));
    done(
        hold(
            a,
            A,
            Hold::Release {
                number: 3,
                cursor: far,
            },
        )
        .await,
    );
    let (number, _, cursor, state) = done(hold(b, B, Hold::TakeFrom(None)).await);
    assert_eq!((number, cursor), (4, top));
    assert_eq!(state.holds, [start(3, Position::START), start(4, top)]);
    assert!(matches!(
        hold(a, A, Hold::Continue { number: 3 }).await,
        Held::Past
    ));
    for number in 5..=20 {
        let me = if number % 2 == 0 { B } else { A };
        done(hold(a, me, Hold::Take).await);
    }
    let (_, state) = standalone(b, key).await.unwrap();
    let numbers: Vec<_> = state.holds.iter().map(|hold| hold.number).collect();
    assert_eq!(numbers, (13..=20).collect::<Vec<_>>());
    // A stream of a call remembers none.
    open_stream(a, key, "s").await;
    let call: StreamId = "s".parse().unwrap();
    let (.., state) = done(b.hold(&key, &call, B, Hold::Take).await.unwrap());
    assert!(state.holds.is_empty());
    let held = a.hold(&key, &call, A, Hold::Continue { number: 2 }).await;
    let (number, former, ..) = done(held.unwrap());
    assert_eq!((number, former), (3, Some(B)));
}
