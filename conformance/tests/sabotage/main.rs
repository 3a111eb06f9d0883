//! Does the suite bite? A backend with one defect per clause, each of which must
//! turn the suite red.
#![allow(clippy::expect_used, reason = "tests")]

mod careless;
mod defects;
mod rules;
mod saboteur;

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    path::Path,
    sync::{LazyLock, Mutex},
    time::Duration,
};

use mcp_adapter_conformance::{
    BoxError, CASES, Case, Clause, Options, Restart, STORAGE_CASES, Suite, faults::Far,
};
use mcp_adapter_core::{Capabilities, Engine};
use mcp_adapter_memory::MemoryStorage;

use careless::{Careless, Ledger};
use defects::{Defect, MISSED, Missed, Rule, defect};
use saboteur::{Saboteur, Secrets};

/// A defect of a clause, and a suite and case that must find it.
type Hunt = (Defect, Clause, &'static str, bool, &'static str);

fn hunts() -> Vec<Hunt> {
    let mut hunts = Vec::new();
    for clause in Clause::ALL.iter().copied() {
        let (what, case, step) = defect(clause);
        let defect = Defect::Of(clause);
        hunts.push((defect, clause, what, false, case));
        hunts.extend(step.map(|step| (defect, clause, what, true, step)));
    }
    let missed =
        |&(rule, what, clause, case, step): &Missed| (Defect::Miss(rule), clause, what, step, case);
    hunts.extend(MISSED.iter().map(missed));
    hunts
}

/// Stores that outlive all instances, by their namespaces, as files do.
static DISK: LazyLock<Mutex<HashMap<String, Disk>>> = LazyLock::new(Mutex::default);

type Disk = (MemoryStorage, Secrets, Ledger);

/// What became of one case over a backend with this defect, or with none.
fn check(case: &'static str, of_storage: bool, sabotaged: Option<Defect>) -> Result<(), String> {
    let open = move |options: Options| async move {
        let new = || (MemoryStorage::new(), Secrets::default(), Ledger::default());
        let (store, secrets, ledger) = match sabotaged {
            Some(Defect::Miss(Rule::StoreOutlivesHandles)) => options.store(new),
            _ => {
                let mut disk = DISK.lock().expect("no panic");
                let name = options.namespace().to_owned();
                disk.entry(name).or_insert_with(new).clone()
            }
        };
        let far = Far::new(store, options.link());
        let saboteur = Saboteur::open(far, secrets, sabotaged).await?;
        Ok::<_, BoxError>(Careless::new(saboteur, ledger, sabotaged))
    };
    let this = |other: &Case| other.name == case;
    let capabilities = Capabilities::server(Duration::from_millis(1));
    let suite = Suite::new("sabotage", capabilities)
        .with_patience(Duration::from_secs(3))
        .with_restart(Restart::by_handles());
    let report = if of_storage {
        suite.check_storage(this, open)
    } else {
        suite.check(this, move |options| async move {
            let limits = options.limits().clone();
            Ok(Engine::new(open(options).await?, limits))
        })
    };
    match report.failed.into_iter().next() {
        Some((_, why)) => Err(why),
        None => {
            assert_eq!(report.passed, [case], "the case was run");
            Ok(())
        }
    }
}

/// Runs of a case within which it must catch its defect: some show by a race alone.
const RUNS: usize = 8;

/// `SABOTAGE=race::` hunts for those alone that cases of such a name catch.
#[test]
fn each_defect_turns_the_suite_red() {
    let picked = std::env::var("SABOTAGE").unwrap_or_default();
    let mut hunted = hunts();
    hunted.retain(|(_, _, _, _, case)| case.contains(&picked));
    assert!(!hunted.is_empty(), "no case of this name");
    let hunts = Mutex::new(hunted.into_iter());
    let missed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let Some((defect, clause, what, step, case)) =
                        hunts.lock().expect("no panic").next()
                    else {
                        return;
                    };
                    let mut with = Ok(());
                    for _ in 0..RUNS {
                        with = with.and_then(|()| check(case, step, Some(defect)));
                    }
                    let without = check(case, step, None);
                    let why = with.as_ref().err().and_then(|why| why.lines().next());
                    println!("{clause} | {what} | {case} | {}", why.unwrap_or("MISSED"));
                    if let Err(why) = &with {
                        let told = why.contains(&format!("it holds {clause}: "));
                        assert!(told && why.contains("\nread "), "{case}: {why}");
                    }
                    if with.is_ok() {
                        let text = format!("{clause}: {what}: `{case}` does not catch it");
                        missed.lock().expect("no panic").push(text);
                    }
                    if let Err(why) = without {
                        let text = format!("{clause}: `{case}` fails without it: {why}");
                        missed.lock().expect("no panic").push(text);
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().expect("no panic");
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn a_defect_is_caught_by_a_case_of_its_clause() {
    for (_, clause, _, step, name) in hunts() {
        let list = if step { STORAGE_CASES } else { CASES };
        let case = list.iter().find(|case| case.name == name);
        let case = case.unwrap_or_else(|| panic!("{clause}: there is no case `{name}`"));
        assert!(
            case.clauses.contains(&clause),
            "{clause}: `{name}` is of {:?}",
            case.clauses
        );
    }
}

#[test]
fn the_table_is_up_to_date() {
    let mut text = String::from(
        "# Clauses, defects, cases\n\n\
         A backend with one defect per clause, and the case that turns red on it. Generated\n\
         from the list of clauses; `UPDATE_DOCS=1 cargo test -p mcp-adapter-conformance --test\n\
         sabotage` writes it anew, and the same test without it shows that each is caught.\n\n\
         | clause | defect | caught by | and by the step |\n|---|---|---|---|\n",
    );
    for clause in Clause::ALL {
        let (what, case, step) = defect(*clause);
        let step = step.map_or_else(String::new, |step| format!("`{step}`"));
        writeln!(text, "| {clause} | {what} | `{case}` | {step} |").expect("a string");
    }
    text.push_str(
        "\n## Rules of the seam that are easily missed\n\n\
         | clause | defect | caught by | suite |\n|---|---|---|---|\n",
    );
    for (_, what, clause, case, step) in MISSED {
        let suite = if *step { "storage" } else { "contract" };
        writeln!(text, "| {clause} | {what} | `{case}` | {suite} |").expect("a string");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/sabotage.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &text).expect("docs/sabotage.md can be written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == text,
        "docs/sabotage.md is stale: run with UPDATE_DOCS=1"
    );
}
