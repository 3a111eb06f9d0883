//! What an instance remembers of its streams and sessions, so that most appends
//! need not ask. All of it may be forgotten at any time.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use mcp_adapter_core::{InstanceId, Position, SessionKey, StreamId};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Streams that are remembered at most.
const STREAMS: usize = 65_536;
/// Sessions with counts that were not written yet, at which they are.
const ACCOUNTS: usize = 8192;
/// What a statement may take on its way.
const MARGIN: Duration = Duration::from_millis(100);
/// How long a statement can be held up on its way.
const DOUBT: Duration = Duration::from_secs(600);
/// How long the bytes of a session are remembered.
const REMEMBERED: Duration = Duration::from_secs(10);

/// When something ends that lasts so many microseconds at the least, as the answer
/// to a statement says that was sent at `sent`.
pub(crate) fn lasts(sent: Instant, micros: i64) -> Instant {
    sent + Duration::from_micros(micros.max(0).cast_unsigned())
}

/// The right to write a stream without further checks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    /// The stream's number in the database.
    pub(crate) id: i64,
    /// The lease, as the database names it.
    pub(crate) fresh: i64,
    /// Until when it holds, by this host's clock.
    pub(crate) until: Instant,
    /// The last place that was written.
    pub(crate) last: Position,
    pub(crate) holder: Option<InstanceId>,
}

#[derive(Debug, Clone, Copy)]
enum Stream {
    Leased(Lease),
    /// A statement with a lease is under way, or nobody knows what became of it.
    InDoubt(Instant),
}

#[derive(Debug, Clone, Copy)]
struct Account {
    /// Its bytes in the database, as read last.
    base: Option<i64>,
    /// What was stored since and is not counted there yet.
    events: i64,
    bytes: i64,
    seen: Instant,
}

/// A change of counts that is to be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delta {
    pub(crate) session: SessionKey,
    pub(crate) events: i64,
    pub(crate) bytes: i64,
}

#[derive(Debug)]
pub(crate) struct Known {
    streams: Mutex<HashMap<(SessionKey, StreamId), Stream>>,
    accounts: Mutex<HashMap<SessionKey, Account>>,
    /// Bytes of one session that are not written at once.
    patience: i64,
    urgent: AtomicBool,
}

impl Known {
    /// `session_bytes`: what a session may have. A sixteenth of it may be stored
    /// before it is counted.
    pub(crate) fn new(session_bytes: usize) -> Self {
        Self {
            streams: Mutex::default(),
            accounts: Mutex::default(),
            patience: i64::try_from(session_bytes / 16).unwrap_or(i64::MAX),
            urgent: AtomicBool::new(false),
        }
    }

    /// The lease on a stream, if it lasts long enough to be used.
    pub(crate) fn lease(&self, key: &(SessionKey, StreamId)) -> Option<Lease> {
        match self.streams.lock().get(key)? {
            Stream::Leased(lease) if Instant::now() + MARGIN < lease.until => Some(*lease),
            _ => None,
        }
    }

    /// Whether a statement with a lease on this stream may still take effect.
    pub(crate) fn is_in_doubt(&self, key: &(SessionKey, StreamId)) -> bool {
        matches!(self.streams.lock().get(key), Some(Stream::InDoubt(_)))
    }

    /// A statement with a lease sets out. Until it is answered the lease is not used
    /// again; without an answer it is in doubt.
    pub(crate) fn lend(&self, keys: impl Iterator<Item = (SessionKey, StreamId)>) {
        let now = Instant::now();
        let mut streams = self.streams.lock();
        for key in keys {
            streams.insert(key, Stream::InDoubt(now));
        }
    }

    pub(crate) fn remember(&self, key: (SessionKey, StreamId), lease: Lease) {
        let now = Instant::now();
        let mut streams = self.streams.lock();
        if streams.len() >= STREAMS {
            // What is in doubt stays for as long as a statement can be held up.
            streams.retain(|_, stream| match stream {
                Stream::Leased(lease) => now < lease.until,
                Stream::InDoubt(since) => now < *since + DOUBT,
            });
            if streams.len() >= STREAMS {
                streams.retain(|_, stream| matches!(stream, Stream::InDoubt(_)));
            }
        }
        if now + MARGIN < lease.until {
            streams.insert(key, Stream::Leased(lease));
        } else {
            streams.remove(&key);
        }
    }

    pub(crate) fn forget(&self, key: &(SessionKey, StreamId)) {
        self.streams.lock().remove(key);
    }

    /// The bytes of a session in the database.
    pub(crate) fn read_bytes(&self, session: SessionKey, bytes: i64) {
        self.account(session, |account| account.base = Some(bytes));
    }

    pub(crate) fn add(&self, session: SessionKey, events: i64, bytes: i64) {
        self.account(session, |account| {
            account.events += events;
            account.bytes += bytes;
            if account.bytes > self.patience {
                self.urgent.store(true, Ordering::Relaxed);
            }
        });
    }

    /// Its bytes that are stored and not counted in the database yet.
    pub(crate) fn uncounted_bytes(&self, session: &SessionKey) -> i64 {
        let accounts = self.accounts.lock();
        accounts.get(session).map_or(0, |account| account.bytes)
    }

    fn account(&self, session: SessionKey, change: impl FnOnce(&mut Account)) {
        let now = Instant::now();
        let mut accounts = self.accounts.lock();
        let account = accounts.entry(session).or_insert(Account {
            base: None,
            events: 0,
            bytes: 0,
            seen: now,
        });
        account.seen = now;
        change(account);
    }

    /// The bytes of a session as far as they are known here; 0 if they are not.
    pub(crate) fn session_bytes(&self, session: &SessionKey) -> u64 {
        let accounts = self.accounts.lock();
        let known = accounts.get(session).and_then(|account| {
            let bytes = account.base? + account.bytes;
            u64::try_from(bytes).ok()
        });
        known.unwrap_or(0)
    }

    /// What was counted before is void: the session was counted anew.
    pub(crate) fn counted(&self, session: SessionKey, bytes: u64) {
        self.account(session, |account| {
            account.base = i64::try_from(bytes).ok();
            account.events = 0;
            account.bytes = 0;
        });
    }

    pub(crate) fn forget_session(&self, session: &SessionKey) {
        self.accounts.lock().remove(session);
    }

    /// Whether counts should be written before more is stored.
    pub(crate) fn is_due(&self) -> bool {
        self.urgent.load(Ordering::Relaxed) || self.accounts.lock().len() >= ACCOUNTS
    }

    /// Takes the changes that are to be written.
    pub(crate) fn take(&self) -> Vec<Delta> {
        let now = Instant::now();
        self.urgent.store(false, Ordering::Relaxed);
        let mut accounts = self.accounts.lock();
        accounts.retain(|_, account| {
            account.events != 0 || account.bytes != 0 || now < account.seen + REMEMBERED
        });
        let changed = accounts.iter_mut().filter_map(|(session, account)| {
            let delta = Delta {
                session: *session,
                events: account.events,
                bytes: account.bytes,
            };
            (account.events, account.bytes) = (0, 0);
            (delta.events != 0 || delta.bytes != 0).then_some(delta)
        });
        let mut changed: Vec<_> = changed.collect();
        if accounts.len() >= ACCOUNTS {
            accounts.clear();
        }
        drop(accounts);
        changed.sort_unstable_by_key(|delta| delta.session);
        changed
    }
}
