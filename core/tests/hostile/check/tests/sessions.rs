//! Client requests and sessions.

use mcp_adapter_core::{Delivery, ErrorKind, OutcomeKind};

use super::{Past, breaks, sound};
use crate::history::{What, Written};

#[test]
fn one_answer_is_delivered_and_is_the_outcome() {
    sound(|past| {
        past.asked();
        past.answered(32, Delivery::Delivered);
        past.answered(33, Delivery::AlreadyEnded(OutcomeKind::Answered));
        past.outcome(OutcomeKind::Answered, Some(32));
    });
    breaks("one answer is delivered", |past| {
        past.asked();
        past.answered(32, Delivery::Delivered);
        past.answered(33, Delivery::Delivered);
    });
    breaks("the delivered answer is the outcome", |past| {
        past.asked();
        past.answered(32, Delivery::Delivered);
        past.outcome(OutcomeKind::TimedOut, None);
    });
    breaks("an outcome has its cause", |past| {
        past.asked();
        past.answered(32, Delivery::Delivered);
        past.answered(33, Delivery::AlreadyEnded(OutcomeKind::Answered));
        past.outcome(OutcomeKind::Answered, Some(33));
    });
    breaks("all are told the same outcome", |past| {
        past.asked();
        past.answered(32, Delivery::AlreadyEnded(OutcomeKind::Cancelled));
        past.outcome(OutcomeKind::TimedOut, None);
    });
    breaks("one outcome", |past| {
        past.asked();
        past.outcome(OutcomeKind::TimedOut, None);
        past.outcome(OutcomeKind::TimedOut, None);
    });
    // What the backend lost is excused, and nothing else.
    sound(|past| {
        past.asked();
        past.answered(32, Delivery::Delivered);
        past.lost(0);
        past.outcome(OutcomeKind::Lost, None);
    });
    breaks("an outcome has its cause", |past| {
        past.asked();
        past.answered(32, Delivery::Delivered);
        past.outcome(OutcomeKind::Lost, None);
    });
}

#[test]
fn a_request_has_no_outcome_out_of_nothing() {
    for kind in [
        OutcomeKind::OwnerLost,
        OutcomeKind::Replaced,
        OutcomeKind::Cancelled,
    ] {
        breaks("an outcome has its cause", |past| {
            past.asked();
            past.live(20_000);
            past.outcome(kind, None);
        });
    }
}

#[test]
fn a_session_is_there_until_it_is_deleted_or_idle_and_never_after() {
    let deleted = |past: &mut Past| {
        past.push(What::Delete { session: 1 });
        past.push(What::Deleted {
            session: 1,
            done: Written::Done(true),
        });
        past.now += 1;
    };
    breaks("a session in use is there", |past| past.found(false));
    sound(|past| {
        deleted(past);
        past.found(false);
    });
    breaks("a deleted session never comes back", |past| {
        deleted(past);
        past.found(true);
    });
    // An older copy of the data has it again.
    sound(|past| {
        deleted(past);
        past.lost(0);
        past.found(true);
    });
    let idle = 40 * 60 * 1000;
    sound(|past| {
        past.push(What::Cut { reader: 20 });
        past.now += idle;
        past.found(false);
    });
    breaks("an idle session expires", |past| {
        past.push(What::Cut { reader: 20 });
        past.now += idle;
        past.found(true);
    });
    breaks("a session in use is there", |past| {
        past.push(What::Kept { session: 1 });
        past.now += idle;
        past.found(false);
    });
}

#[test]
fn of_two_authors_or_creators_one_wins() {
    breaks("one author wins", |past| {
        past.counts_up(1, Written::Done(2));
        past.counts_up(1, Written::Done(2));
    });
    breaks("one author wins", |past| {
        past.counts_up(1, Written::Done(3));
    });
    sound(|past| {
        past.counts_up(1, Written::Done(2));
        past.counts_up(1, Written::Refused(ErrorKind::Conflict));
        past.counts_up(2, Written::Unknown(ErrorKind::Timeout));
        past.counted(3, 2);
    });
    breaks("each winner counts", |past| {
        past.counts_up(1, Written::Done(2));
        past.counts_up(2, Written::Done(3));
        past.counted(3, 1);
    });
    // The winner's repeat was answered as another's.
    breaks("each winner is told", |past| {
        past.counts_up(1, Written::Refused(ErrorKind::Conflict));
        past.counted(2, 1);
    });
    // Eight others have won since.
    sound(|past| {
        let begun = past.now;
        for from in 2..10 {
            past.counts_up(from, Written::Done(from + 1));
        }
        past.push(What::Updated {
            session: 1,
            begun,
            from: 1,
            done: Written::Refused(ErrorKind::Conflict),
        });
    });
    breaks("created once", |past| {
        past.push(What::Created {
            session: 1,
            done: Written::Done(()),
        });
    });
}

#[test]
fn what_hangs_or_is_left_over_is_named() {
    breaks("everything ends", |past| {
        past.push(What::Hung("a wait".into()))
    });
    breaks("nothing is left open", |past| {
        past.push(What::Leftover("a stream".into()))
    });
}
