//! One instance's way to the backend, and all that can go wrong on it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use mcp_adapter_core::{
    Applied, Error, Result,
    storage::{Knock, Storage},
};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep},
};

use super::{
    history::{History, No, What},
    rng::Rng,
};

/// How often what goes wrong with a command or a knock, in 1000.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Weather {
    /// It fails and says that nothing was changed, which is true.
    pub(crate) refused: u64,
    /// It takes effect and its reply is lost.
    pub(crate) reply_lost: u64,
    /// It may take effect and there is never a reply.
    pub(crate) silent: u64,
    /// It takes effect later, when its caller has given up or not.
    pub(crate) late: u64,
    /// It is done twice, as a client library does that repeats on its own.
    pub(crate) twice: u64,
    /// Only the beginning of a batch takes effect.
    pub(crate) partial: u64,
    /// It takes long, but not too long.
    pub(crate) slow: u64,
    pub(crate) wake_lost: u64,
    pub(crate) wake_twice: u64,
    pub(crate) wake_late: u64,
}

/// The server as all links see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) up: bool,
    /// Raised by every restart: what was under way then is gone.
    pub(crate) boots: u64,
}

/// What all links have in common.
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) history: History,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) server: watch::Sender<Server>,
    pub(crate) weather: Mutex<Weather>,
    pub(crate) patience: Duration,
    /// The store remembers no deleted session: it is in its caller's process,
    /// where a create cannot be held up until after the delete.
    pub(crate) prompt_creates: bool,
    /// Writers write again what the store has lost.
    pub(crate) repair: bool,
    /// For the negative control.
    pub(crate) no_catch_up: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) down: bool,
    /// Nothing moves on the way, in either direction.
    pub(crate) stalled: bool,
    /// Nothing of the instance itself moves either.
    pub(crate) frozen: bool,
    pub(crate) dead: bool,
    /// Wake-ups do not arrive.
    pub(crate) deaf: bool,
    /// Nothing arrives through the doorbell, until it is opened anew.
    pub(crate) half_open: bool,
    /// Raised by every cut: what waits for a reply then does not get it.
    pub(crate) cuts: u64,
}

pub(crate) struct Link {
    pub(crate) no: No,
    pub(crate) world: Arc<World>,
    pub(crate) state: watch::Sender<State>,
    /// Commands so far, by name: what becomes of one depends on the seed and on
    /// these alone.
    counts: Mutex<BTreeMap<&'static str, u64>>,
    beats: AtomicU64,
}

/// What becomes of one command.
struct Fate {
    before: Duration,
    after: Duration,
    refused: bool,
    again: Option<Duration>,
    second_answer: bool,
    reply: Reply,
    /// Where a stall finds it: before the server or behind it.
    outside: bool,
    survives_cut: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reply {
    Comes,
    Lost,
    Silent,
}

impl Link {
    pub(crate) fn new(no: No, world: &Arc<World>) -> Arc<Self> {
        Arc::new(Self {
            no,
            world: Arc::clone(world),
            state: watch::Sender::new(State::default()),
            counts: Mutex::default(),
            beats: AtomicU64::new(0),
        })
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    pub(crate) fn stall(&self, frozen: bool) {
        self.change(|state| {
            state.stalled = true;
            state.frozen |= frozen;
        });
    }

    pub(crate) fn cut(&self) {
        self.change(|state| {
            state.down = true;
            state.cuts += 1;
        });
    }

    /// Whether the backend heard a new beat of this instance.
    pub(crate) fn heard(&self, count: u64) {
        if self.beats.fetch_max(count, Ordering::Relaxed) < count {
            self.world.history.push(What::Beat { instance: self.no });
        }
    }

    fn draw(&self, name: &'static str) -> Rng {
        let mut counts = self.counts.lock();
        let count = counts.entry(name).or_insert(0);
        *count += 1;
        self.world
            .rng
            .fork(name, (*count << 16) | u64::from(self.no))
    }

    /// How much of a batch takes effect before the connection is lost; `None`:
    /// all of it, and the connection stays.
    pub(crate) fn part_of(&self, length: usize) -> Option<usize> {
        let partial = self.world.weather.lock().partial;
        let mut rng = self.draw("part");
        let part = usize::try_from(rng.below(length as u64)).unwrap_or(0);
        (length > 1 && rng.chance(partial)).then_some(part)
    }

    fn fate(&self, name: &'static str) -> Fate {
        let weather = *self.world.weather.lock();
        let mut rng = self.draw(name);
        let patience = u64::try_from(self.world.patience.as_millis()).unwrap_or(u64::MAX);
        let before = if rng.chance(weather.late) {
            rng.millis(patience / 4, patience * 2)
        } else if rng.chance(weather.slow) {
            rng.millis(20, patience / 3)
        } else {
            rng.millis(0, 3)
        };
        let reply = if rng.chance(weather.reply_lost) {
            Reply::Lost
        } else if rng.chance(weather.silent) {
            Reply::Silent
        } else {
            Reply::Comes
        };
        let after = if rng.chance(weather.slow) {
            rng.millis(20, patience / 3)
        } else {
            rng.millis(0, 3)
        };
        let again = rng.chance(weather.twice).then(|| {
            if rng.chance(500) {
                Duration::ZERO
            } else {
                rng.millis(1, patience * 2)
            }
        });
        Fate {
            before,
            after,
            refused: rng.chance(weather.refused),
            again,
            second_answer: rng.chance(500),
            reply,
            outside: rng.chance(500),
            survives_cut: rng.chance(500),
        }
    }

    /// Sends a command on its way. It is a task of its own: whoever waits for
    /// the reply may give up, the command goes on.
    pub(crate) async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        name: &'static str,
        step: impl Fn(Arc<dyn Storage>) -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
        lose_reply: bool,
    ) -> Result<T> {
        let (mut state, mut server) = (self.state.subscribe(), self.world.server.subscribe());
        let (begun, boot) = (*state.borrow_and_update(), *server.borrow_and_update());
        let fate = self.fate(name);
        if begun.down || begun.dead || !boot.up || fate.refused {
            sleep(fate.after.min(Duration::from_millis(50))).await;
            return Err(Error::unavailable(name, Applied::No));
        }
        let prompt = self.world.prompt_creates && name == "create";
        let sent = Instant::now();
        let (reply, replied) = oneshot::channel();
        let link = Arc::clone(self);
        tokio::spawn(async move {
            sleep(fate.before).await;
            // What is sent into a stall does not get through it.
            if fate.outside || begun.stalled {
                link.thawed().await;
            }
            let gone = || {
                let cut = link.state.borrow().cuts != begun.cuts && !fate.survives_cut;
                let late = prompt && sent.elapsed() > Duration::from_millis(10);
                cut || late || *link.world.server.borrow() != boot
            };
            if gone() {
                return;
            }
            let mut answer = step(Arc::clone(&link.world.storage)).await;
            let again = async {
                sleep(fate.again.unwrap_or_default()).await;
                if fate.again.is_none() || gone() {
                    return None;
                }
                Some(step(Arc::clone(&link.world.storage)).await)
            };
            // The library gives the answer of its second try; or the first try
            // was answered, and the other one sat in a buffer.
            if fate.second_answer {
                if let Some(second) = again.await {
                    answer = second;
                }
                link.reply(&fate, lose_reply, reply, answer).await;
            } else {
                link.reply(&fate, lose_reply, reply, answer).await;
                again.await;
            }
        });
        let cut = async {
            let cut = state.wait_for(|state| state.cuts != begun.cuts || state.dead);
            let boot = server.wait_for(|server| *server != boot);
            tokio::select! { biased; _ = cut => {}, _ = boot => {} }
        };
        tokio::select! {
            biased;
            replied = replied => replied.unwrap_or_else(|_| {
                Err(Error::unavailable(name, Applied::Unknown))
            }),
            () = cut => Err(Error::unavailable(name, Applied::Unknown)),
        }
    }

