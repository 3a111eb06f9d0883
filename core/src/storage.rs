//! The seam between the engine and a backend.
//!
//! A backend implements [`Storage`]: a score of domain steps, each a single
//! atomic statement, script or transaction, and each safe to repeat. It decides
//! nothing else: retries, batches, waits, wake-ups, deaths, epochs and limits
//! are the [`Engine`](crate::Engine)'s. Names such as E4 are clauses of
//! [the contract](crate#the-contract).
//!
//! An implementation needs the crates `async-trait`, `bytes` and `futures` in
//! the versions of this one. The suite of `mcp-adapter-conformance` certifies it.
//!
//! # Rules
//!
//! They hold for every step:
//!
//! - **A step is atomic.** What it has read has not changed by the time it writes,
//!   whatever other steps do at any other handle: an append takes nothing back that
//!   a control step has changed, nor the other way round.
//! - **Twice is once.** The engine repeats a step whose answer was lost, and
//!   client libraries repeat on their own. A repeat changes nothing and answers
//!   as the first did, or says that it is a repeat.
//! - **Existence is decided in the step.** A write to a session that is missing,
//!   deleted or expired (by the backend's clock, swept or not) changes nothing.
//! - **Time is the backend's.** Durations come in, deadlines are computed and
//!   compared there, by a clock that all instances share. Within one process any
//!   monotonic clock will do; tokio's is only needed by tests that pause it.
//! - **A command may come late.** What timed out may still sit in a buffer and be
//!   executed after everybody gave up. Names and positions make it harmless; for
//!   `create`, a deleted session leaves its creator's token behind for longer
//!   than any command can be held up. A backend in the same process has no such
//!   buffers, and need remember nobody.
//! - **Use slides expiry** in an [`enter`](Storage::enter) that answers
//!   [`Entered::Session`], in appends that answer [`Appended::Stored`], repeats
//!   included, and in reads that ask for it; in nothing else. What is refused
//!   slides nothing.
//! - **A knock is a hint.** Losing, repeating or reordering it is allowed. Only a
//!   doorbell that knows that it lost some has to say so: see
//!   [`doorbell`](Storage::doorbell).
//! - **A batch has one answer per entry**, in the order of the entries, each on
//!   its own merits: one that is refused holds up no other. An entry sees what
//!   those before it have done, trims included.
//! - **A repeat is known by its own name**, never by what it writes: a position,
//!   a tag, a token. Where a step must know more than one former name, the last
//!   [`REMEMBERED`] are enough.
//! - **Numbers stay below 2^53**: tags, sequence numbers, revisions, numbers of
//!   holds and heartbeat counters. A backend may count with doubles.
//! - **A handle is one instance**: the steps that one handle is asked for all have
//!   the same `me`, owner and writer, so that what a handle remembers is of nobody
//!   else.
//!
//! # Who knocks
//!
//! Some steps knock at a [`Door`] as part of the write. What they send is
//! [`Knock::Wake`] with the session and this [`Target`]:
//!
//! | step | when | at the door of | target |
//! |---|---|---|---|
//! | [`append`](Storage::append) | it answers [`Appended::Stored`] | [`Append::wake`], if any | [`Target::Stream`] |
//! | [`settle`](Storage::settle) | it answers [`Settled::Won`] | the request's owner | [`Target::Request`] |
//! | [`mark_cancel`](Storage::mark_cancel) | it answers [`Cancelled::Marked`] | the stream's owner | [`Target::Stream`] |
//! | [`claim`](Storage::claim) | a stream is ended | its holder, if any | [`Target::Stream`] |
//! | [`sweep`](Storage::sweep) | a dead owner's stream is ended | its holder, if any | [`Target::Stream`] |
//! | [`knock`](Storage::knock) | always | as it is told | as it is told |
//!
//! A [`settle`](Storage::settle) may send [`Knock::Outcome`] instead.
//!
//! A repeat may knock again or not. All other steps knock at nobody: whom an
//! answer names, in [`Appended::Stored::holder`], [`Held::Done::former`],
//! [`Put::Replaced`] or the list of [`delete`](Storage::delete), the engine knocks
//! at, by [`knock`](Storage::knock).

mod link;
mod names;
mod request;
mod session;
mod stream;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;

