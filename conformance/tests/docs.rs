//! The list of cases, and the table that is made of it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, fs, path::Path};

use mcp_adapter_conformance::{
    Absent, CASES, Case, Clause, Restart, STORAGE_CASES, Suite, clause_table,
};
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
    for case in STORAGE_CASES {
        let volatile = case.needs == Some(Absent::Restart);
        assert!(volatile || case.needs.is_none(), "`{}`", case.name);
    }
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
        // Memory pushes, and it would have to be durable first to be restarted.
        let expected = match case.needs {
            Some(Absent::Push) => None,
            Some(Absent::Restart) => Some("not durable"),
            _ => expected,
        };
        assert_eq!(label, expected, "{}", case.name);
    }
    let server = Capabilities::server(std::time::Duration::from_millis(1));
    let foreign = Suite::new("foreign", server).with_restart(Restart::none("it is another's"));
    let restarts = |case: &&Case| case.needs == Some(Absent::Restart);
    for case in CASES.iter().chain(STORAGE_CASES).filter(restarts) {
        assert_eq!(foreign.ignores(case), Some(Absent::Restart));
    }
}

/// A failure says what to read: it must be there.
#[test]
fn what_a_failure_refers_to_is_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src/storage.rs");
    let Ok(seam) = fs::read_to_string(&path) else {
        return; // this crate was unpacked alone
    };
    for case in STORAGE_CASES {
        for step in case.steps {
            assert!(seam.contains(&format!("fn {step}(")), "`{}`", case.name);
        }
        if let Some(rule) = case.rule() {
            assert!(seam.contains(&format!("**{rule}")), "`{}`", case.name);
        }
        let known = !case.steps.is_empty() || case.rule().is_some();
        assert!(known, "`{}` tells nothing to read", case.name);
        for clause in case.clauses {
            assert!(case.advice().contains(clause.name()), "{}", case.advice());
        }
    }
    for case in CASES {
        assert!(case.steps.is_empty() && case.rule().is_none());
        assert!(case.advice().contains("contract"), "{}", case.advice());
    }
}
