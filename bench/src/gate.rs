//! A gate: a ratio of two figures of one run, and how far it has to reach.

use std::{fmt, fs, io, path::Path, time::Duration};

use serde::Serialize;

/// Whether more or less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Better {
    More,
    Less,
}

/// The result of a gate, over several interleaved rounds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Gate {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) reach: f64,
    pub(crate) goal: f64,
    /// Ours and the raw engine's figure of each round.
    pub(crate) rounds: Vec<(f64, f64)>,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Gate {
    /// The median of the rounds' ratios: what disturbs a round disturbs both of
    /// its figures.
    pub(crate) fn ratio(&self) -> f64 {
        median(self.rounds.iter().map(|(ours, raw)| ours / raw).collect())
    }

    pub(crate) fn is_reached(&self) -> bool {
        match self.better {
            Better::More => self.ratio() >= self.reach,
            Better::Less => self.ratio() <= self.reach,
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ours = median(self.rounds.iter().map(|round| round.0).collect());
        let raw = median(self.rounds.iter().map(|round| round.1).collect());
        let verdict = if self.is_reached() {
            "ok"
        } else {
            "NOT REACHED"
        };
        write!(
            f,
            "{} {:.3} ({ours:.0} against {raw:.0} {}) reach {} goal {}  {verdict}: {}",
            self.name,
            self.ratio(),
            self.unit,
            self.reach,
            self.goal,
            self.what,
        )
    }
}

/// How quiet the machine was.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    load: String,
    fdatasync_us: u128,
}

impl Machine {
    pub(crate) fn measure() -> io::Result<Self> {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_else(|_| "unknown".into());
        let path = std::env::temp_dir().join(format!("mcp-adapters-sync-{}", std::process::id()));
        let file = fs::File::create(&path)?;
        let mut times = Vec::new();
        for _ in 0..9 {
            io::Write::write_all(&mut &file, &[0; 512])?;
            let start = std::time::Instant::now();
            file.sync_data()?;
            times.push(start.elapsed());
        }
        fs::remove_file(path)?;
        times.sort();
        Ok(Self {
            load: load.trim().into(),
            fdatasync_us: times.get(4).map_or(0, Duration::as_micros),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "load {}; fdatasync {} us", self.load, self.fdatasync_us)
    }
}

/// Writes the figures as JSON and as a page with a bar per gate.
pub(crate) fn write(folder: &Path, gates: &[Gate], machine: &Machine) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let json = serde_json::json!({"machine": machine, "gates": gates});
    fs::write(folder.join("gates.json"), format!("{json:#}\n"))?;
    let row = 46;
    let mut bars = String::new();
    for (index, gate) in gates.iter().enumerate() {
        let y = 20 + index * row;
        let scale =
            |value: f64| (value / gate.goal.max(gate.reach).max(gate.ratio()) * 400.0).max(1.0);
        let color = if gate.is_reached() { "#2a7" } else { "#c33" };
        bars += &format!(
            "<text x='10' y='{}'>{} {}</text><rect x='10' y='{}' width='{:.0}' height='14' fill='{color}'/>\
             <line x1='{x:.0}' x2='{x:.0}' y1='{}' y2='{}' stroke='black'/><text x='430' y='{}'>{:.3} (reach {}, goal {})</text>\n",
            y,
            gate.name,
            gate.what,
            y + 6,
            scale(gate.ratio()),
            y + 3,
            y + 23,
            y + 18,
            gate.ratio(),
            gate.reach,
            gate.goal,
            x = 10.0 + scale(gate.reach),
        );
    }
    let height = 40 + gates.len() * row;
    let svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='760' height='{height}' font-family='sans-serif' font-size='13'>\n{bars}<text x='10' y='{}'>{machine}</text></svg>\n",
        height - 6
    );
    fs::write(folder.join("gates.svg"), svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_ratios_decides_in_its_direction() {
        let gate = |better, rounds: &[(f64, f64)]| Gate {
            name: "T",
            what: "test",
            unit: "/s",
            better,
            reach: 0.5,
            goal: 0.8,
            rounds: rounds.to_vec(),
        };
        let rounds = [(60.0, 100.0), (1.0, 100.0), (70.0, 100.0)];
        assert!(gate(Better::More, &rounds).is_reached());
        assert!(!gate(Better::Less, &rounds).is_reached());
        assert!(!gate(Better::More, &[(49.0, 100.0)]).is_reached());
        assert!(!gate(Better::More, &[]).is_reached());
    }
}
