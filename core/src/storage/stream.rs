//! Steps on streams.

use std::time::Duration;

use bytes::Bytes;

use super::Dead;
use crate::id::{InstanceId, Position, SessionKey, StreamId};

/// Where an append goes and how a repeat is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Place {
    /// A call's stream: the owner chooses the position. A position at or
    /// before the top of its epoch is a repeat; one of an earlier epoch is a
    /// repeat if that event is still there, and fenced otherwise. A higher epoch than the
    /// stream's is the owner's own new epoch. A stream that is not there is
    /// [`Appended::NoStream`]; the standalone one has no owner, and fences.
    Owned {
        /// The writer; another one than the stream's is fenced.
        owner: InstanceId,
        /// Where the event goes.
        position: Position,
    },
    /// The standalone stream: the backend chooses the next position, in a new
    /// epoch where the generation is not that of the last append. A stream
    /// that is not there is created if its session is.
    ///
    /// The new epoch must be one that no lost history can have used: two
    /// restores of one copy would otherwise issue ids again. Derive it from the
    /// generation. Its first event follows `(former epoch, u64::MAX)`, for what
    /// was lost is not known: a reader that was behind gets a gap. The same goes
    /// for a stream that had expired and is made again: its epoch is higher than
    /// any that the session's former one had.
    ///
    /// On the stream of a call it is [`Appended::Fenced`].
    Shared {
        /// The writer.
        writer: InstanceId,
        /// Raised by the writer with each event, by one or more, and below 2^53. A
        /// number that
        /// was stored is a repeat, and answers that event's own position: keep
        /// the number with the event, and each writer's highest for as long as
        /// the stream.
        ///
        /// Once the event is evicted the repeat is still one, and answers a
        /// position that is no longer there: that of the writer's last event that
        /// was evicted, or any before the oldest that is kept. Numbers reach the
        /// backend in their order: one below the writer's highest that was never
        /// stored comes late, when nobody waits for it any more, and may be taken
        /// for a repeat or be stored.
        tag: u64,
    },
}

/// One event of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct NewEvent {
    /// For the first event of an epoch: the last position of the epoch before,
    /// as its writer knew it. For shared places the backend knows it.
    pub prev: Option<Position>,
    /// The payload, opaque.
    pub data: Bytes,
}

/// One append of a batch.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Append {
    /// The session.
    pub session: SessionKey,
    /// The stream.
    pub stream: StreamId,
    /// Where it goes.
    pub place: Place,
    /// The event; `None` only finishes the stream. Its position is the last that
    /// the writer knows of: one above the top becomes the top, so that what was
    /// lost before it shows. The answer has the top. Where its writer has ended
    /// the stream it is a repeat; where others did, who raised the epoch, it is
    /// fenced like any other append of the old epoch.
    pub event: Option<NewEvent>,
    /// Finishes the stream in the same write, and keeps it for so long.
    pub finish: Option<Duration>,
    /// How the stream ends, where `finish` is set.
    pub end: StreamEnd,
    /// Events that the stream may keep, this one included; the oldest go.
    pub keep_events: usize,
    /// Bytes that it may keep. The newest event stays, whatever its size.
    pub keep_bytes: usize,
    /// For owned places, the same as a position, counted by the writer: events
    /// at or before it may go. A backend may use this in place of the two. An
    /// inline one is not told it.
    pub trim: Option<Position>,
    /// The holder as the writer knows it, to be woken in the same step, whether it
    /// holds the stream still or not.
    pub wake: Option<InstanceId>,
}

/// What is stored for a session and for its principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Usage {
    /// Bytes of events of the session. Required: by it the engine
    /// [shrinks](super::Storage::shrink) a session that is over its bytes (E4).
    /// It may lag behind by a small part of that bound.
    pub session_bytes: u64,
    /// Bytes of events of the principal, for those who look; `0` where the
    /// backend cannot tell cheaply. The engine does not look: the principal's
    /// bound is kept by [`enter`](super::Storage::enter).
    pub principal_bytes: u64,
}

/// The answer to one append. A repeat is recognised first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Appended {
    /// Stored now, or by an earlier try.
    Stored {
        /// Where; for a repeat where it was stored first.
        position: Position,
        /// Who holds the stream, always: the writer learns by it whom to name in
        /// [`Append::wake`], and the engine knocks at one that was not named.
        holder: Option<InstanceId>,
        /// What is stored now.
        usage: Usage,
        /// Whether an earlier try has stored it, or it is older than what is kept.
        /// Then the event at this position may be another one, or be gone: the
        /// engine has followers read, and passes them nothing.
        repeat: bool,
    },
    /// The stream has a higher epoch or another owner.
    Fenced,
    /// The stream is finished.
    Finished,
    /// The stream is not there although its session is.
    NoStream,
    /// No such session.
    NoSession,
}

/// What to read of one stream.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Cursor {
    /// The session.
    pub session: SessionKey,
    /// The stream.
    pub stream: StreamId,
    /// Strictly after this position.
    pub after: Position,
    /// At most so many events; 0 reads the state alone.
    pub max_events: usize,
    /// At most so many bytes, but at least one event.
    pub max_bytes: usize,
    /// Slides the session's expiry.
    pub touch: bool,
}

