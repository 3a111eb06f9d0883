//! Steps of the seam that Redis takes otherwise than other backends: entries of
//! several events, a native command beside a script, numbers of Lua.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod append;
mod request;
mod session;
mod sweep;

use std::time::Duration;

use bytes::Bytes;
use mcp_adapter_conformance::server::Redis;
use mcp_adapter_core::{
    InstanceId, Limits, Position, PrincipalKey, RpcId, SessionId, SessionKey, StreamId,
    WaiterToken,
    storage::{
        Append, Appended, Cursor, Entered, NewEvent, NewSession, OpenStream, Place, Read, Storage,
        StreamEnd, StreamState,
    },
};
use mcp_adapter_redis::RedisStorage;

const A: InstanceId = InstanceId(0xaaaa_aaaa_0000_0000_0000_0000_0000_000a);
const B: InstanceId = InstanceId(0xbbbb_bbbb_0000_0000_0000_0000_0000_000b);
const ME: PrincipalKey = PrincipalKey([7; 32]);
const LONG: Duration = Duration::from_secs(600);

/// A server, and a handle on it.
struct Store {
    redis: RedisStorage,
    server: Redis,
}

async fn connect(server: &Redis) -> RedisStorage {
    let limits = Limits::default();
    let redis = RedisStorage::connect(server.url(), &limits);
    redis.await.unwrap()
}

impl Store {
    async fn open() -> Self {
        let server = Redis::start(&[]).unwrap();
        Self {
            redis: connect(&server).await,
            server,
        }
    }

    /// A session that is there.
    async fn session(&self) -> SessionKey {
        let new = new_session(SessionId::generate().key(), WaiterToken::generate());
        assert!(self.redis.create(&new).await.unwrap());
        new.session
    }

    /// A session with the open stream `s`, owned by `A`.
    async fn call(&self) -> SessionKey {
        let session = self.session().await;
        self.open_stream(&session, "s").await;
        session
    }

    async fn open_stream(&self, session: &SessionKey, stream: &str) {
        let open = open(stream);
        let entered = self.redis.enter(session, &ME, Some(&open)).await.unwrap();
        assert!(matches!(entered, Entered::Session { .. }), "{entered:?}");
    }

    async fn append(&self, batch: &[Append]) -> Vec<Got> {
        let answers = self.redis.append(batch).await.unwrap();
        answers.into_iter().map(Got::from).collect()
    }

    /// What is there of a stream: its events and its state.
    async fn read(&self, session: SessionKey, stream: &str) -> (Vec<Event>, StreamState) {
        let cursor = Cursor {
            session,
            stream: stream.parse().unwrap(),
            after: Position::START,
            max_events: 1000,
            max_bytes: 1 << 20,
            touch: false,
        };
        // Through a handle that has written nothing.
        let mut read = connect(&self.server).await.read(&[cursor]).await.unwrap();
        let Some(Read::Page { events, state }) = read.pop() else {
            panic!("no such stream");
        };
        let events = events.into_iter().map(|event| {
            let data = event.data.map_or_else(
                || "unreadable".into(),
                |data| String::from_utf8_lossy(&data).into_owned(),
            );
            (event.position, event.prev, data)
        });
        (events.collect(), state)
    }
}

/// Where an event stands, what it follows, and its text.
type Event = (Position, Option<Position>, String);

/// What an append was answered, without the usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Got {
    At(Position),
    Again(Position),
    Refused(Appended),
}

impl From<Appended> for Got {
    fn from(answer: Appended) -> Self {
        match answer {
            Appended::Stored {
                position,
                repeat: false,
                ..
            } => Self::At(position),
            Appended::Stored { position, .. } => Self::Again(position),
            refused => Self::Refused(refused),
        }
    }
}

fn at(epoch: u32, seq: u64) -> Position {
    Position::new(epoch, seq)
}

fn new_session(session: SessionKey, creator: WaiterToken) -> NewSession {
    NewSession {
        session,
        principal: ME,
        record: Bytes::from_static(b"{}"),
        idle_ttl: LONG,
        absolute_ttl: None,
        creator,
    }
}

fn open(stream: &str) -> OpenStream {
    OpenStream {
        stream: stream.parse().unwrap(),
        owner: A,
        request: RpcId::Number(1),
        max_open: 128,
        max_principal_bytes: u64::MAX,
    }
}

fn owned(session: SessionKey, position: Position, text: &str) -> Append {
    Append {
        session,
        stream: "s".parse().unwrap(),
        place: Place::Owned { owner: A, position },
        event: Some(NewEvent {
            prev: None,
            data: Bytes::copy_from_slice(text.as_bytes()),
        }),
        finish: None,
        end: StreamEnd::Finished,
        keep_events: 1000,
        keep_bytes: 1 << 20,
        trim: None,
        wake: None,
    }
}

fn shared(session: SessionKey, tag: u64, text: &str) -> Append {
    Append {
        stream: StreamId::standalone(),
        place: Place::Shared { writer: A, tag },
        ..owned(session, Position::START, text)
    }
}
