//! Negative controls: what the simulation would let pass with one rule switched
//! off would prove nothing about it. Each must be caught within a few seeds.

use std::ops::Range;

use crate::{
    adversary::Exposure,
    reference::Defects,
    run::{Plan, Store},
    seeds::failing,
};

const ROUGH: Exposure = Exposure {
    faults: true,
    deaths: false,
    losses: false,
    silence: false,
    stalls_only: false,
};

/// The first seed found that shows one of `rules` broken.
fn caught(what: &str, seeds: Range<u64>, rules: &[&str], plan: impl Fn(u64) -> Plan + Sync) {
    let broken = |rule: &str| rules.contains(&rule);
    let found = failing(seeds.clone(), 1, plan, |violation| broken(violation.rule));
    let Some((seed, done)) = found.first() else {
        panic!("{what}: no seed of {seeds:?} shows it");
    };
    let shows = done
        .violations
        .iter()
        .find(|violation| broken(violation.rule));
    println!("{what}: caught by seed {seed}: {shows:?}");
}

fn with(defects: Defects, exposure: Exposure) -> impl Fn(u64) -> Plan + Sync {
    move |seed| Plan {
        seed,
        store: Store::Reference(defects),
        exposure,
        repair: false,
        no_catch_up: false,
        brief: 0,
    }
}

#[test]
fn without_catch_up_lost_wake_ups_are_noticed() {
    let exposure = Exposure {
        silence: true,
        ..ROUGH
    };
    let rules = ["everything ends", "no silent hole"];
    caught("catch-up off", 0..40, &rules, |seed| Plan {
        no_catch_up: true,
        ..with(Defects::default(), exposure)(seed)
    });
}

#[test]
fn without_fencing_a_thawed_owner_is_noticed() {
    let defects = Defects {
        no_fencing: true,
        ..Defects::default()
    };
    let exposure = Exposure {
        stalls_only: true,
        ..ROUGH
    };
    let rules = ["nothing after the end", "one end"];
    caught("fencing off", 0..300, &rules, with(defects, exposure));
}

#[test]
fn without_repeat_safety_a_repeat_is_noticed() {
    let defects = Defects {
        no_repeat_safety: true,
        ..Defects::default()
    };
    let rules = [
        "no event twice",
        "one place for one event",
        "an outcome has its cause",
        "all are told the same outcome",
    ];
    caught("repeat-safety off", 0..40, &rules, with(defects, ROUGH));
}

#[test]
fn ids_that_a_lost_history_gave_out_are_noticed_when_they_come_again() {
    let defects = Defects {
        epochs_from_data: true,
        ..Defects::default()
    };
    let exposure = Exposure {
        losses: true,
        ..ROUGH
    };
    let rules = ["one place for one event"];
    caught(
        "epochs counted from the data",
        0..100,
        &rules,
        with(defects, exposure),
    );
}

#[test]
fn updates_known_by_what_they_write_are_noticed() {
    let defects = Defects {
        updates_by_content: true,
        ..Defects::default()
    };
    let rules = ["one author wins"];
    let plan = with(defects, ROUGH);
    caught("updates known by what they write", 0..40, &rules, plan);
}

#[test]
fn returns_that_always_take_over_are_noticed() {
    let defects = Defects {
        returns_take_over: true,
        ..Defects::default()
    };
    let rules = ["each message at one listener"];
    let plan = with(defects, ROUGH);
    caught("returns that always take over", 0..100, &rules, plan);
}

#[test]
fn holds_that_are_not_remembered_are_noticed() {
    let defects = Defects {
        holds_forgotten: true,
        ..Defects::default()
    };
    let rules = ["no message is lost between listeners"];
    let plan = with(defects, ROUGH);
    caught("holds that are not remembered", 0..100, &rules, plan);
}

#[test]
fn without_tombstones_a_session_that_comes_back_is_noticed() {
    let defects = Defects {
        no_tombstones: true,
        ..Defects::default()
    };
    let rules = ["a deleted session never comes back"];
    caught("tombstones off", 0..200, &rules, |seed| Plan {
        brief: 20,
        ..with(defects, ROUGH)(seed)
    });
}
