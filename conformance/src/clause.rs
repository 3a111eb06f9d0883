//! The clauses of the contract.

use std::fmt;

macro_rules! clauses {
    ($($name:ident $text:literal)+) => {
        /// A clause of the contract, as the documentation of
        /// [`mcp_adapter_core`] names it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Clause { $(#[doc = $text] $name,)+ }

        impl Clause {
            /// All clauses, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// What it promises, in short.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// Its name, such as `S1`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }
        }
    };
}

clauses! {
    S1 "a live id is created once, and every valid id works"
    S2 "metadata round-trips exactly; updates are compare-and-set"
    S3 "idle expiry slides with use, an absolute lifetime does not; gone at the deadline"
    S4 "delete takes everything in one step, everywhere, for good"
    S5 "sweeping is automatic and bounded"
    S6 "stats count what is stored"
    E1 "one writer per call, any number on the standalone stream; one order, nothing lost, nothing twice"
    E2 "strictly after the id, live, no gap or duplicate at the seam; an end says why"
    E3 "foreign, forged and malformed ids reveal nothing"
    E4 "limits of events, bytes and streams; finished streams stay for a set time"
    E5 "what is gone shows as a gap, never as a silent hole"
    E6 "no append to a session that is not there"
    E7 "payload bytes come back as they went in"
    E8 "the terminal event and the finish are one write"
    E9 "one holder per stream; a resume takes over, a further GET waits its turn"
    C1 "a client request is durable and listened for before create returns"
    C2 "exactly one outcome, and exactly one answer is delivered"
    C3 "the number 1 and the string \"1\" differ"
    C4 "there always is a deadline, owner alive or dead; the end of a call withdraws its requests"
    C5 "an answer arrives within the catch-up interval, announced or not"
    C6 "answers of 1 MiB cross"
    C7 "the same key again replaces, a repeat with the same token does not"
    SG "signals: ordered per sender, to every listener; a cancel is durable and hits one call"
    F1 "a typed error within the deadline; outages are ridden out"
    F2 "a dead or half-open link is noticed, and made up for by reading"
    F3 "death is a counter that stood still; the dead are ended, the living never"
    F4 "queues are bounded; a handler never waits for a client's socket"
    F5 "formats are versioned, migrations run at many starts at once"
}

impl Clause {
    /// Whether a backend may not declare a case of this clause away: without
    /// sessions that are one, events in one order and requests with one
    /// outcome there is nothing to share.
    #[must_use]
    pub const fn is_core(self) -> bool {
        use Clause::{C1, C2, C3, C4, C5, C6, C7, E1, E2, E3, S1, S2, S3, S4};
        matches!(
            self,
            C1 | C2 | C3 | C4 | C5 | C6 | C7 | E1 | E2 | E3 | S1 | S2 | S3 | S4
        )
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
