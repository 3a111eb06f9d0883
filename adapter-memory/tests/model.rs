//! Random steps against a model that knows no shards, no locks and no sweeping.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::*;
use mcp_adapter_core::{
    OutcomeKind, Position, RpcId,
    storage::{
        Append, Appended, Beat, Claim, Dead, Entered, OpenStream, Place, Put, PutRequest, Read,
        RequestState, Settled, Storage as _, StreamEnd, Usage,
    },
};
use tokio::time::{Instant, advance};

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }
}

#[derive(Default)]
struct Stream {
    call: bool,
    top: Position,
    end: Option<(StreamEnd, Instant)>,
    /// Positions, ages and sizes.
    events: Vec<(Position, u64, u64)>,
}

struct Request {
    token: u128,
    deadline: Instant,
    end: Option<(OutcomeKind, Instant)>,
}

struct Session {
    deadline: Instant,
    appends: u64,
    streams: BTreeMap<String, Stream>,
    requests: BTreeMap<i64, Request>,
}

impl Session {
    fn bytes(&self) -> u64 {
        let events = self.streams.values().flat_map(|stream| &stream.events);
        events.map(|(_, _, bytes)| bytes).sum()
    }

    fn shrink(&mut self, max: u64) {
        while self.bytes() > max {
            let ended = |(name, stream): (&String, &Stream)| {
                stream.end.map(|(_, expires)| (expires, name.clone()))
            };
            if let Some((_, name)) = self.streams.iter().filter_map(ended).min() {
                self.streams.remove(&name);
                continue;
            }
            let streams = self.streams.values_mut();
            let oldest = streams
                .filter(|stream| !stream.events.is_empty())
                .min_by_key(|stream| stream.events[0].1);
            oldest.unwrap().events.remove(0);
        }
    }
}

#[derive(Default)]
struct Model(BTreeMap<u64, Session>);

impl Model {
    /// What is past its time is gone.
    fn pass(&mut self) {
        let now = Instant::now();
        self.0.retain(|_, session| now < session.deadline);
        for session in self.0.values_mut() {
            session
                .streams
                .retain(|_, stream| stream.end.is_none_or(|(_, expires)| now < expires));
            for request in session.requests.values_mut() {
                if request.end.is_none() && request.deadline <= now {
                    request.end = Some((OutcomeKind::TimedOut, request.deadline + KEPT));
                }
            }
            session
                .requests
                .retain(|_, request| request.end.is_none_or(|(_, forgotten)| now < forgotten));
        }
    }

    fn stats(&self) -> [u64; 5] {
        let streams = || self.0.values().flat_map(|session| session.streams.values());
        let requests = self
            .0
            .values()
            .flat_map(|session| session.requests.values());
        [
            self.0.len(),
            streams().count(),
            streams().map(|stream| stream.events.len()).sum(),
            usize::try_from(self.0.values().map(Session::bytes).sum::<u64>()).unwrap(),
            requests.filter(|request| request.end.is_none()).count(),
        ]
        .map(|count| count as u64)
    }

    fn principal_bytes(&self) -> u64 {
        self.0.values().map(Session::bytes).sum()
    }
}

struct Run {
    store: MemoryStorage,
    model: Model,
    random: Random,
    steps: u64,
}

impl Run {
    fn create(&mut self, number: u64) {
        // A creator of its own at each step: a repeat is made on purpose below.
        let mut new = new_session(key(number));
        new.creator.0 = self.steps.into();
        let free = !self.model.0.contains_key(&number);
        assert_eq!(now(self.store.create(&new)), free);
        assert_eq!(now(self.store.create(&new)), free);
        if free {
            let session = Session {
                deadline: Instant::now() + IDLE,
                appends: 0,
                streams: BTreeMap::new(),
                requests: BTreeMap::new(),
            };
            self.model.0.insert(number, session);
        }
    }

    fn open(&mut self, number: u64, stream: &str) {
        let max_open = 3;
        let max_principal_bytes = 400;
        let call = OpenStream {
            max_open,
            max_principal_bytes,
            request: RpcId::Number(1),
            ..open(stream)
        };
        let over = self.model.principal_bytes() > max_principal_bytes;
        let mut entered = enter(&self.store, key(number), Some(&call));
        if matches!(entered, Entered::PrincipalQuota) && !over {
            // Sessions count for their principal until somebody meets them.
            stats(&self.store);
            entered = enter(&self.store, key(number), Some(&call));
        }
        let Some(session) = self.model.0.get_mut(&number) else {
            assert!(matches!(entered, Entered::NoSession));
            return;
        };
        let streams = session.streams.values();
        let full = streams
            .filter(|stream| stream.call && stream.end.is_none())
            .count()
            >= max_open;
        match (session.streams.contains_key(stream), full, over) {
            (false, true, _) => return assert!(matches!(entered, Entered::TooManyStreams)),
            (false, _, true) => return assert!(matches!(entered, Entered::PrincipalQuota)),
            (there, ..) => {
                assert!(matches!(entered, Entered::Session { .. }));
                if !there {
                    let stream_of_call = Stream {
                        call: true,
                        ..Stream::default()
                    };
                    session.streams.insert(stream.to_owned(), stream_of_call);
                }
            }
        }
        session.deadline = Instant::now() + IDLE;
    }

