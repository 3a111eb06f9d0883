//! Steps of the storage, where what they leave in the tables is to be seen.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Setting, number};
use mcp_adapter_core::{
    InstanceId, OutcomeKind, Position, PrincipalKey, RpcId, SessionId, SessionKey, StreamId,
    WaiterToken,
    storage::{
        Append, Appended, Cursor, Entered, Held, Hold, NewEvent, NewSession, OpenStream, Place,
        Put, PutRequest, Read, Settle, Storage, StreamEnd,
    },
};
use mcp_adapter_postgres::{Pooler, PostgresOptions, PostgresStorage, sqlx::PgConnection};
use tokio::time::{sleep, timeout};

const A: InstanceId = InstanceId(10);
const ME: PrincipalKey = PrincipalKey([7; 32]);
const LONG: Duration = Duration::from_secs(600);
/// Far above the granularity of the server's clock.
const SHORT: Duration = Duration::from_millis(100);

/// Where no engine sweeps.
fn options(setting: &Setting) -> PostgresOptions {
    let options: PostgresOptions = setting.url.parse().unwrap();
    options.schema("steps")
}

async fn connect(setting: &Setting) -> PostgresStorage {
    let storage = PostgresStorage::connect(options(setting), &common::limits()).await;
    storage.unwrap()
}

struct Steps {
    setting: Setting,
    storage: PostgresStorage,
    admin: PgConnection,
    session: SessionKey,
}

impl Steps {
    /// A storage, and a session in it.
    async fn start() -> Self {
        let setting = Setting::start(&[]).await;
        let storage = connect(&setting).await;
        Self::on(setting, storage).await
    }

    async fn on(setting: Setting, storage: PostgresStorage) -> Self {
        storage.attach(A).await.unwrap();
        let admin = setting.admin().await;
        let mut steps = Self {
            setting,
            storage,
            admin,
            session: SessionKey([0; 32]),
        };
        steps.session = steps.create(LONG).await;
        steps
    }

    async fn create(&self, idle_ttl: Duration) -> SessionKey {
        let session = SessionId::generate().key();
        let new = NewSession {
            session,
            principal: ME,
            record: Bytes::from_static(b"{}"),
            idle_ttl,
            absolute_ttl: None,
            creator: WaiterToken::generate(),
        };
        assert!(self.storage.create(&new).await.unwrap());
        session
    }

    fn shared(&self, tag: u64, data: &str) -> Append {
        Append {
            session: self.session,
            stream: StreamId::standalone(),
            place: Place::Shared { writer: A, tag },
            event: Some(NewEvent {
                prev: None,
                data: Bytes::copy_from_slice(data.as_bytes()),
            }),
            finish: None,
            end: StreamEnd::Finished,
            keep_events: 1000,
            keep_bytes: 1 << 20,
            trim: None,
            wake: None,
        }
    }

    fn owned(&self, seq: u64, data: &str) -> Append {
        Append {
            stream: "s".parse().unwrap(),
            place: Place::Owned {
                owner: A,
                position: Position::new(1, seq),
            },
            ..self.shared(0, data)
        }
    }

    async fn append(&self, append: Append) -> Appended {
        self.storage.append(&[append]).await.unwrap().remove(0)
    }

    async fn stored(&self, append: Append) -> Position {
        match self.append(append).await {
            Appended::Stored { position, .. } => position,
            other => panic!("{other:?}"),
        }
    }

    async fn open(&self) {
        let open = OpenStream {
            stream: "s".parse().unwrap(),
            owner: A,
            request: RpcId::Number(1),
            max_open: 128,
            max_principal_bytes: u64::MAX,
        };
        let entered = self.storage.enter(&self.session, &ME, Some(&open)).await;
        assert!(matches!(entered.unwrap(), Entered::Session { .. }));
    }

    async fn read(&self, stream: &str) -> Read {
        let cursor = Cursor {
            session: self.session,
            stream: stream.parse().unwrap(),
            after: Position::START,
            max_events: 1000,
            max_bytes: 1 << 20,
            touch: false,
        };
        self.storage.read(&[cursor]).await.unwrap().remove(0)
    }

