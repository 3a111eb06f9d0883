//! Two listeners (41 and 42) that share a standalone stream (40).

use mcp_adapter_core::Position;

use super::{Past, at, breaks, sound};
use crate::history::{What, Written};

const ONE: u32 = 41;
const OTHER: u32 = 42;

impl Past {
    fn listens(&mut self, reader: u32, ghost: bool) {
        self.push(What::Listens {
            reader,
            stream: 40,
            ghost,
        });
    }

    fn comes(&mut self, reader: u32, after: Option<Position>) {
        self.push(What::Read {
            reader,
            stream: 40,
            instance: 1,
            after,
        });
    }

    fn begins(&mut self, reader: u32, after: Position, hold: u64) {
        self.push(What::Begins {
            reader,
            after,
            hold,
        });
    }

    fn hears(&mut self, reader: u32, event: u32, seq: u64) {
        let at = at(seq);
        self.push(What::Got { reader, at, event });
    }

    /// An event for all who listen.
    fn sent(&mut self, event: u32, seq: u64) {
        let (stream, terminal, bytes) = (40, false, 10);
        self.push(What::Append {
            stream,
            event,
            terminal,
            bytes,
        });
        let done = Written::Done(at(seq));
        self.push(What::Appended {
            stream,
            event,
            done,
        });
    }

    /// Both listen, and the first one holds the stream.
    fn shared(&mut self) {
        self.push(What::Opened {
            stream: 40,
            session: 1,
            owner: None,
        });
        for reader in [ONE, OTHER] {
            self.listens(reader, false);
            self.comes(reader, None);
        }
        self.begins(ONE, Position::START, 1);
    }

    fn settled(&mut self) {
        self.now += 20_000;
        self.push(What::Settled { stream: 40 });
    }
}

#[test]
fn each_message_is_at_one_of_them() {
    let run = |past: &mut Past, twice: bool| {
        past.shared();
        past.sent(2, 1);
        past.hears(ONE, 2, 1);
        past.push(What::Cut { reader: ONE });
        let after = if twice { Position::START } else { at(1) };
        past.begins(OTHER, after, 2);
        if twice {
            past.hears(OTHER, 2, 1);
        }
        past.settled();
    };
    sound(|past| run(past, false));
    breaks("each message at one listener", |past| run(past, true));
    // What the backend has lost it cannot know of those who come back.
    sound(|past| {
        past.lost(0);
        run(past, true);
    });
}

#[test]
fn no_message_is_lost_between_them() {
    const RULE: &str = "no message is lost between listeners";
    let run = |past: &mut Past, comes: bool, gap: bool, hold: u64| {
        past.shared();
        past.sent(2, 1);
        past.push(What::Cut { reader: ONE });
        past.begins(OTHER, at(1), hold);
        if comes {
            past.comes(ONE, Some(Position::START));
            past.hears(ONE, 2, 1);
        }
        if gap {
            past.comes(ONE, Some(Position::START));
            past.push(What::Gap { reader: ONE });
        }
        past.settled();
    };
    sound(|past| run(past, true, false, 2));
    breaks(RULE, |past| {
        past.live(20_000);
        run(past, false, false, 2);
    });
    // There is a hold between the two that nobody has heard of; it counts where
    // its instance may have been dead.
    breaks(RULE, |past| {
        past.live(20_000);
        run(past, false, false, 3);
    });
    sound(|past| {
        past.push(What::Died { instance: 0 });
        run(past, false, false, 3);
    });
    breaks(RULE, |past| {
        past.push(What::Died { instance: 0 });
        run(past, false, false, 2);
    });
    // A gap has to be founded.
    breaks("no gap where nothing is missing", |past| {
        run(past, false, true, 2);
    });
    // A deleted session owes nobody anything.
    sound(|past| {
        past.push(What::Delete { session: 1 });
        run(past, false, false, 2);
    });
}

#[test]
fn what_a_ghost_reads_counts_where_its_client_never_heard_of_its_hold() {
    const GHOST: u32 = 43;
    let run = |past: &mut Past, own: bool| {
        past.live(20_000);
        past.shared();
        past.listens(GHOST, true);
        past.comes(GHOST, Some(Position::START));
        if own {
            past.begins(GHOST, Position::START, 2);
        }
        past.sent(2, 1);
        past.hears(GHOST, 2, 1);
        past.begins(OTHER, at(1), if own { 3 } else { 2 });
        past.settled();
    };
    sound(|past| run(past, true));
    breaks("no message is lost between listeners", |past| {
        run(past, false);
    });
}

#[test]
fn they_come_to_rest() {
    let run = |past: &mut Past, gets: usize| {
        past.shared();
        past.push(What::Calm);
        for _ in 0..gets {
            past.comes(ONE, Some(Position::START));
        }
        past.settled();
    };
    sound(|past| run(past, 4));
    breaks("listeners come to rest", |past| run(past, 5));
}