pub use self::{
    link::{Beat, Dead, Door, Knock, SignalChannel, Target},
    names::Names,
    request::{Put, PutRequest, RequestKey, RequestState, Settle, Settled},
    session::{Entered, NewSession, OpenStream, UpdateSession, Updated},
    stream::{
        Append, Appended, Claim, Cursor, Held, Hold, HoldStart, Holder, NewEvent, Place, Read,
        StoredEvent, StreamEnd, StreamState, Usage,
    },
};
use crate::{
    adapter::Capabilities,
    engine::{inline, only},
    error::Result,
    id::{InstanceId, PrincipalKey, RpcId, SessionKey, StreamId},
    session::{Cancelled, Stats},
};

/// How many former names of one kind a record remembers, so that their late
/// repeats are known: updates of a session, waiters and won tries of a client
/// request, holds of the standalone stream.
pub const REMEMBERED: usize = 8;

/// How the engine should drive a backend.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Profile {
    /// The backend's name, for logs and metrics.
    pub name: &'static str,
    /// What it offers to users.
    pub capabilities: Capabilities,
    /// Every step completes at its first poll: the engine calls it in the
    /// caller's task, with no lane between. [`attach`](Storage::attach) and
    /// [`doorbell`](Storage::doorbell) may wait all the same.
    pub inline: bool,
    /// Appends in one batch, at most.
    pub batch_events: usize,
    /// Bytes of events in one batch, at most; one larger event goes alone.
    pub batch_bytes: usize,
    /// Batches of appends in flight at once in each shard, each of streams of its
    /// own.
    pub lanes: usize,
    /// Parts of the store that can be away one by one, see
    /// [`shard_of`](Storage::shard_of).
    pub shards: usize,
    /// Whether what was acknowledged may be lost while its writers live, as in a
    /// failover to a replica that lagged behind: then they keep their last events,
    /// and write again what is lost (E5).
    pub repair: bool,
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
            shards: 1,
            repair: false,
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
            shards: 1,
            repair: false,
        }
    }

    /// The same, of a backend that may lose what it has acknowledged.
    #[must_use]
    pub const fn with_repair(self) -> Self {
        Self {
            repair: true,
            ..self
        }
    }

    /// The same, of so many parts that can be away one by one.
    #[must_use]
    pub const fn with_shards(self, shards: usize) -> Self {
        Self { shards, ..self }
    }
}

/// Names the history of the server's data: another value after a reconnect
/// means that acknowledged writes may be missing (clause E1).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Generation(pub Arc<str>);

