//! The one list of cases.

use std::fmt::{self, Write as _};

use futures::future::BoxFuture;

use crate::{
    cases,
    clause::Clause,
    fleet::Fleet,
    storage::{self, Store},
    wait::Verdict,
};

/// What a backend may declare that it does not have, and why it may. This list
/// is closed: all else is the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Absent {
    /// [`Capabilities::durable`](mcp_adapter_core::Capabilities::durable) is
    /// `false`: the store is the memory of its instances, and who chooses it
    /// knows that it ends with them.
    Durable,
    /// [`Capabilities::push`](mcp_adapter_core::Capabilities::push) is `false`:
    /// the store cannot call its instances. They poll, and everything arrives
    /// within `catch_up` all the same, which no backend may declare away.
    Push,
    /// There is no connection that could be cut: the store is a file of the same
    /// host, or lives in the same process. Declared by
    /// [`Suite::without`](crate::Suite::without), or by
    /// [`Capabilities::shared`](mcp_adapter_core::Capabilities::shared) being
    /// `false`.
    Link,
    /// The store cannot be closed and opened again by the suite, since it is not the
    /// suite's: a server that somebody else runs. Declared, with the reason, by
    /// [`Restart::none`](crate::Restart::none).
    Restart,
}

impl Absent {
    /// All that may be declared away.
    pub const ALL: &'static [Self] = &[Self::Durable, Self::Push, Self::Link, Self::Restart];

    /// As ignored cases show it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Durable => "not durable",
            Self::Push => "no push",
            Self::Link => "no link",
            Self::Restart => "not restarted",
        }
    }
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A case of the suite.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Case {
    /// Its name, `area::case`.
    pub name: &'static str,
    /// The clauses that it holds the backend to.
    pub clauses: &'static [Clause],
    /// What a backend may declare that it does not have, so that the case is
    /// ignored.
    pub needs: Option<Absent>,
    /// The steps of the seam that it is about.
    pub steps: &'static [&'static str],
    pub(crate) run: Run,
}

