//! The seeds that are run, and what is printed of one that fails.

use std::{
    fmt::Write as _,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{
    check::Violation,
    history::{Entry, What},
    run::{Done, Plan, run},
};

/// Entries printed of a history that fails.
const TAIL: usize = 80;

/// Runs `plan` of each seed on all processors; the seeds that show a violation,
/// the first first.
pub(crate) fn failing(
    seeds: Range<u64>,
    most: usize,
    plan: impl Fn(u64) -> Plan + Sync,
    counts: impl Fn(&Violation) -> bool + Sync,
) -> Vec<(u64, Done)> {
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let found = parking_lot::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || found.lock().len() >= most {
                        return;
                    }
                    let done = run(plan(seed));
                    if done.violations.iter().any(&counts) {
                        found.lock().push((seed, done));
                    }
                }
            });
        }
    });
    let mut found = found.into_inner();
    found.sort_by_key(|(seed, _)| *seed);
    found
}

/// What there is to know of a run that failed.
pub(crate) fn report(seed: u64, done: &Done) -> String {
    let mut text = format!("HOSTILE_SEED={seed} shows\n");
    for violation in &done.violations {
        let _ = writeln!(text, "    {violation:?}");
    }
    let from = done.history.len().saturating_sub(TAIL);
    let lines = |text: &mut String, entries: &[Entry]| {
        for entry in entries {
            let _ = writeln!(text, "{entry}");
        }
    };
    let _ = writeln!(
        text,
        "the end of its history, of {} entries:",
        done.history.len()
    );
    lines(&mut text, &done.history[from..]);
    text
}

/// Where `HOSTILE_HISTORY` names a file, all of a run is written there.
pub(crate) fn write_down(done: &Done) {
    if let Some(file) = std::env::var_os("HOSTILE_HISTORY") {
        let all: String = done
            .history
            .iter()
            .map(|entry| format!("{entry}\n"))
            .collect();
        if let Err(error) = std::fs::write(&file, all) {
            eprintln!("{}: {error}", file.display());
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| match text.parse() {
        Ok(number) => number,
        Err(_) => panic!("{name} is no number: {text}"),
    })
}

/// `HOSTILE_SEED`: this one. `HOSTILE_SEEDS`: those from the first to before
/// the second.
fn asked_for() -> Range<u64> {
    if let Some(seed) = number("HOSTILE_SEED") {
        return seed..seed + 1;
    }
    let Ok(text) = std::env::var("HOSTILE_SEEDS") else {
        return 0..120;
    };
    let range = text
        .split_once("..")
        .and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    match range {
        Some(range) => range,
        None => panic!("HOSTILE_SEEDS is no range like 0..10000: {text}"),
    }
}

#[test]
fn no_seed_breaks_a_promise() {
    let (seeds, began) = (asked_for(), std::time::Instant::now());
    let times = number("HOSTILE_REPEAT").unwrap_or(1);
    let count = (seeds.end - seeds.start) * times;
    let mut all = Vec::new();
    for _ in 0..times {
        all.extend(failing(seeds.clone(), 1000, Plan::of, |_| true));
    }
    println!("{count} runs, seeds {seeds:?}, in {:?}", began.elapsed());
    for (seed, done) in all.iter().skip(1) {
        println!("HOSTILE_SEED={seed}: {:?}", done.violations);
    }
    if let Some((seed, done)) = all.first() {
        write_down(done);
        panic!("{}", report(*seed, done));
    }
}

/// The rules of eviction prove something only where sessions are shrunk.
#[test]
fn many_runs_shrink_their_sessions() {
    let shrinks = |seed| {
        let done = run(Plan::of(seed));
        done.history.iter().any(|entry| entry.what == What::Shrunk)
    };
    let runs = (0..24).filter(|seed| shrinks(*seed)).count();
    println!("{runs} of 24 runs shrink a session");
    assert!(runs >= 3, "{runs} of 24");
}
