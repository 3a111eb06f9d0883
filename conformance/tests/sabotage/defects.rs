//! One defect per clause: a clause without one does not compile. And one per rule
//! of the seam that is easily missed, in [`MISSED`].

use mcp_adapter_conformance::Clause;

pub(crate) use crate::rules::{MISSED, Missed, Rule, Torn};

/// What a backend does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defect {
    /// It breaks a clause.
    Of(Clause),
    /// It misses a rule of the seam.
    Miss(Rule),
}

/// What is wrong, the case that finds it, and the case of the storage suite that
/// does, unless it takes a whole adapter to see it.
pub(crate) fn defect(clause: Clause) -> (&'static str, &'static str, Option<&'static str>) {
    match clause {
        Clause::S1 => (
            "`create` says yes although a live session has the id",
            "session::of_concurrent_creates_one_wins",
            Some("twice::create"),
        ),
        Clause::S2 => (
            "`update` is last-writer-wins: the revision is not compared",
            "session::an_update_is_a_compare_and_set",
            Some("twice::update"),
        ),
        Clause::S3 => (
            "the idle deadline is stored in other units, and is far too late",
            "expiry::an_idle_session_is_gone_at_its_deadline",
            Some("existence::every_write_to_an_expired_session_changes_nothing"),
        ),
        Clause::S4 => (
            "an append to a deleted session creates it again",
            "session::no_write_brings_a_session_back",
            Some("existence::every_write_to_a_missing_session_changes_nothing"),
        ),
        Clause::S5 => (
            "`sweep` removes nothing and ends nothing",
            "death::a_dead_owners_leftovers_end_although_nobody_looks",
            Some("time::sweeping_is_bounded_and_safe_at_many"),
        ),
        Clause::S6 => (
            "bytes that are gone are counted for ever",
            "session::stats_count_what_is_stored",
            Some("limit::stats_and_usage_count_what_is_there"),
        ),
        Clause::E1 => (
            "a repeated append to the standalone stream is stored twice",
            "outage::a_lost_reply_stores_nothing_twice",
            Some("twice::append_to_the_standalone_stream"),
        ),
        Clause::E2 => (
            "reads begin one event too late",
            "event::replay_is_strictly_after_and_in_pages",
            Some("limit::a_page_begins_strictly_after_and_ends_in_time"),
        ),
        Clause::E3 => (
            "streams are found by their name alone, whatever the session",
            "event::forged_and_foreign_ids_reveal_nothing",
            Some("existence::a_stream_of_another_session_is_not_there"),
        ),
        Clause::E4 => (
            "nothing is ever trimmed",
            "limit::the_oldest_events_go_first",
            Some("limit::an_append_trims_the_oldest"),
        ),
        Clause::E5 => (
            "what is left after a trim is numbered anew, so that no hole shows",
            "limit::what_is_evicted_under_a_tail_is_a_gap",
            Some("limit::an_append_trims_the_oldest"),
        ),
        Clause::E6 => (
            "an append to a missing session is acknowledged",
            "event::no_append_without_a_session",
            Some("existence::every_write_to_a_missing_session_changes_nothing"),
        ),
        Clause::E7 => (
            "payloads go through a text column",
            "event::bytes_come_back_as_they_went_in",
            Some("payload::bytes_come_back_as_they_went_in"),
        ),
        Clause::E8 => (
            "the terminal event and the finish are two writes",
            "event::the_terminal_event_and_the_finish_are_one_write",
            Some("payload::the_event_and_the_finish_are_seen_at_once"),
        ),
        Clause::E9 => (
            "a take-over is answered, but not stored",
            "holder::a_resume_takes_the_stream_over_wherever_it_is_held",
            Some("twice::hold"),
        ),
        Clause::C1 => (
            "a request is acknowledged before it is stored",
            "request::it_can_be_answered_as_soon_as_create_returns",
            Some("unknown::every_write_can_be_read_back"),
        ),
        Clause::C2 => (
            "every answer is told that it won",
            "request::of_many_answers_one_is_delivered",
            Some("twice::settle"),
        ),
        Clause::C3 => (
            "ids are stored as text, so that 1 and \"1\" are one",
            "request::numbers_and_strings_differ",
            Some("payload::numbers_and_strings_differ"),
        ),
        Clause::C4 => (
            "deadlines are left to the waiter's own timer",
            "request::the_deadline_of_a_dead_owners_request_holds",
            Some("time::a_request_ends_by_the_backends_clock"),
        ),
        Clause::C5 => (
            "answers are read from a replica that lags behind",
            "request::an_answer_arrives_within_the_catch_up_interval",
            Some("unknown::every_write_can_be_read_back"),
        ),
        Clause::C6 => (
            "answers travel in a notification, of which 8000 bytes arrive",
            "request::large_answers_cross",
            Some("payload::bytes_come_back_as_they_went_in"),
        ),
        Clause::C7 => (
            "waiter tokens are not stored: who creates again repeats",
            "request::the_same_key_replaces",
            Some("twice::put_request"),
        ),
        Clause::SG => (
            "signals reach the instance that sent them alone",
            "signal::every_listener_hears_in_order",
            Some("doorbell::knocks_go_to_their_door"),
        ),
        Clause::F1 => (
            "a refused connection is reported as the caller's mistake",
            "outage::calls_end_in_a_typed_error_within_their_deadline",
            None,
        ),
        Clause::F2 => (
            "a wake-up link that was lost once stays silent when it is opened again",
            "outage::a_half_open_link_is_noticed",
            Some("doorbell::the_step_that_writes_wakes"),
        ),
        Clause::F3 => (
            "heartbeat counters do not rise",
            "death::a_quiet_owner_is_not_dead",
            Some("twice::heartbeat"),
        ),
        Clause::F4 => (
            "the bound on pending requests is not looked at",
            "request::pending_requests_are_bounded",
            Some("twice::put_request"),
        ),
        Clause::F5 => (
            "the migration fails where another instance is at it",
            "start::ten_instances_start_at_once",
            Some("format::ten_handles_open_at_once"),
        ),
    }
}