    async fn reply<T>(
        &self,
        fate: &Fate,
        lose: bool,
        mut reply: oneshot::Sender<Result<T>>,
        answer: Result<T>,
    ) {
        sleep(fate.after).await;
        self.thawed().await;
        match fate.reply {
            Reply::Comes if !lose => drop(reply.send(answer)),
            Reply::Comes | Reply::Lost => {}
            Reply::Silent => reply.closed().await,
        }
    }

    /// Completes when the way is free, or the instance is dead.
    pub(crate) async fn thawed(&self) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| !state.stalled || state.dead).await;
    }

    /// Brings knocks from `bell` with losses, repeats and delays.
    pub(crate) fn doorbell(
        self: &Arc<Self>,
        mut bell: BoxStream<'static, Result<Knock>>,
    ) -> BoxStream<'static, Result<Knock>> {
        self.change(|state| state.half_open = false);
        let (knocks, heard) = mpsc::unbounded_channel();
        let link = Arc::clone(self);
        let (mut state, mut server) = (self.state.subscribe(), self.world.server.subscribe());
        let (begun, boot) = (*state.borrow_and_update(), *server.borrow_and_update());
        tokio::spawn(async move {
            loop {
                let cut = state.wait_for(|state| state.cuts != begun.cuts || state.dead);
                let boot = server.wait_for(|server| *server != boot);
                let knock = tokio::select! {
                    biased;
                    _ = cut => break,
                    _ = boot => break,
                    () = knocks.closed() => break,
                    knock = bell.next() => knock,
                };
                let Some(Ok(knock)) = knock else { break };
                link.bring(&knock, &knocks);
            }
        });
        futures::stream::unfold(heard, |mut heard| async move {
            Some((heard.recv().await?, heard))
        })
        .boxed()
    }

    fn bring(self: &Arc<Self>, knock: &Knock, knocks: &mpsc::UnboundedSender<Result<Knock>>) {
        let state = *self.state.borrow();
        let weather = *self.world.weather.lock();
        let mut rng = self.draw("knock");
        let hint = knock.is_hint();
        let lost = rng.chance(weather.wake_lost) || state.deaf;
        if state.half_open || (hint && lost) {
            return;
        }
        let times = 1 + usize::from(hint && rng.chance(weather.wake_twice));
        for _ in 0..times {
            let delay = if hint && rng.chance(weather.wake_late) {
                rng.millis(10, 3000)
            } else {
                rng.millis(0, 2)
            };
            let (link, knocks, knock) = (Arc::clone(self), knocks.clone(), knock.clone());
            tokio::spawn(async move {
                sleep(delay).await;
                link.thawed().await;
                // The doorbell may be gone by now.
                let _ = knocks.send(Ok(knock));
            });
        }
    }
}