impl Cursor {
    /// Reads a stream's state alone.
    #[must_use]
    pub fn state_of(session: SessionKey, stream: StreamId) -> Self {
        Self {
            session,
            stream,
            after: Position::START,
            max_events: 0,
            max_bytes: 0,
            touch: false,
        }
    }
}

/// A stored event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct StoredEvent {
    /// Where it stands.
    pub position: Position,
    /// See [`NewEvent::prev`].
    pub prev: Option<Position>,
    /// The payload; `None` where the record cannot be decoded.
    pub data: Option<Bytes>,
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum StreamEnd {
    /// Its writer finished it.
    Finished,
    /// Its writer is dead, which opens an epoch, or gave it up, which does not
    /// (clause F3).
    OwnerLost,
}

/// Where one hold of the standalone stream began. Holders that go on with it
/// ([`Hold::Continue`]) are of the same hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HoldStart {
    /// The last number of a holder of it.
    pub number: u64,
    /// Its holders got what follows this position, up to where the next one began.
    pub began: Position,
}

/// Who follows a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Holder {
    /// The instance.
    pub instance: InstanceId,
    /// Raised by every change of holder, from 1.
    pub number: u64,
}

/// The state of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct StreamState {
    /// The highest position ever stored; its epoch may be ahead of its last
    /// event's.
    pub top: Position,
    /// The oldest event that is still there.
    pub oldest: Option<Position>,
    /// How it ended, if it did.
    pub end: Option<StreamEnd>,
    /// Its only writer; `None` for the standalone stream.
    pub owner: Option<InstanceId>,
    /// Who follows it.
    pub holder: Option<Holder>,
    /// Whether its call was cancelled.
    pub cancelled: bool,
    /// Of the standalone stream the last [`REMEMBERED`](super::REMEMBERED) holds,
    /// the most recent one last, whether it goes on or was let go of. Empty for
    /// streams of calls. By it the engine finds whose event a client names that
    /// comes back (E9).
    pub holds: Vec<HoldStart>,
}

/// The answer to one [`Cursor`].
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Read {
    /// The stream is there.
    Page {
        /// Events in order.
        events: Vec<StoredEvent>,
        /// The state at the same instant.
        state: StreamState,
    },
    /// It is not, although its session is.
    NoStream,
    /// No such session.
    NoSession,
}

/// A change of a stream's holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Hold {
    /// Becomes the holder, whoever it was; of its own hold this goes on with
    /// the same cursor under a higher number.
    Take,
    /// Becomes the holder if there is none, or if it is `from`: the same instance
    /// under the same number. Where the caller holds it under another number than
    /// that of `from`, this is a repeat, with that number and its cursor. Otherwise
    /// somebody else holds it, and is told as [`Held::Busy`].
    TakeFrom(Option<Holder>),
    /// Goes on with the hold of this number, for a client that comes back: becomes
    /// the holder, under the next number, if the last hold has this number, whether
    /// it still goes on, with whomever, or was let go of. Where it began stays; where
    /// it was let go of is forgotten. Where the last hold has another number, since
    /// another one began or another holder went on with this one, and the caller
    /// holds the stream, this is a repeat, with that number and cursor; otherwise it
    /// is [`Held::Past`].
    Continue {
        /// The number.
        number: u64,
    },
    /// Lets go, if the caller holds the stream under this number; what was
    /// yielded last, but no further than the top, is kept for the next holder. Where somebody else holds it,
    /// nobody does, or the number is another one, nothing changes, and the answer
    /// is [`Held::Done`] all the same: it is a repeat, or comes late.
    Release {
        /// The number.
        number: u64,
        /// The last position yielded.
        cursor: Position,
    },
}

/// The answer of [`Storage::hold`](super::Storage::hold).
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Held {
    /// The caller holds the stream (for a release: no longer).
    Done {
        /// Its number; for a release the one that was to be let go of.
        number: u64,
        /// Who held it until this step, at whom the engine knocks. `None` for a
        /// release and for a repeat; of one's own hold it may be the caller or
        /// `None`.
        former: Option<InstanceId>,
        /// Where this hold began: where the former holder let go;
        /// [`Position::START`] for the first holder, the top at this moment where
        /// the former one did not say. For a release, the cursor that came with it.
        cursor: Position,
        /// The state now.
        state: StreamState,
    },
    /// Somebody else holds it. For [`Hold::TakeFrom`] only.
    Busy(Holder),
    /// Another hold began since. For [`Hold::Continue`] only.
    Past,
    /// The stream is not there although its session is. The standalone stream
    /// is created instead.
    NoStream,
    /// No such session.
    NoSession,
}

/// The end of a dead owner's open stream, in a new epoch (clause F3): one above
/// the stream's, and at least 2, for writers begin with 1 whether they have
/// written or not. [`StreamState::top`] becomes `(epoch, 0)`. The same goes for
/// streams that [`sweep`](super::Storage::sweep) ends.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Claim {
    /// The session.
    pub session: SessionKey,
    /// The stream.
    pub stream: StreamId,
    /// Only if the owner is this and still dead.
    pub dead: Dead,
    /// How long the stream is kept.
    pub finished_ttl: Duration,
}
