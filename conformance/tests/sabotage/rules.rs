//! Rules of the seam that are easily missed.

use mcp_adapter_conformance::Clause;

/// A rule of the seam. Most are seen by the steps alone, since the engine makes
/// up for them, or since it takes a rare interleaving to do harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    FinishRaisesTop,
    ClaimFencesFinish,
    ClaimOpensEpoch,
    AttemptIsKept,
    NumberIsCompared,
    HolderIsTold,
    SharedIsForNoCall,
    NewestStays,
    ExpiredIsNotCounted,
    LagIsTold,
    SweepWakes,
    UsageIsTold,
    InlineNeverWaits,
    StoreOutlivesHandles,
    RefusedSlidesNothing,
    RepeatsSlide,
    EventsGoWithTheirSession,
    RefusedIsNotCounted,
    HolesStay,
    BatchSeesItself,
    BatchIsTrimmed,
    RequestsAreInOrder,
    RepeatIsTold,
    EvictedTagsNameNothing,
    RepeatsFinishNothing,
    UpdatesHaveNames,
    UpdatesAreRemembered,
    UpdatesAreThePrincipals,
    WaitersAreRemembered,
    AttemptsAreRemembered,
    CreatorsAreKept,
    CallsAreOpenedAnew,
    StandaloneIsMadeForItsHolder,
    IdsAreIssuedOnce,
    HoldsAreRemembered,
    OwnHoldsGoOn,
    HoldsAreContinued,
    ReleasesEndAtTheTop,
    TagsAreWide,
    PlacesAreWide,
    NoughtIsACounter,
    SharedIsForNoEndedCall,
    DeletesAreNotSwept,
    MarksOutliveTheEnd,
    TagsOutliveRestart,
    CountsAreOfTheStep,
    MarksAreKept,
    IsAtomic(Torn),
}

/// A step that is not atomic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Torn {
    Put,
    Settle,
    MarkCancel,
    Update,
    Hold,
    Enter,
    Claim,
    Sweep,
    Shrink,
    Delete,
}

/// What is wrong, the clause, the case that finds it, and whether that is one of
/// the storage suite.
pub(crate) type Missed = (Rule, &'static str, Clause, &'static str, bool);

macro_rules! missed {
    ($($rule:ident $(($torn:path))? $clause:ident $suite:ident $case:literal $what:literal;)+) => {
        pub(crate) const MISSED: &[Missed] = &[$((
            Rule::$rule $(($torn))?,
            $what,
            Clause::$clause,
            $case,
            missed!(@is_storage $suite),
        ),)+];
    };
    (@is_storage storage) => { true };
    (@is_storage contract) => { false };
}

