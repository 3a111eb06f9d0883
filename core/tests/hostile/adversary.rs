//! What goes wrong, and when.

use std::{sync::Arc, time::Duration};

use mcp_adapter_core::Adapter;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    fleet::{Bound, Fleet, INSTANCES},
    history::{History, What},
    link::Weather,
    reference::{Data, Reference},
    rng::Rng,
};

/// What a run is exposed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exposure {
    /// Wake-ups go astray, links break, instances freeze, replies get lost.
    pub(crate) faults: bool,
    /// Instances die.
    pub(crate) deaths: bool,
    /// The backend loses what it has acknowledged.
    pub(crate) losses: bool,
    /// No wake-up arrives at all.
    pub(crate) silence: bool,
    /// Of all faults there are stalls only: then whoever stands still is held
    /// dead, and thaws.
    pub(crate) stalls_only: bool,
}

/// The first number of a stall.
const STALL: u64 = 7;

pub(crate) struct Adversary {
    pub(crate) fleet: Arc<Fleet>,
    /// Where the store can be copied and put back.
    pub(crate) store: Option<Reference>,
    pub(crate) exposure: Exposure,
    pub(crate) rng: Rng,
    pub(crate) until: Instant,
}

fn stormy(rng: &mut Rng) -> Weather {
    // Where everything fails at once, nobody lives to see a single failure's
    // consequence: most of the time only some of it does.
    let kinds = *rng.pick(&[150, 400, 800]);
    let mut often = |highest: u64| {
        if rng.chance(kinds) {
            rng.below(highest)
        } else {
            0
        }
    };
    Weather {
        refused: often(80),
        reply_lost: often(120),
        silent: often(25),
        late: often(60),
        twice: often(200),
        partial: often(200),
        slow: often(100),
        wake_lost: often(1001),
        wake_twice: often(400),
        wake_late: often(600),
    }
}

impl Adversary {
    fn history(&self) -> &History {
        &self.fleet.world.history
    }

    pub(crate) async fn run(mut self) {
        let mut older: Option<(u64, Data)> = None;
        // Who is dead is seen only in a lease without another fault.
        let pace = *self.rng.pick(&[1500, 4000, 12_000]);
        loop {
            let pause = self.rng.millis(100, pace);
            sleep(pause).await;
            if Instant::now() >= self.until {
                return;
            }
            if self.exposure.silence {
                self.fleet.world.weather.lock().wake_lost = 1000;
            }
            if !self.exposure.faults {
                continue;
            }
            let fault = self.rng.below(20);
            match if self.exposure.stalls_only {
                STALL
            } else {
                fault
            } {
                0..=3 => {
                    let mut weather = stormy(&mut self.rng);
                    if self.exposure.silence {
                        weather.wake_lost = 1000;
                    }
                    self.history().fault(format!("{weather:?}"));
                    *self.fleet.world.weather.lock() = weather;
                }
                4..=5 => {
                    self.history().fault("calm");
                    *self.fleet.world.weather.lock() = Weather::default();
                }
                6 => self.cut(),
                STALL..=11 => self.stall().await,
                12 => self.deafen(),
                13 => self.outage().await,
                14 => self.jump().await,
                15..=16 if self.exposure.deaths => self.kill(),
                17 if self.exposure.losses => {
                    if let Some(store) = &self.store {
                        older = Some((self.history().now(), store.copy()));
                    }
                }
                17..=19 if self.exposure.losses => self.lose(&mut older).await,
                _ => {}
            }
        }
    }

    /// All is well again from here on.
    pub(crate) fn heal(fleet: &Fleet) {
        fleet.world.history.push(What::Calm);
        *fleet.world.weather.lock() = Weather::default();
        for instance in fleet.all() {
            if instance.is_dead() {
                fleet.replace(&instance);
            }
            instance.link.change(|state| {
                state.down = false;
                (state.stalled, state.frozen) = (false, false);
                state.deaf = false;
                if state.half_open {
                    state.half_open = false;
                    state.cuts += 1;
                }
            });
        }
        fleet.world.server.send_modify(|server| server.up = true);
    }

    fn slot(&mut self) -> usize {
        usize::try_from(self.rng.below(INSTANCES as u64)).unwrap_or(0)
    }

    fn cut(&mut self) {
        let slot = self.slot();
        let instance = Arc::clone(&self.fleet.all()[slot]);
        let mends = self.rng.millis(0, 6000);
        self.history()
            .fault(format!("link of {} cut for {mends:?}", instance.no));
        instance.link.cut();
        tokio::spawn(async move {
            sleep(mends).await;
            instance.link.change(|state| state.down = false);
        });
    }