    /// What the session and its principal are said to have, and what they have.
    async fn is_counted(&mut self) {
        // Writes what is not counted yet.
        self.storage.stats().await.unwrap();
        let bytes = "SELECT coalesce(sum(length(data)), 0)::bigint FROM steps.event";
        let bytes = number(&mut self.admin, bytes).await;
        let events = number(&mut self.admin, "SELECT count(*) FROM steps.event").await;
        for (counted, is) in [
            ("SELECT bytes FROM steps.session", bytes),
            ("SELECT events FROM steps.session", events),
            (
                "SELECT coalesce(sum(bytes), 0)::bigint FROM steps.principal_bytes",
                bytes,
            ),
        ] {
            assert_eq!(number(&mut self.admin, counted).await, is, "{counted}");
        }
    }

    async fn hold(&self, me: InstanceId, hold: Hold) -> Held {
        let stream = StreamId::standalone();
        let held = self.storage.hold(&self.session, &stream, me, hold);
        held.await.unwrap()
    }
}

/// A repeat is told as one, whichever way it goes, and the next append goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_of_an_append_with_a_lease_is_told() {
    let steps = Steps::start().await;
    steps.open().await;
    let repeats = async |seqs: &[u64]| -> Vec<bool> {
        let batch: Vec<_> = seqs
            .iter()
            .map(|seq| steps.owned(*seq, &seq.to_string()))
            .collect();
        let answers = steps.storage.append(&batch).await.unwrap();
        let answers = answers.iter().zip(seqs).map(|(answer, seq)| match answer {
            Appended::Stored {
                position, repeat, ..
            } => {
                assert_eq!(*position, Position::new(1, *seq));
                *repeat
            }
            other => panic!("{other:?}"),
        });
        answers.collect()
    };
    assert_eq!(repeats(&[1, 2]).await, [false, false], "with a lease");
    assert_eq!(repeats(&[2]).await, [true]);
    assert_eq!(repeats(&[3]).await, [false], "with all checks");
    assert_eq!(repeats(&[4]).await, [false], "with a lease again");
    assert_eq!(repeats(&[4, 5]).await, [true, false]);
    // What this handle does not know of is there all the same.
    let other = connect(&steps.setting).await;
    let next = [steps.owned(6, "6"), steps.owned(7, "7")];
    other.append(&next).await.unwrap();
    assert_eq!(repeats(&[6, 7, 8]).await, [true, true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_opened_anew_under_the_name_of_one_that_is_over() {
    let mut steps = Steps::start().await;
    steps.open().await;
    steps.stored(steps.owned(1, "1234")).await;
    let end = Append {
        finish: Some(SHORT),
        ..steps.owned(2, "12")
    };
    steps.stored(end).await;
    steps.is_counted().await;
    sleep(SHORT * 2).await;
    steps.open().await;
    steps.is_counted().await;
    assert_eq!(
        number(&mut steps.admin, "SELECT count(*) FROM steps.event").await,
        0,
        "what was in the former one is gone"
    );
    assert_eq!(
        steps.stored(steps.owned(1, "new")).await,
        Position::new(1, 1)
    );
    steps.is_counted().await;
}

/// By whatever step it is made again: its ids are not given out again, and a reader
/// that was behind is told of a gap.
#[tokio::test(flavor = "multi_thread")]
async fn the_standalone_stream_is_made_again_and_counted() {
    let mut steps = Steps::start().await;
    let end = |steps: &Steps, tag| Append {
        finish: Some(SHORT),
        ..steps.shared(tag, "12345")
    };
    let first = steps.stored(steps.shared(1, "1234")).await;
    let last = steps.stored(end(&steps, 2)).await;
    assert_eq!((first.epoch, last.seq), (last.epoch, 2));
    steps.is_counted().await;
    sleep(SHORT * 2).await;
    // By a hold.
    let held = steps.hold(A, Hold::TakeFrom(None)).await;
    let Held::Done { number: 1, .. } = held else {
        panic!("{held:?}");
    };
    steps.is_counted().await;
    let mut former = last;
    for tag in 3..6 {
        let at = steps.stored(end(&steps, tag)).await;
        assert_eq!((at.epoch, at.seq), (former.epoch + 1, 1), "tag {tag}");
        let Read::Page { events, .. } = steps.read(StreamId::standalone().as_str()).await else {
            panic!("no stream");
        };
        assert_eq!(events[0].prev, Some(Position::new(former.epoch, u64::MAX)));
        assert!(!at.follows(events[0].prev, former), "a reader sees a gap");
        steps.is_counted().await;
        former = at;
        sleep(SHORT * 2).await;
        match tag {
            // By an append, after nothing or after a sweep.
            3 => {}
            4 => {
                let swept = steps.storage.sweep(100, &[], LONG).await.unwrap();
                assert_eq!(swept.removed, 1, "{swept:?}");
                steps.is_counted().await;
            }
            _ => {
                steps.storage.shrink(&steps.session, 0).await.unwrap();
                steps.is_counted().await;
            }
        }
    }
    let at = steps.stored(steps.shared(6, "6")).await;
    assert_eq!((at.epoch, at.seq), (former.epoch + 1, 1));
    assert_eq!(steps.stored(steps.shared(7, "7")).await.seq, 2);
    steps.is_counted().await;
}

fn put(steps: &Steps, id: i64, max_pending: usize) -> PutRequest {
    PutRequest {
        session: steps.session,
        id: RpcId::Number(id),
        token: WaiterToken::generate(),
        owner: A,
        timeout: LONG,
        result_ttl: LONG,
        max_pending,
    }
}

fn settle(steps: &Steps, id: i64) -> Settle {
    Settle {
        session: steps.session,
        id: RpcId::Number(id),
        token: None,
        outcome: OutcomeKind::Answered,
        payload: Bytes::new(),
        dead: None,
        attempt: WaiterToken::generate(),
    }
}

/// The order of a batch is not that of the ids, in which answers take them. So batches
/// must not lock them one by one.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_replace_others_wait_for_no_answer_in_a_circle() {
    const IDS: std::ops::Range<i64> = 0..8;
    let mut steps = Steps::start().await;
    let all: Vec<_> = IDS.map(|id| put(&steps, id, 100)).collect();
    steps.storage.put_requests(&all).await.unwrap();
    for _ in 0..100 {
        let again: Vec<_> = IDS.rev().map(|id| put(&steps, id, 100)).collect();
        let ends: Vec<_> = IDS.map(|id| settle(&steps, id)).collect();
        let (put, settled) = tokio::join!(
            steps.storage.put_requests(&again),
            steps.storage.settle(&ends),
        );
        assert!(put.unwrap().iter().all(|put| *put != Put::TooMany));
        settled.unwrap();
    }
    let deadlocks = "SELECT sum(deadlocks)::bigint FROM pg_stat_database";
    assert_eq!(number(&mut steps.admin, deadlocks).await, 0);
}

/// A caller that is left half-way, as who writes to a client that reads nothing, keeps no
/// lock and no connection from the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_nobody_polls_any_more_holds_up_no_other() {
    for pooler in [Pooler::None, Pooler::Transaction] {
        let setting = Setting::start(&[]).await;
        let options = options(&setting).pooler(pooler);
        let storage = PostgresStorage::connect(options, &common::limits()).await;
        let steps = Steps::on(setting, storage.unwrap()).await;
        let stream = StreamId::standalone();
        let mut left = Vec::new();
        // As many as there are connections for callers, and then each a bit further.
        for polls in std::iter::repeat_n(1, 8).chain(1..=12) {
            let me = InstanceId(100 + u128::try_from(left.len()).unwrap());
            let mut step = steps.storage.hold(&steps.session, &stream, me, Hold::Take);
            for _ in 0..polls {
                if futures::poll!(&mut step).is_ready() {
                    break;
                }
                sleep(Duration::from_millis(20)).await;
            }
            left.push(step);
        }
        let next = timeout(Duration::from_secs(1), steps.stored(steps.shared(1, "1")));
        next.await.expect("it waits for a step that is left");
        let read = timeout(Duration::from_secs(1), steps.read(stream.as_str()));
        read.await.expect("it waits for a connection");
        drop(left);
    }
}
