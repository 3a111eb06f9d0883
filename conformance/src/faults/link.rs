//! The switch of all faults of one instance's connections.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use mcp_adapter_core::{Applied, Error, Result};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Proxy;

/// What a link does with what is sent over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Open,
    Cut,
    Frozen,
}

/// What the suite does to the connections of one instance. Clones are the same
/// link.
#[derive(Clone)]
pub struct Link(Arc<Inner>);

struct Inner {
    mode: watch::Sender<Mode>,
    delay: Mutex<Duration>,
    replies_to_lose: AtomicUsize,
    deaf: AtomicBool,
    used: AtomicBool,
    proxies: Mutex<Vec<(SocketAddr, Proxy)>>,
}

impl Default for Link {
    fn default() -> Self {
        Self(Arc::new(Inner {
            mode: watch::Sender::new(Mode::Open),
            delay: Mutex::new(Duration::ZERO),
            replies_to_lose: AtomicUsize::new(0),
            deaf: AtomicBool::new(false),
            used: AtomicBool::new(false),
            proxies: Mutex::default(),
        }))
    }
}

impl Link {
    /// A link that works.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Closes all connections and refuses new ones.
    pub fn cut(&self) {
        self.0.mode.send_replace(Mode::Cut);
    }

    /// Makes the link half-open: connections stay and are accepted, and nothing
    /// comes through in either direction.
    pub fn freeze(&self) {
        self.0.mode.send_replace(Mode::Frozen);
    }

    /// Lets everything through again, at once and with every reply.
    pub fn mend(&self) {
        *self.0.delay.lock() = Duration::ZERO;
        self.0.replies_to_lose.store(0, Ordering::SeqCst);
        self.0.deaf.store(false, Ordering::SeqCst);
        self.0.mode.send_replace(Mode::Open);
    }

    /// Delays whatever is sent, in both directions.
    pub fn delay(&self, delay: Duration) {
        *self.0.delay.lock() = delay;
    }

    /// Drops the replies to the next `count` requests after the server got
    /// them, and closes their connections.
    pub fn lose_replies(&self, count: usize) {
        self.0.replies_to_lose.store(count, Ordering::SeqCst);
    }

    /// How many replies are still to be lost.
    #[must_use]
    pub fn replies_to_lose(&self) -> usize {
        self.0.replies_to_lose.load(Ordering::SeqCst)
    }

    /// Drops every wake-up. A proxy cannot tell a wake-up from a reply: this is
    /// for [`Far`](super::Far) and for backends that look at [`is_deaf`](Self::is_deaf).
    pub fn lose_knocks(&self) {
        self.0.deaf.store(true, Ordering::SeqCst);
    }

    /// Whether wake-ups are dropped.
    #[must_use]
    pub fn is_deaf(&self) -> bool {
        self.0.deaf.load(Ordering::SeqCst)
    }

    /// Whether anything is connected through this link.
    pub(crate) fn is_used(&self) -> bool {
        self.0.used.load(Ordering::SeqCst)
    }

    pub(super) fn mark_used(&self) {
        self.0.used.store(true, Ordering::SeqCst);
    }

    pub(crate) fn proxy(&self, server: SocketAddr) -> io::Result<SocketAddr> {
        self.mark_used();
        let mut proxies = self.0.proxies.lock();
        if let Some((_, proxy)) = proxies.iter().find(|(known, _)| *known == server) {
            return Ok(proxy.addr());
        }
        // The proxy gets a link of its own to these switches, or the two would
        // keep each other for ever.
        let proxy = Proxy::start(server, self)?;
        let addr = proxy.addr();
        proxies.push((server, proxy));
        Ok(addr)
    }

    /// The switches without the proxies.
    pub(super) fn switches(&self) -> Switches {
        Switches {
            mode: self.0.mode.subscribe(),
            link: Arc::downgrade(&self.0),
        }
    }

    async fn is_open(&self) -> bool {
        let mut mode = self.0.mode.subscribe();
        let thawed = mode.wait_for(|mode| *mode != Mode::Frozen).await;
        thawed.is_ok_and(|mode| *mode == Mode::Open)
    }

    /// A request of a backend in this process sets out.
    pub(super) async fn pass(&self, operation: &'static str) -> Result<()> {
        let delay = *self.0.delay.lock();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if self.is_open().await {
            return Ok(());
        }
        Err(Error::unavailable(operation, Applied::No))
    }

    /// Its reply comes back.
    pub(super) async fn reply(&self, operation: &'static str) -> Result<()> {
        if take(&self.0.replies_to_lose) || !self.is_open().await {
            return Err(Error::unavailable(operation, Applied::Unknown));
        }
        Ok(())
    }

    /// Completes when the link is cut.
    pub(super) async fn cut_off(&self) {
        let mut mode = self.0.mode.subscribe();
        // The sender lives as long as this link.
        let _ = mode.wait_for(|mode| *mode == Mode::Cut).await;
    }
}

fn take(count: &AtomicUsize) -> bool {
    let less = |count: usize| count.checked_sub(1);
    count
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
        .is_ok()
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("mode", &*self.0.mode.borrow())
            .finish_non_exhaustive()
    }
}

/// What a proxy sees of its link, without keeping it.
#[derive(Clone)]
pub(super) struct Switches {
    mode: watch::Receiver<Mode>,
    link: std::sync::Weak<Inner>,
}

impl Switches {
    /// Completes with the mode as soon as the link is not frozen. One that
    /// nobody can switch any more stays as it is, or thaws.
    pub(super) async fn thawed(&mut self) -> Mode {
        let thawed = self.mode.wait_for(|mode| *mode != Mode::Frozen).await;
        thawed.map_or(Mode::Open, |mode| *mode)
    }

    pub(super) async fn cut_off(&mut self) {
        let cut = self.mode.wait_for(|mode| *mode == Mode::Cut).await.is_ok();
        if !cut {
            futures::future::pending().await
        }
    }

    pub(super) fn delay(&self) -> Duration {
        let link = self.link.upgrade();
        link.map_or(Duration::ZERO, |link| *link.delay.lock())
    }

    pub(super) fn loses_reply(&self) -> bool {
        let link = self.link.upgrade();
        link.is_some_and(|link| take(&link.replies_to_lose))
    }
}