    async fn stall(&mut self) {
        let slot = self.slot();
        let instance = Arc::clone(&self.fleet.all()[slot]);
        let thaws = match self.rng.below(3) {
            0 => self.rng.millis(50, 4000),
            1 => self.rng.millis(4000, 13_000),
            _ => self.rng.millis(12_000, 28_000),
        };
        if instance.link.state.borrow().stalled {
            return;
        }
        let until = (Instant::now() + thaws).min(self.until);
        let frozen = self.rng.chance(600);
        let what = if frozen { "frozen" } else { "stalled" };
        self.history()
            .fault(format!("{} {what} for {thaws:?}", instance.no));
        instance.link.stall(frozen);
        tokio::spawn(async move {
            sleep_until(until).await;
            instance
                .link
                .world
                .history
                .fault(format!("{} thawed", instance.no));
            instance.link.change(|state| {
                (state.stalled, state.frozen) = (false, false);
            });
        });
        // That somebody is dead is seen only where nothing else disturbs.
        if self.rng.chance(600) {
            sleep(thaws.min(self.until.saturating_duration_since(Instant::now()))).await;
        }
    }

    fn deafen(&mut self) {
        let slot = self.slot();
        let instance = Arc::clone(&self.fleet.all()[slot]);
        let half_open = self.rng.chance(500);
        let hears = self.rng.millis(500, 15_000);
        self.history()
            .fault(format!("{} deaf (half open: {half_open})", instance.no));
        instance.link.change(|state| {
            state.half_open |= half_open;
            state.deaf |= !half_open;
        });
        tokio::spawn(async move {
            sleep(hears).await;
            instance.link.change(|state| state.deaf = false);
        });
    }

    fn kill(&mut self) {
        let slot = self.slot();
        let fleet = Arc::clone(&self.fleet);
        if fleet.all().iter().any(|instance| instance.is_dead()) {
            return;
        }
        let instance = Arc::clone(&fleet.all()[slot]);
        let orderly = self.rng.chance(300);
        let back = self.rng.millis(0, 8000);
        tokio::spawn(async move {
            if let (true, Some(engine)) = (orderly, instance.engine()) {
                fleet.world.history.fault(format!("{} closes", instance.no));
                // A closing instance gives up its calls on purpose.
                fleet.world.history.push(What::Died {
                    instance: instance.no,
                });
                let closing = async { engine.close().await.is_ok() };
                instance.run("close", Bound::Operation, closing).await;
            }
            instance.die();
            sleep(back).await;
            fleet.replace(&instance);
        });
    }

    /// The server is away; its data stay.
    async fn outage(&mut self) {
        let restart = self.rng.chance(300);
        let away = if self.rng.chance(200) {
            self.rng.millis(8000, 20_000)
        } else {
            self.rng.millis(50, 5000)
        };
        let away = away.min(self.until.saturating_duration_since(Instant::now()));
        self.history()
            .fault(format!("server away for {away:?} (restart: {restart})"));
        let server = &self.fleet.world.server;
        server.send_modify(|server| server.up = false);
        sleep(away).await;
        if restart && let Some(store) = &self.store {
            self.history().push(What::Restarted);
            store.restart(None);
        }
        server.send_modify(|server| {
            server.up = true;
            server.boots += 1;
        });
    }

    /// Everybody is suspended, the clocks go on.
    async fn jump(&mut self) {
        let span = self.rng.millis(6000, 20_000);
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        self.history().push(What::Jumped { millis });
        tokio::time::advance(span).await;
    }

    /// The server comes back without what it was told last, or as an older
    /// copy, or empty.
    async fn lose(&mut self, older: &mut Option<(u64, Data)>) {
        let Some(store) = self.store.clone() else {
            return;
        };
        let (after, data) = match self.rng.below(8) {
            0 => (0, Data::default()),
            1..=3 if older.is_some() => older.clone().unwrap_or_default(),
            _ => {
                let copy = (self.history().now(), store.copy());
                let lag = self.rng.millis(5, 2500);
                sleep(lag).await;
                copy
            }
        };
        let away = self.rng.millis(0, 1500);
        let server = &self.fleet.world.server;
        server.send_modify(|server| server.up = false);
        sleep(away.max(Duration::from_millis(1))).await;
        self.history().push(What::Lost { after });
        store.restart(Some(data));
        server.send_modify(|server| {
            server.up = true;
            server.boots += 1;
        });
    }
}
