//! Line plots as inline SVG.

use std::{fmt::Write as _, time::Duration};

use crate::load::{Sample, percentile_ms};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 26.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 26.0;
const BUCKETS: u32 = 60;
const TICKS: u32 = 4;

/// A named line; one value per bucket, `None` where there is nothing to show.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) values: Vec<Option<f64>>,
}

/// The colours of lines, in order; the style sheet has one for each.
pub(super) const CLASSES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

fn class(line: usize) -> &'static str {
    CLASSES.get(line % CLASSES.len()).copied().unwrap_or("a")
}

/// The names of the lines, in their colours.
pub(super) fn legend(lines: &[Line], unit: &str) -> String {
    let names = lines
        .iter()
        .enumerate()
        .map(|(index, line)| format!("<span class=\"{}\">{}</span>", class(index), line.name));
    format!(
        "<p class=\"legend\">{unit}: {}</p>",
        names.collect::<Vec<_>>().join(" · ")
    )
}

/// Splits a run into equal parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buckets {
    took: Duration,
}

impl Buckets {
    pub(super) fn of(took: Duration) -> Self {
        Self {
            took: took.max(Duration::from_millis(1)),
        }
    }

    fn index(self, at: Duration) -> usize {
        let share = at.as_nanos() * u128::from(BUCKETS) / self.took.as_nanos();
        usize::try_from(share.min(u128::from(BUCKETS - 1))).unwrap_or(0)
    }

    fn split<T: Copy>(self, items: &[T], at: impl Fn(&T) -> Duration) -> Vec<Vec<T>> {
        let mut parts = vec![Vec::new(); usize::try_from(BUCKETS).unwrap_or(0)];
        for item in items {
            if let Some(part) = parts.get_mut(self.index(at(item))) {
                part.push(*item);
            }
        }
        parts
    }

    /// Events a second, where each time stands for `each` of them.
    pub(super) fn rate(self, times: &[Duration], each: u64) -> Vec<Option<f64>> {
        let each = f64::from(u32::try_from(each).unwrap_or(u32::MAX));
        let seconds = self.took.as_secs_f64() / f64::from(BUCKETS);
        self.split(times, |at| *at)
            .iter()
            .map(|part| {
                let times = f64::from(u32::try_from(part.len()).unwrap_or(u32::MAX));
                Some(times * each / seconds)
            })
            .collect()
    }

    /// The largest of the values in each part.
    pub(super) fn largest(self, values: &[(Duration, f64)]) -> Vec<Option<f64>> {
        self.split(values, |(at, _)| *at)
            .iter()
            .map(|part| part.iter().map(|(_, value)| *value).reduce(f64::max))
            .collect()
    }

    /// A percentile in milliseconds.
    pub(super) fn percentile(self, samples: &[Sample], percent: usize) -> Vec<Option<f64>> {
        self.split(samples, |sample| sample.at)
            .iter()
            .map(|part| (!part.is_empty()).then(|| percentile_ms(part, percent)))
            .collect()
    }
}

/// An SVG element with these lines over the time of the run. `marks` are seconds.
pub(super) fn svg(lines: &[Line], took: Duration, marks: &[f64]) -> String {
    let highest = lines
        .iter()
        .flat_map(|line| line.values.iter().flatten())
        .fold(0.0_f64, |highest, value| highest.max(*value));
    let top = round_up(highest);
    let seconds = took.as_secs_f64().max(0.001);
    let x = |share: f64| LEFT + share * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    // Writing to a String cannot fail.
    for tick in 0..=TICKS {
        let share = f64::from(tick) / f64::from(TICKS);
        let (value, level) = (share * top, y(share * top));
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{level:.1}\" x2=\"{:.1}\" y2=\"{level:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{:.1} s</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            level + 4.0,
            short(value),
            x(share),
            HEIGHT - 8.0,
            share * seconds,
        );
    }
    for mark in marks {
        let at = x((mark / seconds).clamp(0.0, 1.0));
        let _ = write!(
            svg,
            "<line class=\"kill\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{:.1}\"/>",
            HEIGHT - BOTTOM
        );
    }
    for (row, line) in lines.iter().enumerate() {
        let mut path = String::new();
        for (bucket, value) in (0_u32..).zip(&line.values) {
            if let Some(value) = value {
                let share = (f64::from(bucket) + 0.5) / f64::from(BUCKETS);
                let command = if path.is_empty() { 'M' } else { 'L' };
                let _ = write!(path, "{command}{:.1} {:.1}", x(share), y(*value));
            }
        }
        let _ = write!(svg, "<path class=\"{}\" d=\"{path}\"/>", class(row));
    }
    svg.push_str("</svg>");
    svg
}

/// The next number of the form 1, 2 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let mut step = 1e-3;
    while value.is_finite() && step < value {
        for factor in [2.0, 5.0, 10.0] {
            if step * factor >= value {
                return step * factor;
            }
        }
        step *= 10.0;
    }
    step
}

fn short(value: f64) -> String {
    if value >= 10.0 || value == 0.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        for (value, wanted) in [
            (0.0, 0.001),
            (0.7, 1.0),
            (1.1, 2.0),
            (3.0, 5.0),
            (51.0, 100.0),
        ] {
            let got = round_up(value);
            assert!((got - wanted).abs() < 1e-6, "{value}: {got}");
        }
        assert!(round_up(f64::INFINITY) > 0.0);
    }

    #[test]
    fn rates_add_up_to_the_events() {
        let buckets = Buckets::of(Duration::from_secs(6));
        let times: Vec<_> = (0..600).map(|n| Duration::from_millis(n * 10)).collect();
        let rates = buckets.rate(&times, 1);
        let events: f64 = rates.iter().flatten().map(|rate| rate * 0.1).sum();
        assert!((events - 600.0).abs() < 1e-6, "{events}");
    }

    #[test]
    fn a_plot_without_samples_is_still_a_plot() {
        let values = Buckets::of(Duration::ZERO).percentile(&[], 50);
        let line = Line {
            name: "p50".into(),
            values,
        };
        let svg = svg(&[line], Duration::ZERO, &[0.0]);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>") && !svg.contains("NaN"));
    }
}
