//! What the backend loses of living writers' streams is there again, where the
//! profile asks for that, and shows where it does not.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use mcp_adapter_core::{
    Engine, EventId, Limits, Position, RpcId, SessionAdapter, SessionId, SessionRecord, StreamId,
    StreamWriter, TailEvent, TailFrom,
};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    fleet::Fleet,
    history::History,
    link::{Server, Weather, World},
    reference::{Data, Defects, Reference},
    rng::Rng,
    wire::Wire,
};

struct Scene {
    store: Reference,
    world: Arc<World>,
    _fleet: Fleet,
    a: Engine<Wire>,
    b: Engine<Wire>,
    id: SessionId,
}

impl Scene {
    async fn new(repair: bool) -> Self {
        let store = Reference::new(Defects::default());
        let limits = Limits::default();
        let world = Arc::new(World {
            rng: Rng::new(1),
            history: History::new(),
            storage: Arc::new(store.clone()),
            server: watch::Sender::new(Server { up: true, boots: 1 }),
            weather: Mutex::new(Weather::default()),
            patience: limits.operation_timeout(),
            prompt_creates: false,
            repair,
            no_catch_up: false,
        });
        let fleet = Fleet::new(Arc::clone(&world), limits);
        let engine = |slot: usize| fleet.all()[slot].engine().unwrap();
        let (a, b) = (engine(0), engine(1));
        let id = SessionId::generate();
        SessionAdapter::create(&a, &id, SessionRecord::default())
            .await
            .unwrap();
        Self {
            store,
            world,
            _fleet: fleet,
            a,
            b,
            id,
        }
    }

    async fn call(&self, request: i64) -> Box<dyn StreamWriter> {
        let request = RpcId::Number(request);
        let entered = self.a.enter(&self.id, None, Some(&request)).await.unwrap();
        entered.writer.unwrap()
    }

    /// The server comes back with these data, and all have noticed.
    async fn comes_back_with(&self, data: Data) {
        self.world.server.send_modify(|server| server.up = false);
        sleep(Duration::from_millis(1)).await;
        self.store.restart(Some(data));
        self.world.server.send_modify(|server| {
            server.up = true;
            server.boots += 1;
        });
        sleep(Duration::from_secs(10)).await;
    }

    /// What a client gets that reads the stream from its start, and nothing more
    /// for a while.
    async fn read(&self, stream: &StreamId) -> Vec<String> {
        let start = EventId::new(stream.clone(), Position::START);
        let mut tail = self.b.tail(&self.id, TailFrom::After(start)).await.unwrap();
        let mut read = Vec::new();
        while let Ok(Some(event)) = timeout(Duration::from_secs(5), tail.next()).await {
            read.push(match event {
                TailEvent::Event { data, .. } => String::from_utf8_lossy(&data).into_owned(),
                TailEvent::Gap { .. } => "gap".into(),
                TailEvent::End(why) => format!("{why:?}"),
                other => format!("{other:?}"),
            });
        }
        read
    }
}

async fn write(writer: &dyn StreamWriter, events: &[&'static str]) {
    for event in events {
        writer
            .append(Bytes::from_static(event.as_bytes()))
            .await
            .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn events_that_a_failover_lost_are_written_again() {
    for repair in [true, false] {
        let scene = Scene::new(repair).await;
        let (running, quiet, done) = (
            scene.call(1).await,
            scene.call(2).await,
            scene.call(3).await,
        );
        write(&*running, &["1", "2"]).await;
        write(&*quiet, &["1"]).await;
        write(&*done, &["1"]).await;
        let lagging = scene.store.copy();
        write(&*running, &["3", "4"]).await;
        write(&*quiet, &["2"]).await;
        done.finish(Some(Bytes::from_static(b"result")))
            .await
            .unwrap();
        scene.comes_back_with(lagging).await;
        write(&*running, &["5"]).await;
        let read = [
            scene.read(running.stream()).await,
            scene.read(quiet.stream()).await,
            scene.read(done.stream()).await,
        ];
        if repair {
            assert_eq!(read[0], ["1", "2", "3", "4", "5"]);
            assert_eq!(read[1], ["1", "2"], "nobody has to write for it");
            assert_eq!(read[2], ["1", "result", "Finished"]);
        } else {
            assert_eq!(read[0], ["1", "2", "gap", "5"]);
            assert_eq!(read[1], ["1"]);
            assert_eq!(read[2], ["1", "OwnerLost"]);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_lost_as_a_whole_is_there_again_with_its_events() {
    for repair in [true, false] {
        let scene = Scene::new(repair).await;
        let before = scene.store.copy();
        let writer = scene.call(1).await;
        write(&*writer, &["1", "2"]).await;
        // In the middle of its work, and with nothing else lost.
        scene.comes_back_with(before).await;
        write(&*writer, &["3"]).await;
        writer.finish(Some(Bytes::from_static(b"4"))).await.unwrap();
        let read = scene.read(writer.stream()).await;
        let whole = ["1", "2", "3", "4", "Finished"];
        let holed = ["gap", "3", "4", "Finished"];
        assert_eq!(read, if repair { &whole[..] } else { &holed[..] });
    }
}
