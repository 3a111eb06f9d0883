//! The seam between the engine and a backend.
//!
//! A backend implements [`Storage`]: a score of domain steps, each a single
//! atomic statement, script or transaction, and each safe to repeat. It decides
//! nothing else: retries, batches, waits, wake-ups, deaths, epochs and limits
//! are the [`Engine`](crate::Engine)'s.
//!
//! Rules that hold for every step:
//!
//! - **Twice is once.** The engine repeats a step whose answer was lost, and
//!   client libraries repeat on their own. A repeat changes nothing and answers
//!   as the first did, or says that it is a repeat.
//! - **Existence is decided in the step.** A write to a session that is missing,
//!   deleted or expired (by the backend's clock, swept or not) changes nothing.
//! - **Time is the backend's.** Durations come in, deadlines are computed and
//!   compared there.
//! - **A command may come late.** What timed out may still sit in a buffer and be
//!   executed after everybody gave up. Names and positions make it harmless; for
//!   `create`, a deleted session leaves its creator's token behind for longer
//!   than any command can be held up. A backend in the same process has no such
//!   buffers.
//! - **Use slides expiry** in [`enter`](Storage::enter) that finds its session,
//!   in appends that are stored, and in reads that ask for it; in nothing else.
//! - **A knock is a hint.** Losing, repeating or reordering it is allowed.

mod link;
mod request;
mod session;
mod stream;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use self::{
    link::{Beat, Dead, Door, Knock, SignalChannel, Target},
    request::{Put, PutRequest, RequestKey, RequestState, Settle, Settled},
    session::{Entered, NewSession, OpenStream, Updated},
    stream::{
        Append, Appended, Claim, Cursor, Held, Hold, Holder, NewEvent, Place, Read, StoredEvent,
        StreamEnd, StreamState, Usage,
    },
};
use crate::{
    adapter::Capabilities,
    engine::{inline, only},
    error::Result,
    id::{InstanceId, PrincipalKey, RpcId, SessionKey, StreamId},
    session::{Cancelled, Stats},
};

/// How the engine should drive a backend.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Profile {
    /// The backend's name, for logs and metrics.
    pub name: &'static str,
    /// What it offers to users.
    pub capabilities: Capabilities,
    /// Every step completes at its first poll: the engine calls it in the
    /// caller's task, with no lane between.
    pub inline: bool,
    /// Appends in one batch, at most.
    pub batch_events: usize,
    /// Bytes of events in one batch, at most; one larger event goes alone.
    pub batch_bytes: usize,
    /// Batches in flight at once, each of streams of its own.
    pub lanes: usize,
}

impl Profile {
    /// A backend in the same process, whose steps never wait.
    #[must_use]
    pub const fn inline(name: &'static str, capabilities: Capabilities) -> Self {
        Self {
            name,
            capabilities,
            inline: true,
            batch_events: 1,
            batch_bytes: usize::MAX,
            lanes: 1,
        }
    }

    /// A backend behind a round trip.
    #[must_use]
    pub const fn remote(name: &'static str, capabilities: Capabilities, lanes: usize) -> Self {
        Self {
            name,
            capabilities,
            inline: false,
            batch_events: 512,
            batch_bytes: 256 << 10,
            lanes,
        }
    }
}

/// Names the history of the server's data: another value after a reconnect
/// means that acknowledged writes may be missing (clause E1).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Generation(pub Arc<str>);

/// One step of sweeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Expired things that were removed, and streams and requests of the dead
    /// that were ended.
    pub removed: usize,
    /// Whether there is more to do: the budget ran out, or not every session was
    /// searched yet for what belongs to the dead.
    pub more: bool,
}

