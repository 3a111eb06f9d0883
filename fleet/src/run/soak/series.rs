//! What a soak looks at, and whether it is flat.

use std::time::Duration;

use serde::Serialize;

/// A tenth of what there was may come and go; and so much on top of it, which is
/// what allocators and a file's free pages do.
const SHARE: u64 = 10;
/// How many sessions there are is up to the clients, too.
const SHARE_SESSIONS: u64 = 2;
const SLACK_MEMORY: u64 = 8 << 20;
const SLACK_FILE: u64 = 2 << 20;
const SLACK_LOG: u64 = 32 << 20;
const SLACK_DESCRIPTORS: u64 = 24;
const SLACK_SESSIONS: u64 = 24;

/// What a series counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    /// Grows until it begins anew, which takes longer than a short soak.
    Log,
    Memory,
    Descriptors,
    Sessions,
    /// What would never go by itself: there must be none, at no time.
    Forever,
}

/// Something that was looked at again and again.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// When, after the start, and how much.
    pub(crate) values: Vec<(Duration, u64)>,
}

/// What became of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Judged {
    pub(crate) name: String,
    /// Largest value in the second third of the load.
    pub(crate) middle: u64,
    /// Largest value in the last third.
    pub(crate) end: u64,
    /// The last value, after all clients had gone and their sessions expired.
    pub(crate) after: u64,
    pub(crate) flat: bool,
}

impl Kind {
    fn slack(self) -> u64 {
        match self {
            Self::File => SLACK_FILE,
            Self::Log => SLACK_LOG,
            Self::Memory => SLACK_MEMORY,
            Self::Descriptors => SLACK_DESCRIPTORS,
            Self::Sessions => SLACK_SESSIONS,
            Self::Forever => 0,
        }
    }

    /// Whether a value that was `before` may be `now`.
    fn allows(self, before: u64, now: u64) -> bool {
        let share = match self {
            Self::Sessions => SHARE_SESSIONS,
            Self::Forever => return before == 0 && now == 0,
            _ => SHARE,
        };
        now <= before + before / share + self.slack()
    }

    /// Whether the last value may be this one, all being over.
    fn allows_after(self, first: u64, end: u64, after: u64) -> bool {
        match self {
            // A file keeps its free pages and an allocator its arenas.
            Self::File | Self::Log | Self::Memory => self.allows(end, after),
            Self::Descriptors => after <= first + self.slack(),
            Self::Sessions | Self::Forever => after == 0,
        }
    }

    /// A value for people.
    pub(crate) fn show(self, value: u64) -> String {
        match self {
            Self::File | Self::Log | Self::Memory => format!("{:.1} MiB", mebibytes(value)),
            Self::Descriptors | Self::Sessions | Self::Forever => value.to_string(),
        }
    }
}

/// Bytes as MiB, for people.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}

impl Series {
    /// One without values yet.
    pub(super) fn new(name: impl Into<String>, kind: Kind) -> Self {
        Self {
            name: name.into(),
            kind,
            values: Vec::new(),
        }
    }

    fn largest(&self, from: Duration, to: Duration) -> Option<u64> {
        let part = self.values.iter().filter(|(at, _)| (from..to).contains(at));
        part.map(|(_, value)| *value).max()
    }

    /// The largest values of the second and the last third of a load that took
    /// so long.
    fn thirds(&self, load: Duration) -> Option<(u64, u64)> {
        let (third, end) = (load / 3, load + Duration::from_nanos(1));
        let middle = self.largest(third, 2 * third)?;
        Some((middle, self.largest(2 * third, end)?))
    }

