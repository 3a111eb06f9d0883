//! Calls that write at one instance and are followed at another, requests that
//! are asked at one and answered at the other, and what must hold of all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use mcp_adapter_core::{
    Answer, Applied, ClientRequestAdapter, Delivery, EndReason, Error, EventId, Health, Limits,
    LimitsBuilder, NewClientRequest, OutcomeKind, Position, Role as _, RpcId, SessionAdapter,
    SessionId, SessionRecord, TailEvent, TailFrom,
};
use mcp_adapter_redis::RedisAdapter;
use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// Short intervals, and a lease that no test outlasts by chance.
pub(crate) fn limits() -> LimitsBuilder {
    Limits::builder()
        .catch_up(Duration::from_millis(200))
        // All of a load, so that it can be read once more at its end.
        .stream_events(1 << 16)
        .operation_timeout(Duration::from_secs(2))
        .probe_after(Duration::from_millis(500))
        .probe_timeout(Duration::from_millis(500))
        .max_outage(Duration::from_secs(60))
}

/// The same with the default intervals of the link, which F2 is about.
pub(crate) fn slow_limits() -> LimitsBuilder {
    limits()
        .operation_timeout(Duration::from_secs(5))
        .probe_after(Duration::from_secs(5))
        .probe_timeout(Duration::from_secs(2))
}

/// Within which a dead or half-open link must be noticed (F2), and what a busy
/// machine may add.
pub(crate) const NOTICED: Duration = Duration::from_secs(8);

/// Waits until all of these know that something is wrong; asserts that they do in
/// time.
pub(crate) async fn noticed(since: Instant, instances: &[&RedisAdapter]) {
    for instance in instances {
        eventually("bad health", async || {
            (instance.health() != Health::Ok).then_some(())
        })
        .await;
    }
    assert!(since.elapsed() < NOTICED, "{:?}", since.elapsed());
}

/// What one call has seen.
#[derive(Debug, Default)]
struct Call {
    /// Numbers that were acknowledged.
    acknowledged: Vec<u64>,
    /// The last number that was written, acknowledged or not.
    written: u64,
    /// What the follower got, in order; `None` is a gap.
    read: Vec<Option<u64>>,
    end: Option<EndReason>,
    writer: Option<Error>,
}

/// How requests ended, as told to those who asked and to those who answered.
#[derive(Debug, Default)]
struct Requests {
    ended: Vec<OutcomeKind>,
    delivered: usize,
    answered: usize,
}

/// A running load.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    calls: Vec<Arc<Mutex<Call>>>,
    /// Where each of them can be read once more.
    streams: Vec<(RedisAdapter, SessionId, EventId)>,
    requests: Arc<Mutex<Requests>>,
    progress: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

/// What must hold of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Nothing that was acknowledged is lost, and nothing ends.
    Everything,
    /// What the backend lost of calls whose writers live is there again, and nothing
    /// ends but requests.
    Repaired,
    /// The same, but of what followers have had the older part may be gone.
    RepairedForFollowers,
    /// Sessions may be gone; what was seen before is in order.
    Lost,
}

