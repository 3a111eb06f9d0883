//! The list of cases, and the table that is made of it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, fs, path::Path};

use mcp_adapter_conformance::{CASES, Clause, STORAGE_CASES, Suite, clause_table};
use mcp_adapter_core::Capabilities;

#[test]
fn the_table_of_clauses_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/clauses.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, clause_table()).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == clause_table(),
        "docs/clauses.md is stale: run with UPDATE_DOCS=1"
    );
}

/// The documentation of the contract shows the same sentences.
#[test]
fn the_clauses_of_the_core_are_up_to_date() {
    const MARKS: (&str, &str) = (
        "<!-- clauses: generated, see conformance/tests/docs.rs -->\n",
        "<!-- /clauses -->\n",
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/README.md");
    let Ok(readme) = fs::read_to_string(&path) else {
        return; // this crate was unpacked alone
    };
    let row = |clause: &Clause| format!("| {clause} | {} |\n", clause.text());
    let rows: String = Clause::ALL.iter().map(row).collect();
    let table = format!("\n| clause | promise |\n|---|---|\n{rows}\n");
    let (before, rest) = readme.split_once(MARKS.0).unwrap();
    let (found, after) = rest.split_once(MARKS.1).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let text = format!("{before}{}{table}{}{after}", MARKS.0, MARKS.1);
        fs::write(&path, text).unwrap();
    } else {
        assert!(
            found == table,
            "core/README.md is stale: run with UPDATE_DOCS=1"
        );
    }
}

#[test]
fn every_clause_has_a_case_that_no_backend_may_skip() {
    for clause in Clause::ALL {
        let held = CASES
            .iter()
            .any(|case| case.needs.is_none() && case.clauses.contains(clause));
        assert!(held, "{clause}");
    }
}

#[test]
fn nothing_of_the_core_can_be_declared_away() {
    for case in CASES.iter().filter(|case| case.needs.is_some()) {
        for clause in case.clauses.iter().filter(|clause| clause.is_core()) {
            // A further case under faults may be, if the clause is held without.
            let held = CASES
                .iter()
                .filter(|other| other.needs.is_none() && other.clauses.contains(clause))
                .count();
            assert!(held > 1, "{clause} is held by `{}` alone", case.name);
        }
    }
    assert!(STORAGE_CASES.iter().all(|case| case.needs.is_none()));
}

#[test]
fn names_are_unique_and_each_case_holds_a_clause() {
    for list in [CASES, STORAGE_CASES] {
        let names: BTreeSet<_> = list.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), list.len());
        assert!(list.iter().all(|case| !case.clauses.is_empty()));
    }
}

#[test]
fn only_what_was_declared_is_ignored() {
    let all = Suite::new(
        "all",
        Capabilities::server(std::time::Duration::from_millis(1)),
    );
    assert!(CASES.iter().all(|case| all.ignores(case).is_none()));
    let memory = Suite::new("memory", Capabilities::in_process());
    for case in CASES {
        let label = memory.ignores(case).map(|absent| absent.label());
        let expected = case.needs.map(|absent| absent.label());
        // Memory pushes.
        assert_eq!(
            label,
            expected.filter(|label| *label != "no push"),
            "{}",
            case.name
        );
    }
}