    fn append(&mut self, number: u64, name: &str) {
        let data = "x".repeat(usize::try_from(self.random.below(30)).unwrap());
        let finish = self.random.below(4) == 0;
        let standalone = name == "standalone";
        let session = self.model.0.get_mut(&number);
        let top = session.and_then(|session| session.streams.get(name).map(|stream| stream.top));
        let top = top.unwrap_or_default();
        let position = at(top.epoch.max(1), top.seq + 1);
        let one = Append {
            finish: (finish && !standalone).then_some(KEPT),
            keep_events: 3,
            keep_bytes: 50,
            place: if standalone {
                Place::Shared {
                    writer: A,
                    tag: self.steps,
                }
            } else {
                Place::Owned { owner: A, position }
            },
            ..owned(key(number), name, position, &data)
        };
        let answer = append(&self.store, &one);
        let principal = self.model.principal_bytes();
        let Some(session) = self.model.0.get_mut(&number) else {
            return assert_eq!(answer, Appended::NoSession);
        };
        let former = session.bytes();
        if standalone {
            session.streams.entry(name.to_owned()).or_default();
        }
        let Some(stream) = session.streams.get_mut(name) else {
            return assert_eq!(answer, Appended::NoStream);
        };
        match stream.end {
            Some((StreamEnd::Finished, _)) => return assert_eq!(answer, Appended::Finished),
            Some((StreamEnd::OwnerLost, _)) => return assert_eq!(answer, Appended::Fenced),
            None => {}
        }
        stream.top = position;
        stream
            .events
            .push((position, session.appends, data.len() as u64));
        session.appends += 1;
        while stream.events.len() > 1
            && (stream.events.len() > 3
                || stream.events.iter().map(|(_, _, bytes)| bytes).sum::<u64>() > 50)
        {
            stream.events.remove(0);
        }
        if finish && !standalone {
            stream.end = Some((StreamEnd::Finished, Instant::now() + KEPT));
        }
        session.deadline = Instant::now() + IDLE;
        let Appended::Stored {
            position: stored,
            usage,
            ..
        } = answer
        else {
            panic!("{answer:?}")
        };
        assert_eq!(stored, position);
        assert_eq!(usage.session_bytes, session.bytes());
        let expected = |repeat| Appended::Stored {
            position,
            holder: session.streams[name].call.then_some(A),
            usage: Usage {
                session_bytes: session.bytes(),
                principal_bytes: principal - former + session.bytes(),
            },
            repeat,
        };
        if usage.principal_bytes > principal - former + session.bytes() {
            stats(&self.store);
        } else {
            assert_eq!(answer, expected(false));
        }
        assert_eq!(append(&self.store, &one), expected(true));
    }

    fn claim(&mut self, number: u64, name: &str) {
        let claim = Claim {
            session: key(number),
            stream: common::name(name),
            dead: Dead {
                instance: A,
                beat: None,
            },
            finished_ttl: KEPT,
        };
        let claimed = now(self.store.claim(&[claim]));
        let session = self.model.0.get_mut(&number);
        let stream = session.and_then(|session| session.streams.get_mut(name));
        let stream = stream.filter(|stream| stream.call && stream.end.is_none());
        assert_eq!(claimed, usize::from(stream.is_some()));
        if let Some(stream) = stream {
            stream.end = Some((StreamEnd::OwnerLost, Instant::now() + KEPT));
            stream.top = at(stream.top.epoch.max(1) + 1, 0);
        }
    }

    fn put(&mut self, number: u64, id: i64) {
        let max_pending = 2;
        let asked = PutRequest {
            max_pending,
            ..request(key(number), id, self.steps.into())
        };
        let answer = put(&self.store, &asked);
        let Some(session) = self.model.0.get_mut(&number) else {
            return assert_eq!(answer, Put::NoSession);
        };
        let pending = |request: &Request| request.end.is_none();
        let replaces = session.requests.get(&id).is_some_and(pending);
        let others = session.requests.iter();
        let others = others.filter(|(other, request)| **other != id && pending(request));
        if others.count() >= max_pending {
            return assert_eq!(answer, Put::TooMany);
        }
        assert_eq!(
            answer,
            if replaces {
                Put::Replaced(A)
            } else {
                Put::Done
            }
        );
        let new = Request {
            token: self.steps.into(),
            deadline: Instant::now() + asked.timeout,
            end: None,
        };
        session.requests.insert(id, new);
        assert_eq!(put(&self.store, &asked), Put::Done);
    }

