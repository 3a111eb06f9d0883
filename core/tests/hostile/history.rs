//! What happened in a run, in order, under small numbers in place of ids.

use std::{fmt, sync::Arc};

use mcp_adapter_core::{
    Applied, Cancelled, Delivery, EndReason, Error, ErrorKind, OutcomeKind, Position, Revocation,
};
use parking_lot::Mutex;
use tokio::time::Instant;

/// A session, a stream, an event, a reader, a client request, one creation of
/// it, an answer, an instance: numbers from a counter each.
pub(crate) type No = u32;

/// How an operation that writes ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Written<T> {
    Done(T),
    /// It changed nothing, and never will.
    Refused(ErrorKind),
    /// It may take effect, now or later.
    Unknown(ErrorKind),
}

impl<T> Written<T> {
    pub(crate) fn of<U>(result: Result<U, &Error>, value: impl FnOnce(U) -> T) -> Self {
        match result {
            Ok(done) => Self::Done(value(done)),
            Err(error) if error.applied() == Applied::Unknown => Self::Unknown(error.kind()),
            Err(error) => Self::Refused(error.kind()),
        }
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum What {
    /// The backend lost all that it was told after this time.
    Lost {
        after: u64,
    },
    /// The backend came back under another generation, with or without its data.
    Restarted,
    /// A session was over its bytes, and is to be shrunk.
    Shrunk,
    /// All clocks jumped: everybody was suspended.
    Jumped {
        millis: u64,
    },
    /// A fault, for people to read.
    Fault(String),
    /// An instance was started.
    Started {
        instance: No,
    },
    /// An instance died or was closed.
    Died {
        instance: No,
    },
    /// A heartbeat raised the instance's counter in the backend.
    Beat {
        instance: No,
    },

    /// A session is being created here.
    Create {
        session: No,
    },
    /// By one of several that create it at once.
    Created {
        session: No,
        done: Written<()>,
    },
    /// Whether an operation that began at `began` found the session; one that
    /// cannot tell is not recorded. `used`: its expiry was slid.
    Found {
        session: No,
        began: u64,
        found: bool,
        used: bool,
    },
    /// From here on a client holds a stream of it, all is well, and it must not
    /// expire.
    Kept {
        session: No,
    },
    Delete {
        session: No,
    },
    Deleted {
        session: No,
        done: Written<bool>,
    },
    /// An update that began at `begun`, from revision `from`, which counts the
    /// session's counter up by one.
    Updated {
        session: No,
        begun: u64,
        from: u64,
        done: Written<u64>,
    },
    /// The counter and the revision that somebody read.
    Counted {
        session: No,
        revision: u64,
        count: u64,
    },

    /// A call's stream, or (without an owner) the standalone one.
    Opened {
        stream: No,
        session: No,
        owner: Option<No>,
    },
    Append {
        stream: No,
        event: No,
        terminal: bool,
        bytes: usize,
    },
    Appended {
        stream: No,
        event: No,
        done: Written<Position>,
    },
    /// A finish without an event, or the abandonment of the stream.
    Finish {
        stream: No,
        abandoned: bool,
    },
    Finished {
        stream: No,
        done: Written<()>,
    },
    Revoked {
        stream: No,
        why: Revocation,
    },
    Cancel {
        stream: No,
    },
    CancelDone {
        stream: No,
        done: Written<Cancelled>,
    },

    /// A reader begins or goes on after `after` (`None`: wherever the former
    /// holder of the standalone stream let go).
    Read {
        reader: No,
        stream: No,
        instance: No,
        after: Option<Position>,
    },
    /// This reader is one of those that share a standalone stream, and come back
    /// each with what it had last. A ghost is the server's end of a connection
    /// that its client has lost.
    Listens {
        reader: No,
        stream: No,
        ghost: bool,
    },
    /// It holds the stream from here on.
    Begins {
        reader: No,
        after: Position,
        hold: u64,
    },
    Got {
        reader: No,
        at: Position,
        event: No,
    },
    /// A payload that is nobody's.
    Garbled {
        reader: No,
        at: Position,
    },
    Unstored {
        reader: No,
        event: No,
    },
    Gap {
        reader: No,
    },
    /// The tail said why it ended.
    Ended {
        reader: No,
        why: EndReason,
    },
    /// The reader let go.
    Cut {
        reader: No,
    },
    /// It waited long in all quiet, and nothing more came.
    Quiet {
        reader: No,
    },
    /// `tail` itself failed.
    NoTail {
        reader: No,
        kind: ErrorKind,
    },

    /// A client request: `wait` names this creation of it.
    Ask {
        request: No,
        wait: No,
        session: No,
        instance: No,
    },
    Asked {
        wait: No,
        done: Written<()>,
    },
    Outcome {
        wait: No,
        kind: OutcomeKind,
        answer: Option<No>,
    },
    /// Its wait was dropped.
    Withdrawn {
        wait: No,
    },
    Answer {
        request: No,
        answer: No,
    },
    Answered {
        answer: No,
        done: Written<Delivery>,
    },
    Revoke {
        request: No,
    },
    RevokeDone {
        request: No,
        done: Written<Option<OutcomeKind>>,
    },

    /// From here on nothing goes wrong any more.
    Calm,
    /// Those that share the stream have had the time to get all of it.
    Settled {
        stream: No,
    },
    /// Something that must end did not.
    Hung(String),
    /// Something that must not be there when all is quiet.
    Leftover(String),
}

/// One entry: milliseconds of virtual time, and what happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) at: u64,
    pub(crate) what: What,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>8} {:?}", self.at, self.what)
    }
}

/// The history of a run. Clones are the same.
#[derive(Clone)]
pub(crate) struct History {
    origin: Instant,
    entries: Arc<Mutex<Vec<Entry>>>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self {
            origin: Instant::now(),
            entries: Arc::default(),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn push(&self, what: What) {
        let at = self.now();
        self.entries.lock().push(Entry { at, what });
    }

    pub(crate) fn fault(&self, text: impl Into<String>) {
        self.push(What::Fault(text.into()));
    }

    pub(crate) fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut self.entries.lock())
    }
}
