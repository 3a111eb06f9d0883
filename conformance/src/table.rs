//! The table of clauses and cases, as the documentation shows it.

use std::fmt::Write as _;

use crate::{CASES, Case, Clause, STORAGE_CASES};

/// Which cases hold which clause, as Markdown; `docs/clauses.md` is this.
#[must_use]
pub fn clause_table() -> String {
    let mut text = String::from(
        "# Clauses and cases\n\n\
         Generated from the list of cases; `UPDATE_DOCS=1 cargo test -p \
         mcp-adapter-conformance --test docs` writes it anew.\n\n\
         | clause | promise | cases of the contract | cases of the storage seam |\n\
         |---|---|---|---|\n",
    );
    for clause in Clause::ALL {
        let _ = writeln!(
            text,
            "| {clause} | {} | {} | {} |",
            clause.text(),
            names(CASES, *clause),
            names(STORAGE_CASES, *clause)
        );
    }
    let count = |cases: &[Case]| cases.len();
    let _ = write!(
        text,
        "\n{} cases over the traits of the contract, {} over the storage seam. What a backend\n\
         may declare that it does not have is named behind a case.\n",
        count(CASES),
        count(STORAGE_CASES)
    );
    text
}

fn names(cases: &[Case], clause: Clause) -> String {
    let of_clause = cases.iter().filter(|case| case.clauses.contains(&clause));
    let name = |case: &Case| match case.needs {
        Some(absent) => format!("`{}` ({absent})", case.name),
        None => format!("`{}`", case.name),
    };
    let names: Vec<_> = of_clause.map(name).collect();
    names.join("<br>")
}