    /// Compares the thirds of a load, during which so many `sessions` were stored.
    fn judge(&self, load: Duration, sessions: Option<(u64, u64)>) -> Judged {
        let first = self.values.first().map_or(0, |(_, value)| *value);
        let after = self.values.last().map_or(0, |(_, value)| *value);
        let thirds = self.thirds(load);
        let flat = match thirds {
            Some((middle, last)) => {
                // A file is as large as what it once had to hold, and a machine
                // with other work lets sessions pile up.
                let more = match (self.kind, sessions) {
                    (Kind::File, Some((before, now))) if before > 0 && now > before => {
                        middle.saturating_mul(now - before) / before
                    }
                    _ => 0,
                };
                self.kind.allows(middle.saturating_add(more), last)
                    && self.kind.allows_after(first, last, after)
            }
            // Nothing seen is nothing shown.
            None => false,
        };
        let (middle, end) = thirds.unwrap_or_default();
        Judged {
            name: self.name.clone(),
            middle,
            end,
            after,
            flat,
        }
    }
}

/// What became of them, in a load that took so long.
pub(super) fn judge(series: &[Series], load: Duration) -> Vec<Judged> {
    let sessions = series.iter().find(|series| series.kind == Kind::Sessions);
    let sessions = sessions.and_then(|series| series.thirds(load));
    let judged = series.iter().map(|series| series.judge(load, sessions));
    judged.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Duration = Duration::from_secs(90);

    /// One value a second over the load, and one after it.
    fn series(kind: Kind, value: impl Fn(u64) -> u64, after: u64) -> Series {
        let values = (0..90).map(|second| (Duration::from_secs(second), value(second)));
        Series {
            name: "x".into(),
            kind,
            values: values.chain([(LOAD + LOAD, after)]).collect(),
        }
    }

    fn judge(kind: Kind, value: impl Fn(u64) -> u64, after: u64) -> Judged {
        series(kind, value, after).judge(LOAD, None)
    }

    #[test]
    fn a_file_may_grow_with_what_it_holds() {
        let sessions = |last: u64| {
            let value = move |second| if second < 60 { 100 } else { last };
            series(Kind::Sessions, value, 0)
        };
        let file = |second| if second < 60 { 100 << 20 } else { 150 << 20 };
        let file = series(Kind::File, file, 0);
        for (last, flat) in [(100, false), (110, false), (140, true), (90, false)] {
            let judged = super::judge(&[sessions(last), file.clone()], LOAD);
            assert_eq!(judged[1].flat, flat, "{last} {judged:?}");
        }
    }

    #[test]
    fn what_rises_and_falls_is_flat() {
        let saw = |second: u64| (30 + second % 20) << 20;
        assert!(judge(Kind::Memory, saw, 50 << 20).flat);
        assert!(judge(Kind::File, saw, 49 << 20).flat);
        assert!(judge(Kind::Descriptors, |second| second.min(1) * 500, 3).flat);
    }

    #[test]
    fn the_first_third_may_grow() {
        let judged = judge(Kind::Memory, |second| second.min(29) << 20, 29 << 20);
        assert!(judged.flat, "{judged:?}");
    }

    #[test]
    fn what_grows_is_not_flat() {
        assert!(!judge(Kind::Memory, |second| second << 20, 89 << 20).flat);
        assert!(!judge(Kind::File, |second| second << 18, 89 << 18).flat);
        assert!(!judge(Kind::Descriptors, |second| second * 10, 4).flat);
    }

    #[test]
    fn what_stays_behind_is_not_flat() {
        assert!(!judge(Kind::Sessions, |_| 400, 1).flat);
        assert!(judge(Kind::Sessions, |_| 400, 0).flat);
        let held = judge(Kind::Descriptors, |second| second.min(1) * 500, 500);
        assert!(!held.flat, "{held:?}");
    }

    #[test]
    fn nothing_may_stay_for_ever_at_any_time() {
        assert!(judge(Kind::Forever, |_| 0, 0).flat);
        assert!(!judge(Kind::Forever, |_| 1, 0).flat);
        assert!(!judge(Kind::Forever, |second| u64::from(second == 80), 0).flat);
        assert!(!judge(Kind::Forever, |_| 0, 1).flat);
    }

    #[test]
    fn nothing_seen_is_not_flat() {
        let series = Series {
            name: "x".into(),
            kind: Kind::Memory,
            values: Vec::new(),
        };
        assert!(!series.judge(LOAD, None).flat);
    }
}