impl Case {
    /// The rule of the seam that it is about, as [`mcp_adapter_core::storage`] names
    /// it.
    #[must_use]
    pub fn rule(&self) -> Option<&'static str> {
        let (area, _) = self.name.split_once("::")?;
        let Run::Storage(_) = self.run else {
            return None;
        };
        Some(match area {
            "race" => "A step is atomic",
            "twice" | "unknown" => "Twice is once",
            "existence" | "life" => "Existence is decided in the step",
            "time" => "Time is the backend's",
            "slide" => "Use slides expiry",
            "batch" => "A batch has one answer per entry",
            "repeat" => "A repeat is known by its own name",
            "number" => "Numbers stay below 2^53",
            "doorbell" => "A knock is a hint",
            _ => return None,
        })
    }

    /// Whether it closes the store, and with it those of other cases.
    pub(crate) fn restarts(&self) -> bool {
        self.needs == Some(Absent::Restart)
    }

    /// What is broken where it fails, and what to read about it.
    #[must_use]
    pub fn advice(&self) -> String {
        let mut text = String::new();
        for clause in self.clauses {
            let _ = writeln!(text, "it holds {clause}: {}", clause.text());
        }
        text.push_str("read ");
        if self.steps.is_empty() {
            text.push_str("the contract in `mcp_adapter_core`");
            if matches!(self.run, Run::Contract(_)) {
                text.push_str(", after cases of `::storage::` that fail as well");
            }
        }
        for (n, step) in self.steps.iter().enumerate() {
            let separator = if n > 0 { ", " } else { "" };
            let _ = write!(text, "{separator}`Storage::{step}`");
        }
        if let Some(rule) = self.rule() {
            let _ = write!(
                text,
                ", and the rule \"{rule}\" in `mcp_adapter_core::storage`"
            );
        }
        text
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Run {
    Contract(fn(Fleet) -> BoxFuture<'static, Verdict>),
    Storage(fn(Store) -> BoxFuture<'static, Verdict>),
}

macro_rules! cases {
    ($list:ident $doc:literal $suite:ident $root:ident:
        $($area:ident {
            $($case:ident [$($clause:ident)+] $(($($step:ident)+))? $(unless $absent:ident)?;)+
        })+
    ) => {
        #[doc = $doc]
        pub const $list: &[Case] = &[$($(Case {
            name: concat!(stringify!($area), "::", stringify!($case)),
            clauses: &[$(Clause::$clause,)+],
            needs: cases!(@needs $($absent)?),
            steps: &[$($(stringify!($step)),+)?],
            run: Run::$suite(|store| Box::pin($root::$area::$case(store))),
        },)+)+];
    };
    (@needs) => { None };
    (@needs $absent:ident) => { Some(Absent::$absent) };
}

cases! { CASES "The cases over the traits of the contract." Contract cases:
    session {
        a_live_id_is_created_once [S1];
        of_concurrent_creates_one_wins [S1];
        ids_that_look_alike_are_different_sessions [S1 E3];
        the_record_round_trips_exactly [S2];
        an_update_is_a_compare_and_set [S2];
        increments_at_two_instances_are_all_counted [S2];
        a_state_over_its_limit_changes_nothing [S2];
        the_principal_cannot_change [S2];
        only_its_principal_finds_a_session [S4 E3];
        delete_takes_everything_everywhere [S4];
        delete_ends_what_runs_and_waits [S4 E2 C2];
        no_write_brings_a_session_back [S4 E6];
        appends_that_race_a_delete_leave_nothing [S4 E6];
        stats_count_what_is_stored [S6];
    }
    expiry {
        an_idle_session_is_gone_at_its_deadline [S3 E6];
        requests_and_appends_slide_it [S3];
        a_running_call_and_a_held_stream_slide_it [S3];
        an_absolute_lifetime_does_not_slide [S3];
        an_expired_id_is_free_and_nothing_is_left_of_it [S1 S3];
        what_has_expired_is_swept_by_itself [S5];
    }
    event {
        all_readers_see_one_order_and_each_event_once [E1 E2];
        many_writers_share_the_standalone_stream [E1];
        places_are_fixed_by_the_order_of_calls [E1];
        replay_is_strictly_after_and_in_pages [E2];
        a_tail_is_live_across_instances_without_a_seam [E2];
        a_tail_says_why_it_ends [E2];
        a_cursor_past_the_top_is_valid [E2];
        ids_encode_their_stream_and_fit [E3];
        forged_and_foreign_ids_reveal_nothing [E3 E5];
        no_append_without_a_session [E6];
        bytes_come_back_as_they_went_in [E7];
        the_terminal_event_and_the_finish_are_one_write [E8];
        nothing_follows_the_finish [E8];
    }
    limit {
        the_oldest_events_go_first [E4 E5];
        bytes_of_a_stream_are_bounded [E4];
        an_oversized_event_changes_nothing [E4];
        open_streams_are_bounded_and_finished_ones_do_not_count [E4 F4];
        bytes_of_a_session_are_bounded [E4];
        bytes_of_a_principal_are_bounded [E4];
        a_finished_stream_stays_for_its_time [E4 E5];
        what_is_evicted_under_a_tail_is_a_gap [E5];
    }
    holder {
        a_resume_takes_the_stream_over_wherever_it_is_held [E9 E2];
        a_further_get_is_silent_until_its_turn [E9];
        a_get_is_told_where_it_begins [E9];
        waiting_gets_are_bounded [E9 F4];
        the_place_of_a_dead_holder_is_taken [E9 F3];
        two_listeners_that_come_back_come_to_rest [E9 E1];
    }
    request {
        an_answer_at_any_instance_arrives [C1 C5];
        it_can_be_answered_as_soon_as_create_returns [C1];
        it_needs_a_session [C1 S4];
        of_many_answers_one_is_delivered [C2];
        every_outcome_is_told_to_both_sides [C2];
        an_outcome_is_forgotten_after_its_time [C2];
        another_session_knows_nothing_of_it [C2 E3];
        a_deadline_and_an_answer_never_both_win [C2 C4];
        numbers_and_strings_differ [C3];
        it_ends_at_its_deadline [C4];
        there_always_is_a_deadline [C4];
        the_deadline_of_a_dead_owners_request_holds [C4];
        the_end_of_a_call_withdraws_its_requests [C4];
        an_answer_arrives_within_the_catch_up_interval [C5];
        large_answers_cross [C6];
        an_answer_over_its_limit_leaves_it_pending [C6 F4];
        the_same_key_replaces [C7];
        a_repeat_with_the_same_token_does_not [C7];
        pending_requests_are_bounded [F4];
    }
    signal {
        every_listener_hears_in_order [SG];
        only_its_channel_is_heard [SG];
        sizes_are_bounded [SG];
        a_cancel_reaches_the_call_wherever_it_runs [SG];
        a_cancel_hits_one_call_or_none [SG];
    }
    death {
        a_dead_owners_call_ends_for_its_reader [F3 E2];
        a_dead_owners_request_ends_for_its_answerer [F3 C2];
        a_dead_owners_leftovers_end_although_nobody_looks [F3 S5];
        an_owner_that_dies_young_is_dead_all_the_same [F3];
        a_thawed_owner_is_fenced [F3 E1];
        a_thawed_owners_tail_that_was_taken_over_is_superseded [E9 F3];
        a_cancelled_call_whose_owner_died_ends_as_cancelled [F3 SG];
        a_quiet_owner_is_not_dead [F3];
        a_frozen_observer_ends_nobody [F3];
        a_closed_instance_gives_its_calls_up_at_once [F3 F1];
    }
    load {
        a_client_that_does_not_read_holds_up_no_writer [F4];
        a_full_queue_is_a_typed_error_and_loses_nothing [F4] unless Link;
    }
    outage {
        a_closed_instance_answers_with_a_typed_error [F1];
        calls_end_in_a_typed_error_within_their_deadline [F1] unless Link;
        tails_and_waits_ride_it_out [F1 F2] unless Link;
        a_result_goes_to_its_socket_without_an_id [F1] unless Link;
        a_lost_reply_stores_nothing_twice [E1 F1] unless Link;
        a_half_open_link_is_noticed [F2] unless Link;
        it_ends_no_living_owners_call [F3] unless Link;
        what_was_acknowledged_survives_all_instances [F1] unless Durable;
        what_is_written_elsewhere_is_pushed [F2] unless Push;
        what_is_written_elsewhere_is_seen_within_the_catch_up_interval [F2];
    }
    durable {
        what_was_acknowledged_survives_a_restart [F1] unless Restart;
        what_was_acknowledged_survives_a_crash [F1] unless Restart;
    }
    start {
        ten_instances_start_at_once [F5];
        fields_of_other_versions_survive [F5 S2];
    }
}

cases! { STORAGE_CASES "The cases over the storage seam." Storage storage:
    twice {
        create [S1] (create);
        enter [E1] (enter);
        update [S2] (update);
        delete [S4] (delete);
        append_by_the_owner [E1] (append);
        append_of_a_batch [E1] (append);
        append_to_the_standalone_stream [E1] (append);
        finish [E8] (append);
        hold [E9] (hold);
        put_request [C7 F4] (put_requests);
        settle [C2] (settle);
        mark_cancel [SG] (mark_cancel);
        heartbeat [F3] (heartbeat);
        claim [F3] (claim);
        shrink_and_sweep [E4 S5] (shrink sweep);
    }
    unknown {
        every_write_can_be_read_back [F1 C1 C5];
        a_lost_reply_is_made_up_for_by_the_engine [F1 E1 C2];
        lost_knocks_are_made_up_for_by_the_engine [F2 C5];
    }
    existence {
        every_write_to_a_missing_session_changes_nothing [S4 E6];
        every_write_to_an_expired_session_changes_nothing [S3 E6];
        an_append_creates_no_stream_of_a_call [E6] (append hold);
        another_principal_enters_and_deletes_nothing [E3] (enter update delete);
        a_stream_of_another_session_is_not_there [E3] (read hold append);
    }
    life {
        a_deleted_id_begins_anew [S4 S1] (delete create);
        an_expired_id_begins_anew [S3 S1] (create);
    }
    slide {
        what_is_refused_or_looks_slides_nothing [S3];
        what_is_used_slides [S3];
    }
    payload {
        bytes_come_back_as_they_went_in [E7 C6 S2] (append settle update);
        numbers_and_strings_differ [C3] (put_requests settle requests);
        the_event_and_the_finish_are_seen_at_once [E8] (append read);
    }
    batch {
        a_hole_within_a_batch_stays_a_hole [E1 E5] (append read);
        an_append_sees_those_before_it [E1 E8] (append);
        a_batch_is_trimmed_as_it_is_stored [E4 E1] (append);
        requests_are_put_in_their_order [F4 C2] (put_requests settle);
    }
    repeat {
        an_append_tells_that_it_is_one [E1] (append);
        of_an_evicted_tag_it_names_no_event_that_is_kept [E1] (append);
        with_a_finish_it_finishes_nothing [E8 E1] (append);
        an_update_is_known_by_its_own_name [S2] (update);
        of_a_replaced_waiter_it_replaces_nobody [C7] (put_requests);
        of_an_answer_it_ends_no_later_request [C2] (settle);
        of_a_create_it_brings_nothing_back [S4] (create);
    }
    again {
        a_call_is_opened_anew_under_its_name [E4] (enter append);
        the_standalone_stream_is_made_for_its_holder [E9] (hold);
        the_standalone_stream_issues_no_id_twice [E1 E5] (append);
    }
    holds {
        the_last_ones_are_remembered [E9] (hold);
        who_takes_its_own_goes_on_with_it [E9] (hold);
        one_can_be_continued_until_another_begins [E9] (hold);
        a_release_lets_go_no_further_than_the_top [E9] (hold);
    }
    number {
        tags_are_told_apart_up_to_the_highest [E1] (append);
        places_are_told_apart_up_to_the_highest [E1] (append read);
        a_heartbeat_counts_from_nought_to_the_highest [F3] (heartbeat claim);
    }
    rule {
        a_finish_tells_of_events_that_never_came [E5 E8] (append);
        a_dead_owners_finish_is_fenced [F3 E1] (append claim);
        a_claim_opens_epoch_two_at_least [F3] (claim);
        a_repeated_settle_leaves_the_next_request_alone [C2 C7] (settle);
        a_hold_is_taken_from_the_number_that_was_named [E9] (hold);
        an_append_tells_who_holds_the_stream [E2] (append);
        a_shared_append_to_a_call_is_fenced [E1] (append);
        what_has_expired_is_not_counted [S6 S3] (stats);
    }
    limit {
        an_append_trims_the_oldest [E4 E5] (append);
        a_page_begins_strictly_after_and_ends_in_time [E2] (read);
        stats_and_usage_count_what_is_there [S6] (stats shrink);
        what_is_refused_is_not_counted [E4 S6] (append shrink);
        a_shrink_takes_the_oldest_across_streams [E4] (shrink);
    }
    race {
        requests_that_are_put_at_once [F4 C1 E1] (put_requests append);
        requests_that_are_put_under_one_id [C7] (put_requests);
        answers_that_race [C2 E1] (settle append);
        cancels_that_race [SG E1] (mark_cancel append);
        updates_that_race [S2 E1] (update append);
        holds_that_race [E9 E1] (hold append);
        streams_that_are_opened_at_once [E4 E1] (enter append);
        control_steps_that_race_each_other [S2 SG E9 E1]
            (update mark_cancel hold enter put_requests append);
        a_claim_that_races_appends [F3 E1] (claim append);
        sweeps_that_race_appends [F3 S5 E1] (sweep append);
        sweeps_of_finished_streams_that_race_appends [S5 E4 S6] (sweep append);
        sweeps_that_race_a_session_that_is_used [S5 S3] (sweep append);
        shrinks_that_race_appends [E4 S6 E1] (shrink append);
        deletes_that_race_everything [S4 E6] (delete append);
    }
    time {
        a_session_expires_by_the_backends_clock [S3] (create read);
        a_request_ends_by_the_backends_clock [C4] (put_requests settle requests);
        a_finished_stream_goes_by_the_backends_clock [E4] (append read);
        sweeping_is_bounded_and_safe_at_many [S5] (sweep);
        a_sweep_counts_what_its_time_is_over_of [S5] (sweep);
    }
    death {
        a_claim_needs_a_counter_that_stands_still [F3] (claim settle sweep);
        a_sweep_ends_what_belongs_to_the_dead [F3] (sweep);
    }
    durable {
        what_was_acknowledged_is_there_when_the_store_is_opened_again [F1 S4]
            (create append put_requests) unless Restart;
        repeats_are_known_when_the_store_is_opened_again [F1 E1 C2]
            (append settle create) unless Restart;
    }
    format {
        a_record_of_a_newer_version_is_not_absent [F5] (create enter);
        the_generation_is_told_and_stays [E1 F5] (attach);
        ten_handles_open_at_once [F5] (attach);
    }
    doorbell {
        knocks_go_to_their_door [F2 SG] (knock doorbell);
        the_step_that_writes_wakes [E2 C5 F2] (doorbell);
        a_doorbell_that_lags_says_so [F2] (doorbell);
    }
}
