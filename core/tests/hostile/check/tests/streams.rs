//! Streams.

use mcp_adapter_core::{EndReason, ErrorKind, Position, Revocation};

use super::{Past, breaks, sound};
use crate::history::{What, Written};

#[test]
fn a_call_that_is_read_to_its_end_is_sound() {
    sound(|past| {
        past.stored(2, 1);
        past.got(2, 1);
        past.stored(90, 2);
        past.got(90, 2);
        past.ended(EndReason::Finished);
    });
}

#[test]
fn a_missing_event_needs_a_gap() {
    let run = |past: &mut Past, gap: bool| {
        past.stored(2, 1);
        past.append(3, Written::Unknown(ErrorKind::Timeout));
        past.stored(4, 2);
        past.stored(90, 4);
        past.got(2, 1);
        if gap {
            past.push(What::Gap { reader: 20 });
        }
        past.got(90, 4);
        past.ended(EndReason::Finished);
    };
    sound(|past| run(past, true));
    breaks("no silent hole", |past| run(past, false));
    breaks("no silent hole", |past| {
        past.stored(2, 1);
        past.push(What::Finish {
            stream: 10,
            abandoned: false,
        });
        past.ended(EndReason::Finished);
    });
}

#[test]
fn what_the_backend_lost_needs_a_gap_all_the_same() {
    let run = |past: &mut Past, gap: bool| {
        past.stored(2, 1);
        let before = past.now;
        past.stored(3, 2);
        past.lost(before);
        past.push(What::Append {
            stream: 10,
            event: 90,
            terminal: true,
            bytes: 10,
        });
        let done = Written::Done(Position::new(2, 1));
        past.push(What::Appended {
            stream: 10,
            event: 90,
            done,
        });
        past.got(2, 1);
        if gap {
            past.push(What::Gap { reader: 20 });
        }
        past.push(What::Got {
            reader: 20,
            at: Position::new(2, 1),
            event: 90,
        });
        past.ended(EndReason::Finished);
    };
    sound(|past| run(past, true));
    breaks("no silent hole", |past| run(past, false));
}

#[test]
fn a_gap_where_nothing_is_missing_is_wrong() {
    breaks("no gap where nothing is missing", |past| {
        past.stored(2, 1);
        past.stored(3, 2);
        past.got(2, 1);
        past.push(What::Gap { reader: 20 });
        past.got(3, 2);
    });
}

#[test]
fn an_event_comes_once_in_its_place_and_in_order() {
    breaks("no event twice", |past| {
        past.stored(2, 1);
        past.got(2, 1);
        past.got(2, 2);
    });
    breaks("one place for one event", |past| {
        past.stored(2, 1);
        past.got(3, 1);
    });
    breaks("events in order", |past| {
        past.stored(2, 1);
        past.stored(3, 2);
        past.got(3, 2);
        past.got(2, 1);
    });
    breaks("a stream's own events", |past| past.got(77, 1));
}

#[test]
fn a_refused_event_appears_only_at_its_writers_own_socket() {
    let run = |past: &mut Past, instance: u32| {
        let after = Some(Position::START);
        past.push(What::Read {
            reader: 20,
            stream: 10,
            instance,
            after,
        });
        past.append(2, Written::Refused(ErrorKind::Fenced));
        past.got(2, 1);
    };
    sound(|past| run(past, 0));
    breaks("nothing that was refused", |past| run(past, 1));
}

#[test]
fn nothing_comes_after_the_end() {
    breaks("nothing after the end", |past| {
        past.stored(90, 1);
        past.got(90, 1);
        past.stored(2, 2);
        past.got(2, 2);
    });
    // A thawed owner, told that its event is stored.
    breaks("nothing after the end", |past| {
        past.now += 15_000;
        past.ended(EndReason::OwnerLost);
        past.stored(2, 1);
    });
    sound(|past| {
        past.now += 15_000;
        past.ended(EndReason::OwnerLost);
        past.append(2, Written::Refused(ErrorKind::Fenced));
        past.push(What::Revoked {
            stream: 10,
            why: Revocation::Fenced,
        });
    });
}

#[test]
fn a_living_owner_is_not_ended() {
    breaks("no living owner is ended", |past| {
        past.live(20_000);
        past.ended(EndReason::OwnerLost);
    });
    breaks("no living owner is ended", |past| {
        past.live(20_000);
        past.push(What::Revoked {
            stream: 10,
            why: Revocation::Fenced,
        });
    });
    // All clocks jumped: nobody stood still.
    breaks("no living owner is ended", |past| {
        past.push(What::Jumped { millis: 20_000 });
        past.now += 20_000;
        past.ended(EndReason::OwnerLost);
    });
    sound(|past| {
        past.live(20_000);
        past.push(What::Finish {
            stream: 10,
            abandoned: true,
        });
        past.ended(EndReason::OwnerLost);
    });
    sound(|past| {
        past.push(What::Died { instance: 0 });
        past.ended(EndReason::OwnerLost);
    });
}

#[test]
fn a_stream_ends_in_one_way_and_not_too_soon() {
    breaks("one end", |past| {
        past.stored(90, 1);
        past.now += 15_000;
        past.ended(EndReason::OwnerLost);
    });
    breaks("finished by its writer", |past| {
        past.ended(EndReason::Finished)
    });
    breaks("no stream is gone too soon", |past| {
        past.live(4000);
        past.ended(EndReason::StreamGone);
    });
    sound(|past| {
        past.stored(90, 1);
        past.live(70_000);
        past.ended(EndReason::StreamGone);
    });
    breaks("cancelled by somebody", |past| {
        past.push(What::Revoked {
            stream: 10,
            why: Revocation::Cancelled,
        });
    });
}

#[test]
fn a_result_without_an_id_is_the_result_and_comes_alone() {
    breaks("only a result comes unstored", |past| {
        past.append(2, Written::Unknown(ErrorKind::Timeout));
        past.push(What::Unstored {
            reader: 20,
            event: 2,
        });
    });
    breaks("no event twice", |past| {
        past.stored(90, 1);
        past.got(90, 1);
        past.push(What::Unstored {
            reader: 20,
            event: 90,
        });
    });
}
