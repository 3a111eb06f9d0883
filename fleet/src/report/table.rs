//! The table at the end of a run.

use std::fmt::Write as _;

use crate::run::Outcome;

/// The result for people.
pub(crate) fn table(outcome: &Outcome) -> String {
    let (summary, totals) = (&outcome.summary, &outcome.totals);
    let mut text = String::new();
    let mut line = |name: &str, value: String, note: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<16}{value:>9}  {note}");
    };
    line(
        "sessions",
        summary.sessions.to_string(),
        match (summary.backend, summary.instances, summary.policy) {
            (Some(backend), Some(instances), Some(policy)) => {
                format!(
                    "on {instances} instances, backend {backend}, policy {policy}, seed {}",
                    summary.seed
                )
            }
            _ => format!("seed {}", summary.seed),
        },
    );
    let seconds = totals.took.as_secs_f64();
    line(
        "calls",
        summary.calls.to_string(),
        format!("in {seconds:.1} s, {:.0} a second", summary.calls_per_s),
    );
    line(
        "elicitations",
        summary.elicitations.to_string(),
        format!(
            "{} seen answered at another instance",
            summary.cross_instance_elicitations
        ),
    );
    line(
        "resumes",
        summary.resumes.to_string(),
        format!(
            "{} seen at another instance",
            summary.cross_instance_resumes
        ),
    );
    line(
        "cancels",
        summary.cancels.to_string(),
        "handler seen to stop".into(),
    );
    line(
        "deletes",
        summary.deletes.to_string(),
        "nothing found afterwards".into(),
    );
    line(
        "kills",
        summary.kills.to_string(),
        format!("{} expected errors", summary.expected_errors),
    );
    line(
        "call",
        format!("{:.1}", summary.call_p50_ms),
        format!("ms p50, {:.1} ms p99", summary.call_p99_ms),
    );
    line(
        "elicitation",
        format!("{:.1}", summary.elicit_p50_ms),
        format!("ms p50, {:.1} ms p99", summary.elicit_p99_ms),
    );
    for (name, value) in [
        ("lost", summary.lost),
        ("duplicated", summary.duplicated),
        ("wrong", summary.wrong),
        ("hung", summary.hung),
        ("errors", summary.errors),
    ] {
        let note = if value == 0 { "" } else { "  <-- must be 0" };
        line(name, value.to_string(), note.into());
    }
    if let Some(soak) = &outcome.soak {
        for (series, judged) in soak.series.iter().zip(&soak.judged) {
            let show = |value| series.kind.show(value);
            let _ = writeln!(
                text,
                "  {:<26}{:>12} in the middle,{:>12} at the end,{:>12} after it{}",
                judged.name,
                show(judged.middle),
                show(judged.end),
                show(judged.after),
                if judged.flat { "" } else { "  <-- not flat" },
            );
        }
    }
    for complaint in &totals.complaints {
        let _ = writeln!(text, "  {}", shortened(complaint));
    }
    if totals.silenced > 0 {
        let _ = writeln!(text, "  and {} more", totals.silenced);
    }
    let verdict = match (outcome.is_clean(), &outcome.soak) {
        (true, None) => "nothing lost, duplicated, wrong or hung",
        (true, Some(_)) => "nothing lost, duplicated, wrong or hung, and nothing grew",
        (false, _) => "PROMISE BROKEN",
    };
    let _ = writeln!(text, "{verdict}");
    text
}

fn shortened(text: &str) -> String {
    const SHOWN: usize = 600;
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}
