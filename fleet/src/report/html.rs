//! The report: one HTML page without anything from outside.

use std::fmt::Write as _;

use super::{
    plot::{Buckets, Line, svg},
    table::table,
};
use crate::run::Outcome;

const STYLE: &str = "\
:root{color-scheme:light dark;--a:#0b6bcb;--b:#c2410c;--k:#b91c1c;--g:#8885}\
@media(prefers-color-scheme:dark){:root{--a:#6cb6ff;--b:#fb923c;--k:#f87171}}\
body{font:15px/1.5 system-ui,sans-serif;max-width:820px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.4rem}h2{font-size:1.05rem;margin:1.6rem 0 .2rem}\
pre{overflow-x:auto;font-size:13px}svg{width:100%;height:auto}\
text{font:11px system-ui,sans-serif;fill:currentColor}\
text.a{fill:var(--a)}text.b{fill:var(--b)}\
path{fill:none;stroke-width:1.8}path.a{stroke:var(--a)}path.b{stroke:var(--b)}\
.grid{stroke:var(--g)}.kill{stroke:var(--k);stroke-dasharray:3 3}\
footer{margin-top:2rem;font-size:13px;opacity:.7}";

/// The page.
pub(crate) fn html(outcome: &Outcome) -> String {
    let totals = &outcome.totals;
    let buckets = Buckets::of(totals.took);
    let draw = |lines: &[Line], unit: &str| svg(lines, unit, totals.took, &outcome.kills);
    let latencies = |samples: &[_]| {
        draw(
            &[
                Line {
                    name: "p50",
                    class: "a",
                    values: buckets.percentile(samples, 50),
                },
                Line {
                    name: "p99",
                    class: "b",
                    values: buckets.percentile(samples, 99),
                },
            ],
            "ms",
        )
    };
    let rate = Line {
        name: "calls",
        class: "a",
        values: buckets.rate(&totals.ends),
    };
    let plots = [
        ("Throughput", draw(&[rate], "per second")),
        ("Latency of calls", latencies(&totals.calls)),
        (
            "Latency of elicitations, from the answer to the result",
            latencies(&totals.elicits),
        ),
    ];
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