missed! {
    FinishRaisesTop E5 storage "rule::a_finish_tells_of_events_that_never_came"
        "a finish without an event leaves the top where it is";
    ClaimFencesFinish F3 storage "rule::a_dead_owners_finish_is_fenced"
        "a finish without an event is a repeat wherever the stream has ended, whoever ended it";
    ClaimOpensEpoch F3 storage "rule::a_claim_opens_epoch_two_at_least"
        "a claim of a stream that was never written opens epoch 1";
    AttemptIsKept C2 storage "rule::a_repeated_settle_leaves_the_next_request_alone"
        "the name of the try that won goes when the id is made again";
    NumberIsCompared E9 storage "rule::a_hold_is_taken_from_the_number_that_was_named"
        "`TakeFrom` compares the instance and not the number";
    HolderIsTold E2 storage "rule::an_append_tells_who_holds_the_stream"
        "an append tells of no holder that its writer knows";
    SharedIsForNoCall E1 storage "rule::a_shared_append_to_a_call_is_fenced"
        "anybody may append to the stream of a call as if it were shared";
    NewestStays E4 storage "limit::an_append_trims_the_oldest"
        "an event over the bytes of its stream is evicted at once";
    ExpiredIsNotCounted S6 storage "rule::what_has_expired_is_not_counted"
        "sessions are counted until somebody deletes them";
    LagIsTold F2 storage "doorbell::a_doorbell_that_lags_says_so"
        "a doorbell that has dropped knocks says nothing";
    SweepWakes E2 storage "doorbell::the_step_that_writes_wakes"
        "`sweep` wakes nobody";
    UsageIsTold E4 contract "limit::bytes_of_a_session_are_bounded"
        "the bytes of a session are always told to be 0";
    InlineNeverWaits S1 storage "twice::create"
        "the profile says `inline`, and the steps wait";
    StoreOutlivesHandles F1 storage "durable::what_was_acknowledged_is_there_when_the_store_is_opened_again"
        "the store says that it is durable, and is gone with its last handle";
    StoreOutlivesHandles F1 contract "durable::what_was_acknowledged_survives_a_crash"
        "the store says that it is durable, and is gone with its last handle";
    RefusedSlidesNothing S3 storage "slide::what_is_refused_or_looks_slides_nothing"
        "an append that is refused slides the expiry";
    RepeatsSlide S3 storage "slide::what_is_used_slides"
        "a repeat slides no expiry";
    EventsGoWithTheirSession S4 storage "life::a_deleted_id_begins_anew"
        "`delete` leaves the rows of events, which the next session of the id reads";
    EventsGoWithTheirSession S3 storage "life::an_expired_id_begins_anew"
        "expiry leaves the rows of events, which the next session of the id reads";
    RefusedIsNotCounted E4 storage "limit::what_is_refused_is_not_counted"
        "the bytes of an append that is refused are counted";
    HolesStay E1 storage "batch::a_hole_within_a_batch_stays_a_hole"
        "a batch is one record of its epoch, whatever is missing in it";
    BatchSeesItself E1 storage "batch::an_append_sees_those_before_it"
        "an append is compared with what was there before its batch";
    BatchIsTrimmed E4 storage "batch::a_batch_is_trimmed_as_it_is_stored"
        "what a batch adds is trimmed by the next one";
    RequestsAreInOrder F4 storage "batch::requests_are_put_in_their_order"
        "requests of one batch are put in the order of their ids";
    RepeatIsTold E1 storage "repeat::an_append_tells_that_it_is_one"
        "a repeat is told as if it were new";
    EvictedTagsNameNothing E1 storage "repeat::of_an_evicted_tag_it_names_no_event_that_is_kept"
        "the repeat of an evicted tag names the newest event";
    RepeatsFinishNothing E8 storage "repeat::with_a_finish_it_finishes_nothing"
        "the repeat of an event finishes its stream if it asks for that";
    UpdatesHaveNames S2 storage "repeat::an_update_is_known_by_its_own_name"
        "a repeat of an update is known by what it writes";
    UpdatesHaveNames S2 storage "race::updates_that_race"
        "a repeat of an update is known by what it writes";
    UpdatesHaveNames S2 contract "session::increments_at_two_instances_are_all_counted"
        "a repeat of an update is known by what it writes";
    UpdatesAreRemembered S2 storage "repeat::an_update_is_known_by_its_own_name"
        "the name of the last update alone is remembered";
    UpdatesAreThePrincipals E3 storage "existence::another_principal_enters_and_deletes_nothing"
        "anybody may update a session";
    WaitersAreRemembered C7 storage "repeat::of_a_replaced_waiter_it_replaces_nobody"
        "the last waiter that was replaced is the only one that is remembered";
    AttemptsAreRemembered C2 storage "repeat::of_an_answer_it_ends_no_later_request"
        "the last try that won is the only one that is remembered";
    CreatorsAreKept S4 storage "repeat::of_a_create_it_brings_nothing_back"
        "of the creators of deleted sessions the last one alone is remembered";
    CallsAreOpenedAnew E4 storage "again::a_call_is_opened_anew_under_its_name"
        "the name of a call whose time is over is taken until it is swept";
    StandaloneIsMadeForItsHolder E9 storage "again::the_standalone_stream_is_made_for_its_holder"
        "`hold` finds no standalone stream where there was one";
    IdsAreIssuedOnce E1 storage "again::the_standalone_stream_issues_no_id_twice"
        "a standalone stream that is made again begins with the same ids";
    HoldsAreRemembered E9 storage "holds::the_last_ones_are_remembered"
        "where holds of the standalone stream began is not remembered";
    OwnHoldsGoOn E9 storage "holds::who_takes_its_own_goes_on_with_it"
        "who takes its own hold again begins at the top";
    HoldsAreContinued E9 storage "holds::one_can_be_continued_until_another_begins"
        "`Continue` takes the stream, whoever has it";
    HoldsAreRemembered E9 contract "holder::two_listeners_that_come_back_come_to_rest"
        "where holds of the standalone stream began is not remembered";
    ReleasesEndAtTheTop E9 storage "holds::a_release_lets_go_no_further_than_the_top"
        "a release beyond the top is stored as it is";
    TagsAreWide E1 storage "number::tags_are_told_apart_up_to_the_highest"
        "tags are kept in 32 bits";
    PlacesAreWide E1 storage "number::places_are_told_apart_up_to_the_highest"
        "sequence numbers are kept in 32 bits";
    NoughtIsACounter F3 storage "number::a_heartbeat_counts_from_nought_to_the_highest"
        "a heartbeat counter of 0 is none";
    SharedIsForNoEndedCall E1 storage "rule::a_shared_append_to_a_call_is_fenced"
        "whether a stream is finished is looked at before whose it is";
    DeletesAreNotSwept S5 storage "time::a_sweep_counts_what_its_time_is_over_of"
        "a sweep counts what a delete has left";
    MarksOutliveTheEnd F3 contract "death::a_cancelled_call_whose_owner_died_ends_as_cancelled"
        "the mark of a cancel goes when the stream ends";
    TagsOutliveRestart E1 storage "durable::repeats_are_known_when_the_store_is_opened_again"
        "tags are kept in memory";
    CountsAreOfTheStep F4 storage "race::requests_that_are_put_at_once"
        "requests are counted in one statement and stored in another";
    MarksAreKept SG storage "race::cancels_that_race"
        "the marks of a session are read, and written back with one more";
    IsAtomic(Torn::Put) E1 storage "race::requests_that_are_put_at_once"
        "`put_requests` writes back what it has read of the session";
    IsAtomic(Torn::Settle) E1 storage "race::answers_that_race"
        "`settle` writes back what it has read of the session";
    IsAtomic(Torn::MarkCancel) E1 storage "race::cancels_that_race"
        "`mark_cancel` writes back what it has read of the stream";
    IsAtomic(Torn::Update) E1 storage "race::updates_that_race"
        "`update` writes back what it has read of the session";
    IsAtomic(Torn::Hold) E1 storage "race::holds_that_race"
        "`hold` writes back what it has read of the stream";
    IsAtomic(Torn::Enter) E1 storage "race::streams_that_are_opened_at_once"
        "`enter` writes back what it has read of the session";
    IsAtomic(Torn::Enter) E1 storage "race::control_steps_that_race_each_other"
        "`enter` writes back what it has read of the session";
    IsAtomic(Torn::Claim) E1 storage "race::a_claim_that_races_appends"
        "`claim` writes back what it has read of the stream";
    IsAtomic(Torn::Sweep) E1 storage "race::sweeps_that_race_appends"
        "`sweep` writes back what it has read of the stream";
    IsAtomic(Torn::Shrink) E1 storage "race::shrinks_that_race_appends"
        "`shrink` writes back what it has read of the stream";
    IsAtomic(Torn::Delete) S4 storage "race::deletes_that_race_everything"
        "an append writes back the session that it has read";
}