impl Load {
    pub(crate) async fn start(a: &RedisAdapter, b: &RedisAdapter, calls: usize) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            calls: Vec::new(),
            streams: Vec::new(),
            requests: Arc::default(),
            progress: Arc::default(),
            tasks: JoinSet::new(),
        };
        for _ in 0..calls {
            load.call(a, b).await;
        }
        load
    }

    async fn call(&mut self, a: &RedisAdapter, b: &RedisAdapter) {
        let id = SessionId::generate();
        SessionAdapter::create(a, &id, SessionRecord::default())
            .await
            .unwrap();
        let entered = a.enter(&id, None, Some(&RpcId::Number(1))).await.unwrap();
        let writer = entered.writer.unwrap();
        let start = EventId::new(writer.stream().clone(), Position::START);
        let mut tail = b.tail(&id, TailFrom::After(start.clone())).await.unwrap();
        self.streams.push((b.clone(), id.clone(), start));
        let call = Arc::new(Mutex::new(Call::default()));
        self.calls.push(Arc::clone(&call));
        let (stop, progress) = (Arc::clone(&self.stop), Arc::clone(&self.progress));
        let written = Arc::clone(&call);
        self.tasks.spawn(async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                written.lock().written = number;
                match writer.append(Bytes::from(number.to_string())).await {
                    Ok(_) => {
                        written.lock().acknowledged.push(number);
                        progress.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) if error.is_retryable() => {
                        // Refused for sure, its number is not used again.
                        assert!(matches!(error.applied(), Applied::No | Applied::Unknown));
                    }
                    Err(error) => {
                        written.lock().writer = Some(error);
                        return;
                    }
                }
                sleep(Duration::from_millis(2)).await;
            }
            if let Err(error) = writer.finish(Some(Bytes::from_static(b"last"))).await {
                written.lock().writer = Some(error);
            }
        });
        self.tasks.spawn(async move {
            while let Some(event) = tail.next().await {
                let mut call = call.lock();
                match event {
                    TailEvent::Event { data, .. } if &data[..] == b"last" => {}
                    TailEvent::Event { data, .. } => {
                        let text = std::str::from_utf8(&data).unwrap();
                        call.read.push(Some(text.parse().unwrap()));
                    }
                    TailEvent::Gap { .. } => call.read.push(None),
                    TailEvent::End(why) => call.end = Some(why),
                    other => panic!("{other:?}"),
                }
            }
        });
        self.ask(a.clone(), b.clone(), id);
    }

    /// Asks at one instance and answers at the other, one after another.
    fn ask(&mut self, a: RedisAdapter, b: RedisAdapter, id: SessionId) {
        let (stop, requests) = (Arc::clone(&self.stop), Arc::clone(&self.requests));
        self.tasks.spawn(async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let name = RpcId::String(format!("r{number}").into());
                let asked = NewClientRequest::new(name.clone()).with_timeout(PATIENCE);
                match ClientRequestAdapter::create(&a, &id, asked).await {
                    Ok(waiting) => {
                        let answer = || Answer::Result(Bytes::from_static(b"yes"));
                        let mut told = b.answer(&id, &name, answer()).await;
                        while told.as_ref().is_err_and(Error::is_retryable) {
                            sleep(Duration::from_millis(50)).await;
                            told = b.answer(&id, &name, answer()).await;
                        }
                        let outcome = timeout(PATIENCE * 2, waiting).await.unwrap();
                        let mut requests = requests.lock();
                        requests.ended.push(outcome.kind);
                        requests.answered += usize::from(outcome.kind == OutcomeKind::Answered);
                        requests.delivered += usize::from(matches!(told, Ok(Delivery::Delivered)));
                    }
                    Err(error) if error.is_retryable() => {
                        sleep(Duration::from_millis(50)).await;
                    }
                    Err(_) => return,
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
    }

    /// Waits until so many more events are acknowledged.
    pub(crate) async fn goes_on(&self, events: usize) {
        let from = self.progress.load(Ordering::Relaxed);
        let until = Instant::now() + PATIENCE;
        while self.progress.load(Ordering::Relaxed) < from + events {
            let why = || -> Vec<_> {
                let calls = self.calls.iter();
                calls
                    .map(|call| format!("{:?}", call.lock().writer))
                    .collect()
            };
            assert!(Instant::now() < until, "the load stands still: {:?}", why());
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn progress_of_calls(&self) -> Vec<usize> {
        let calls = self.calls.iter();
        calls.map(|call| call.lock().acknowledged.len()).collect()
    }

    /// Waits until some call has so many more events that are acknowledged, and
    /// counts the calls that have one more at least.
    pub(crate) async fn calls_that_go_on(&self, events: usize) -> usize {
        let from = self.progress_of_calls();
        eventually("a call goes on", async || {
            let more = || self.progress_of_calls().into_iter().zip(&from);
            let enough = more().any(|(now, from)| now >= from + events);
            enough.then(|| more().filter(|(now, from)| now > *from).count())
        })
        .await
    }

    /// Waits until each call has so many more events that are acknowledged.
    pub(crate) async fn every_call_goes_on(&self, events: usize) {
        let from = self.progress_of_calls();
        eventually("every call goes on", async || {
            let now = self.progress_of_calls();
            let all = now
                .iter()
                .zip(&from)
                .all(|(now, from)| *now >= from + events);
            all.then_some(())
        })
        .await;
    }

    /// Ends the load and checks what it has seen.
    pub(crate) async fn check(mut self, expect: Expect) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = timeout(PATIENCE * 2, async {
            while let Some(task) = self.tasks.join_next().await {
                task.unwrap();
            }
        });
        ended.await.expect("all calls and requests come to an end");
        for (number, call) in self.calls.iter().enumerate() {
            call.lock().check(number, expect);
        }
        if matches!(expect, Expect::Everything | Expect::Repaired) {
            for (number, (b, id, start)) in self.streams.iter().enumerate() {
                let read = read_all(b, id, start).await;
                let call = self.calls[number].lock();
                let mut missing = call.acknowledged.clone();
                missing.retain(|event| !read.contains(event));
                assert!(missing.is_empty(), "call {number}: not stored: {missing:?}");
                assert!(read.is_sorted(), "call {number}: not in order");
            }
        }
        let requests = self.requests.lock();
        assert!(!requests.ended.is_empty(), "requests were asked");
        if expect == Expect::Everything {
            let odd: Vec<_> = requests
                .ended
                .iter()
                .filter(|kind| **kind != OutcomeKind::Answered)
                .collect();
            assert!(odd.is_empty(), "requests ended as {odd:?}");
        }
        // An answer whose delivery was told reached the one who asked. One whose
        // own try was answered by its repeat is counted on one side only.
        assert!(
            expect != Expect::Everything || requests.answered >= requests.delivered,
            "{} delivered, {} answered",
            requests.delivered,
            requests.answered
        );
    }
}

/// What a client gets that reads a finished stream from its start.
async fn read_all(b: &RedisAdapter, id: &SessionId, start: &EventId) -> Vec<u64> {
    let tail = b.tail(id, TailFrom::After(start.clone())).await.unwrap();
    let events: Vec<_> = timeout(PATIENCE, tail.collect()).await.unwrap();
    let numbers = events.iter().filter_map(|event| match event {
        TailEvent::Event { data, .. } if &data[..] != b"last" => {
            Some(std::str::from_utf8(data).unwrap().parse().unwrap())
        }
        TailEvent::Event { .. } => None,
        // A number that was given up.
        TailEvent::Gap { .. } => None,
        TailEvent::End(EndReason::Finished) => None,
        other => panic!("{other:?}"),
    });
    numbers.collect()
}

impl Call {
    fn check(&self, number: usize, expect: Expect) {
        let mut last = 0;
        let mut gap = false;
        for read in &self.read {
            match read {
                None => gap = true,
                Some(read) => {
                    assert!(*read > last, "call {number}: {read} after {last}");
                    let missing: Vec<_> = (last + 1..*read)
                        .filter(|missing| self.acknowledged.contains(missing))
                        .collect();
                    // What was given up is a gap in any case.
                    let may_be_lost = gap && expect == Expect::Lost;
                    assert!(
                        may_be_lost || missing.is_empty(),
                        "call {number}: a hole ({gap}): {missing:?} before {read}"
                    );
                    (last, gap) = (*read, false);
                }
            }
        }
        if expect == Expect::Lost {
            return;
        }
        assert_eq!(
            self.end,
            Some(EndReason::Finished),
            "call {number}: {:?}",
            self.writer
        );
        assert!(self.writer.is_none(), "call {number}: {:?}", self.writer);
        let missing: Vec<_> = self
            .acknowledged
            .iter()
            .filter(|seq| **seq > last)
            .collect();
        assert!(
            missing.is_empty(),
            "call {number}: lost at the end: {missing:?}"
        );
    }
}

/// Two instances with connections of their own.
pub(crate) async fn two(url: &str, limits: &Limits) -> (RedisAdapter, RedisAdapter) {
    let a = RedisAdapter::connect(url, limits.clone()).await.unwrap();
    let b = RedisAdapter::connect(url, limits.clone()).await.unwrap();
    (a, b)
}

/// Waits for what must come.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not in time");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A new session works, at both.
pub(crate) async fn works(a: &RedisAdapter, b: &RedisAdapter) {
    eventually("a new session", async || {
        let id = SessionId::generate();
        SessionAdapter::create(a, &id, SessionRecord::default())
            .await
            .ok()?;
        let event = SessionAdapter::append(a, &id, Bytes::from_static(b"1"))
            .await
            .ok()?;
        let start = EventId::new(event.stream, Position::START);
        let replay = b.replay(&id, &start, 10).await.ok()?;
        (replay.events.len() == 1).then_some(())
    })
    .await;
}