    fn settle(&mut self, number: u64, id: i64) {
        let one = answer(key(number), id, self.steps.into());
        let settled = settle(&self.store, &one);
        let session = self.model.0.get_mut(&number);
        let Some(request) = session.and_then(|session| session.requests.get_mut(&id)) else {
            return assert_eq!(settled, Settled::Unknown);
        };
        if let Some((kind, _)) = request.end {
            return assert_eq!(settled, Settled::Already(kind));
        }
        assert_eq!(settled, Settled::Won);
        request.end = Some((OutcomeKind::Answered, Instant::now() + KEPT));
        assert_eq!(common::settle(&self.store, &one), Settled::Won);
    }

    fn shrink(&mut self, number: u64) {
        let max = self.random.below(100);
        let left = now(self.store.shrink(&key(number), max));
        let expected = self.model.0.get_mut(&number).map_or(0, |session| {
            session.shrink(max);
            session.bytes()
        });
        assert_eq!(left, expected);
    }

    fn look(&self, number: u64, name: &str, id: i64) {
        let session = self.model.0.get(&number);
        let stream = session.and_then(|session| session.streams.get(name));
        match read(&self.store, key(number), name, Position::START) {
            Read::NoSession => assert!(session.is_none()),
            Read::NoStream => assert!(session.is_some() && stream.is_none()),
            Read::Page { events, state } => {
                let stream = stream.unwrap();
                let positions = events.iter().map(|event| event.position);
                assert!(positions.eq(stream.events.iter().map(|(position, ..)| *position)));
                assert_eq!(state.top, stream.top);
                assert_eq!(state.end, stream.end.map(|(end, _)| end));
            }
        }
        let request = session.and_then(|session| session.requests.get(&id));
        match outcome(&self.store, key(number), id, None) {
            RequestState::NoSession => assert!(session.is_none()),
            RequestState::Missing => assert!(session.is_some() && request.is_none()),
            RequestState::Pending { .. } => assert!(request.unwrap().end.is_none()),
            RequestState::Ended(kind, _) => assert_eq!(request.unwrap().end.unwrap().0, kind),
        }
        if let Some(request) = request {
            let replaced = outcome(&self.store, key(number), id, Some(request.token + 1));
            assert!(matches!(
                replaced,
                RequestState::Ended(OutcomeKind::Replaced, _)
            ));
        }
    }

    async fn step(&mut self) {
        self.steps += 1;
        let number = self.random.below(6);
        let name = ["a", "b", "c", "d", "e", "standalone"];
        let name = name[usize::try_from(self.random.below(6)).unwrap()];
        let id = i64::try_from(self.random.below(4)).unwrap();
        match self.random.below(100) {
            0..8 => self.create(number),
            8..10 => {
                let deleted = now(self.store.delete(&key(number), &ME));
                assert_eq!(deleted.is_some(), self.model.0.remove(&number).is_some());
            }
            10..25 if name != "standalone" => self.open(number, name),
            25..50 => self.append(number, name),
            50..53 => self.claim(number, name),
            53..63 => self.put(number, id),
            63..70 => self.settle(number, id),
            70..74 => self.shrink(number),
            74..76 => {
                now(self.store.sweep(3, &[], KEPT));
            }
            76..78 => {
                let beat = Beat {
                    instance: B,
                    count: self.steps,
                };
                now(self.store.heartbeat(beat, KEPT));
            }
            78..90 => self.look(number, name, id),
            90..99 => {
                advance(Duration::from_millis(self.random.below(3000))).await;
                self.model.pass();
            }
            99 => {
                advance(Duration::from_millis(self.random.below(120_000))).await;
                self.model.pass();
            }
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn random_steps_do_as_the_model_does() {
    for seed in 1..=20 {
        let mut run = Run {
            store: MemoryStorage::new(),
            model: Model::default(),
            random: Random(0x9e37_79b9_7f4a_7c15 ^ seed),
            steps: 0,
        };
        let mut most = [0; 5];
        for step in 0..2000 {
            run.step().await;
            // Asking sweeps: not at each step, so that the steps meet what has
            // expired themselves.
            if step % 16 == 0 {
                let expected = run.model.stats();
                assert_eq!(stats(&run.store), expected, "seed {seed}, step {step}");
                most = std::array::from_fn(|at| most[at].max(expected[at]));
            }
        }
        assert!(most.iter().all(|most| *most > 2), "it did little: {most:?}");
        advance(IDLE).await;
        assert_eq!(stats(&run.store), [0; 5], "seed {seed}");
    }
}
