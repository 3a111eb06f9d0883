//! The report: one HTML page without anything from outside.

use std::fmt::Write as _;

use super::{
    plot::{Buckets, Line, legend, svg},
    table::table,
};
use crate::run::{Kind, Outcome, Soak, mebibytes};

const STYLE: &str = "\
:root{color-scheme:light dark;--k:#b91c1c;--g:#8885;\
--a:#0b6bcb;--b:#c2410c;--c:#15803d;--d:#7e22ce;--e:#a16207;--f:#0e7490}\
@media(prefers-color-scheme:dark){:root{--k:#f87171;\
--a:#6cb6ff;--b:#fb923c;--c:#4ade80;--d:#c084fc;--e:#facc15;--f:#22d3ee}}\
body{font:15px/1.5 system-ui,sans-serif;max-width:820px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.4rem}h2{font-size:1.05rem;margin:1.6rem 0 .2rem}\
pre{overflow-x:auto;font-size:13px}svg{width:100%;height:auto}\
text{font:11px system-ui,sans-serif;fill:currentColor}\
path{fill:none;stroke-width:1.8}.legend{margin:0;font-size:13px}\
path.a{stroke:var(--a)}path.b{stroke:var(--b)}path.c{stroke:var(--c)}\
path.d{stroke:var(--d)}path.e{stroke:var(--e)}path.f{stroke:var(--f)}\
span.a{color:var(--a)}span.b{color:var(--b)}span.c{color:var(--c)}\
span.d{color:var(--d)}span.e{color:var(--e)}span.f{color:var(--f)}\
.grid{stroke:var(--g)}.kill{stroke:var(--k);stroke-dasharray:3 3}\
footer{margin-top:2rem;font-size:13px;opacity:.7}";

/// The page.
pub(crate) fn html(outcome: &Outcome) -> String {
    let totals = &outcome.totals;
    let buckets = Buckets::of(totals.took);
    let draw =
        |lines: &[Line], unit: &str| legend(lines, unit) + &svg(lines, totals.took, &outcome.kills);
    let latencies = |samples: &[_]| {
        let lines = [50, 99].map(|percent| Line {
            name: format!("p{percent}"),
            values: buckets.percentile(samples, percent),
        });
        draw(&lines, "ms")
    };
    let rate = Line {
        name: "calls".into(),
        values: buckets.rate(&totals.ends, totals.ends_each),
    };
    let mut plots = vec![
        ("Throughput", draw(&[rate], "per second")),
        ("Latency of calls", latencies(&totals.calls)),
        (
            "Latency of elicitations, from the answer to the result",
            latencies(&totals.elicits),
        ),
    ];
    if let Some(soak) = &outcome.soak {
        plots.extend(growth(soak));
    }
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>fleet</title>\
         <style>{STYLE}</style><h1>fleet</h1><pre>{}</pre>",
        escaped(&table(outcome))
    );
    for (title, plot) in plots {
        // Writing to a String cannot fail.
        let _ = write!(page, "<h2>{title}</h2>{plot}");
    }
    if !outcome.kills.is_empty() {
        page.push_str("<p>Dashed lines: an instance was killed.</p>");
    }
    let _ = write!(
        page,
        "<footer>fleet {}, seed {}</footer></html>",
        env!("CARGO_PKG_VERSION"),
        outcome.summary.seed
    );
    page
}

/// What was looked at during a soak.
fn growth(soak: &Soak) -> Vec<(&'static str, String)> {
    let buckets = Buckets::of(soak.took);
    let kinds = [
        (Kind::Sessions, "Stored sessions", "sessions"),
        (Kind::File, "Size of the store", "MiB"),
        (Kind::Log, "Size of its write-ahead log", "MiB"),
        (Kind::Memory, "Resident memory", "MiB"),
        (Kind::Descriptors, "Open descriptors", "descriptors"),
        (Kind::Forever, "Keys without an expiry", "keys"),
    ];
    let plots = kinds.into_iter().map(|(kind, title, unit)| {
        let series = soak.series.iter().filter(|series| series.kind == kind);
        let lines = series.map(|series| {
            let scaled = series.values.iter().map(|(at, value)| {
                let value = match kind {
                    Kind::File | Kind::Log | Kind::Memory => mebibytes(*value),
                    _ => f64::from(u32::try_from(*value).unwrap_or(u32::MAX)),
                };
                (*at, value)
            });
            Line {
                name: series.name.clone(),
                values: buckets.largest(&scaled.collect::<Vec<_>>()),
            }
        });
        let lines: Vec<Line> = lines.collect();
        (
            lines.is_empty(),
            title,
            legend(&lines, unit) + &svg(&lines, soak.took, &[]),
        )
    });
    plots
        .filter(|(empty, ..)| !empty)
        .map(|(_, title, plot)| (title, plot))
        .collect()
}

/// Complaints hold texts from the server.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn texts_of_the_server_cannot_become_markup() {
        assert_eq!(escaped("<script>&"), "&lt;script&gt;&amp;");
    }
}