/// A backend.
///
/// Errors say whether the step may have taken effect:
/// [`Applied::Unknown`](crate::Applied::Unknown) makes the engine repeat it. A
/// record of a newer format is [`UnsupportedFormat`](crate::ErrorKind::UnsupportedFormat).
#[async_trait]
pub trait Storage: fmt::Debug + Send + Sync + 'static {
    /// How to drive this backend.
    fn profile(&self) -> Profile;

    /// Connects, if need be, and reads the server's generation. Called at the
    /// start and whenever the link is in doubt (E1).
    async fn attach(&self, me: InstanceId) -> Result<Generation>;

    /// Opens the one wake-up link of this instance. Its end or an error means
    /// that knocks may have been lost (F2).
    async fn doorbell(&self, me: InstanceId) -> Result<BoxStream<'static, Result<Knock>>>;

    /// Creates a session; `false` where a live one has the key (S1).
    async fn create(&self, session: &NewSession) -> Result<bool>;

    /// Reads a session, slides its expiry and opens a stream, in one round
    /// trip (S3, E4).
    async fn enter(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
        open: Option<&OpenStream>,
    ) -> Result<Entered>;

    /// Replaces the record if the revision is this (S2). Storing the same
    /// record at the next revision is a repeat.
    async fn update(&self, session: &SessionKey, revision: u64, record: Bytes) -> Result<Updated>;

    /// Removes a session with all that belongs to it (S4) and names the
    /// instances that own or hold something of it; `None` where the principal
    /// has no such session.
    async fn delete(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
    ) -> Result<Option<Vec<InstanceId>>>;

    /// Appends a batch, in order, each entry on its own merits (E1, E4, E6,
    /// E8); wakes [`Append::wake`] and slides the sessions' expiry (S3).
    async fn append(&self, batch: &[Append]) -> Result<Vec<Appended>>;

    /// [`append`](Self::append) of one entry, without waiting. Called only
    /// where the profile says [`inline`](Profile::inline), and provided for all;
    /// a backend whose appends are cheaper than a boxed future has its own.
    ///
    /// # Errors
    /// As those of `append`.
    fn append_inline(&self, append: &Append) -> Result<Appended> {
        let answers = inline("append", self.append(std::slice::from_ref(append)))?;
        only("append", answers)
    }

    /// Reads pages and states (E2).
    async fn read(&self, cursors: &[Cursor]) -> Result<Vec<Read>>;

    /// Changes a stream's holder (E9).
    async fn hold(
        &self,
        session: &SessionKey,
        stream: &StreamId,
        me: InstanceId,
        hold: Hold,
    ) -> Result<Held>;

    /// Brings a session's events under `max_bytes`: the oldest finished streams
    /// go first, then the oldest events (E4). Returns what is left.
    async fn shrink(&self, session: &SessionKey, max_bytes: u64) -> Result<u64>;

    /// Stores client requests (C1, C7).
    async fn put_requests(&self, batch: &[PutRequest]) -> Result<Vec<Put>>;

    /// Ends client requests and wakes their owners (C2, C4).
    async fn settle(&self, batch: &[Settle]) -> Result<Vec<Settled>>;

    /// Reads client requests (C5).
    async fn requests(&self, keys: &[RequestKey]) -> Result<Vec<RequestState>>;

    /// Marks the one open stream of this request as cancelled and wakes its
    /// owner; `None` where there is no such session.
    async fn mark_cancel(&self, session: &SessionKey, id: &RpcId) -> Result<Option<Cancelled>>;

    /// Writes this instance's heartbeat, kept for `ttl`, and reads all (F3).
    async fn heartbeat(&self, me: Beat, ttl: Duration) -> Result<Vec<Beat>>;

    /// Ends streams of dead owners and wakes their holders; the number of those
    /// that are ended now (F3).
    async fn claim(&self, batch: &[Claim]) -> Result<usize>;

    /// Removes what has expired, and ends what belongs to the dead, up to
    /// `budget` things; safe at many instances at once (S5, F3).
    async fn sweep(&self, budget: usize, dead: &[Dead], finished_ttl: Duration) -> Result<Swept>;

    /// Counts (S6).
    async fn stats(&self) -> Result<Stats>;

    /// Knocks at doors.
    async fn knock(&self, knocks: &[(Door, Knock)]) -> Result<()>;
}