/// One step of sweeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Swept {
    /// What was removed because its time is over, sessions, streams and requests,
    /// and what was ended because its owner is dead, streams and requests. A
    /// session with all that is in it is one thing, a stream with its events
    /// another, and so is a request. Not counted: what a
    /// [`delete`](Storage::delete) has left to be cleaned up, and a backend's own
    /// things, such as knocks, heartbeats and the tokens of deleted sessions.
    pub removed: usize,
    /// Whether there is more to do: the budget ran out, or not every session was
    /// searched yet for what belongs to the dead. It may be true although the
    /// last thing took the last of the budget; a step that has looked at all and
    /// found less than its budget says `false`.
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

    /// The part of the store that has this session, below
    /// [`shards`](Profile::shards) and always the same. What the engine sends in
    /// batches has queues for each shard, so that one that is away holds up its
    /// own sessions alone. Provided, for a store that is there or away as a whole.
    fn shard_of(&self, _session: &SessionKey) -> usize {
        0
    }

    /// Connects, if need be, and reads the server's generation. Called at the
    /// start and whenever the link is in doubt (E1).
    async fn attach(&self, me: InstanceId) -> Result<Generation>;

    /// Opens the one wake-up link of this instance. Its end or an error means
    /// that knocks may have been lost (F2). A link that goes on although it has
    /// dropped some, because nobody took them in time, yields
    /// [`Knock::Everything`] in their place.
    ///
    /// Knocks come through that are made after this returns. Called again by the
    /// same instance, the new link has all of them; the earlier one may end, or
    /// go on beside it.
    async fn doorbell(&self, me: InstanceId) -> Result<BoxStream<'static, Result<Knock>>>;

    /// Creates a session, at revision 1; `false` where a live one has the key
    /// that somebody else created (S1). The repeat by its creator is `true` for as
    /// long as the session lives, and changes nothing of it.
    ///
    /// After a [`delete`](Self::delete) the key is free for other creators. For
    /// the creators of deleted sessions it is `false` where a command may come late,
    /// for each of the last 64 that the key has had at least; within one process it
    /// does not matter.
    async fn create(&self, session: &NewSession) -> Result<bool>;

    /// Reads a session, slides its expiry and opens a stream, in one round
    /// trip (S3, E4). See [`OpenStream`] for the order of its checks.
    async fn enter(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
        open: Option<&OpenStream>,
    ) -> Result<Entered>;

    /// Replaces the record if the session is the principal's and has this
    /// revision, and raises that by one (S2). It slides no expiry.
    ///
    /// A session remembers the last [`REMEMBERED`] updates that won, by
    /// [`UpdateSession::attempt`]: one of them is a repeat, which changes nothing
    /// and answers [`Updated::Done`] with the revision that it made. The names are
    /// in the order of the revisions, so the last one made the stored revision, the
    /// one before it that less one. Two updates from one revision with the same
    /// record and other names are two: one wins, the other is a
    /// [`Conflict`](Updated::Conflict).
    async fn update(&self, update: &UpdateSession) -> Result<Updated>;

    /// Removes a session with all that belongs to it (S4) and names the
    /// instances that own an open stream of it, hold a stream or wait for a
    /// request; naming more, or one of them twice, is harmless. `None` where the
    /// principal has no such session, and so for a repeat.
    async fn delete(
        &self,
        session: &SessionKey,
        principal: &PrincipalKey,
    ) -> Result<Option<Vec<InstanceId>>>;

    /// Appends a batch, in order, each entry on its own merits (E1, E4, E6,
    /// E8); wakes [`Append::wake`] and slides the sessions' expiry (S3).
    ///
    /// Where this fails, what was stored of each stream is the beginning of its
    /// entries: no later one without the earlier. The engine repeats the batch,
    /// and what stands at or before the last that was stored is a repeat.
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

    /// Changes a stream's holder (E9). Knocks at nobody.
    async fn hold(
        &self,
        session: &SessionKey,
        stream: &StreamId,
        me: InstanceId,
        hold: Hold,
    ) -> Result<Held>;

    /// Brings a session's events under `max_bytes`, that is, to no more than
    /// these (E4). Finished streams go first, as a whole, the one that would
    /// expire first before the others; then events of open streams, of each
    /// stream the oldest first, and across streams by age as well as the backend
    /// can tell. A stream that is emptied so stays, with its top. Returns the
    /// bytes that are left; 0 where there is no such session.
    async fn shrink(&self, session: &SessionKey, max_bytes: u64) -> Result<u64>;

    /// Stores client requests (C1, C7).
    async fn put_requests(&self, batch: &[PutRequest]) -> Result<Vec<Put>>;

    /// Ends client requests and wakes their owners (C2, C4).
    async fn settle(&self, batch: &[Settle]) -> Result<Vec<Settled>>;

    /// Reads client requests (C5).
    async fn requests(&self, keys: &[RequestKey]) -> Result<Vec<RequestState>>;

    /// Marks the one open stream of this request as cancelled, names it and wakes
    /// its owner; of two or more none is marked. `None` where there is no such
    /// session.
    async fn mark_cancel(&self, session: &SessionKey, id: &RpcId) -> Result<Option<Cancelled>>;

    /// Writes this instance's heartbeat, kept for `ttl`, and reads all, this one
    /// included (F3). A counter lower than the stored one is ignored: the answer
    /// has the higher.
    async fn heartbeat(&self, me: Beat, ttl: Duration) -> Result<Vec<Beat>>;

    /// Ends streams of dead owners and wakes their holders. The number of streams
    /// that this step ended: one that had ended before is not counted, so a
    /// repeat answers 0 (F3).
    async fn claim(&self, batch: &[Claim]) -> Result<usize>;

    /// Removes what has expired, and ends what belongs to the dead, up to
    /// `budget` things; safe at many instances at once (S5, F3).
    async fn sweep(&self, budget: usize, dead: &[Dead], finished_ttl: Duration) -> Result<Swept>;

    /// Counts what is there (S6): no session that has expired, whether it was
    /// swept or not; what was in it may be counted until it is swept. Counts that
    /// lag behind are [`Count::Estimate`](crate::Count).
    async fn stats(&self) -> Result<Stats>;

    /// Knocks at doors, in order. A door that nobody has opened swallows it.
    async fn knock(&self, knocks: &[(Door, Knock)]) -> Result<()>;
}
