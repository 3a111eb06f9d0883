//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{backend::Backend, proxy::Policy};

/// Environment variable in place of `--url`.
pub(crate) const URL: &str = "FLEET_URL";

const AFTER_HELP: &str = "\
Without a command, `run` runs. A run ends with exit code 0 when nothing was lost,
duplicated, wrong or hung and no error came up; with 1 otherwise; with 2 when it
could not start.";

/// A fleet of MCP servers behind a proxy that routes everything to the wrong one.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start instances, the proxy and the clients, and report (the default)
    Run(RunArgs),
    /// Instances and the proxy without clients, until it is asked to stop
    Up(UpArgs),
    /// One instance of the example server
    Serve(ServeArgs),
    /// The proxy alone
    Proxy(ProxyArgs),
    /// The clients alone, against any MCP server that has the tools
    Load(LoadArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BackendArgs {
    /// Where the instances keep what they share
    #[arg(long, value_enum, default_value_t = Backend::DEFAULT)]
    pub(crate) backend: Backend,
    /// The file or server of the backend; memory has none
    // On a command line everybody could read its password.
    #[arg(long, env = URL, hide_env_values = true)]
    pub(crate) url: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct FleetArgs {
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    /// How many instances: processes, or services of this one with the memory backend
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) instances: u16,
    /// How the proxy spreads requests over the instances
    #[arg(long, value_enum, default_value_t = Policy::Anti)]
    pub(crate) policy: Policy,
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) fleet: FleetArgs,
    /// Address that the proxy listens on; port 0 is a free one
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) fleet: FleetArgs,
    #[command(flatten)]
    pub(crate) size: SizeArgs,
    /// Kill the instances one after the other during the load, at random times, and
    /// start them again
    #[arg(long, conflicts_with = "soak")]
    pub(crate) kill: bool,
    /// Keep that many sessions busy for so long, such as 10m, with clients that never
    /// send DELETE, and see that file, memory and descriptors do not grow
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) soak: Option<Duration>,
    /// After how long idle sessions expire [default: half an hour, in a soak 15s]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) session_ttl: Option<Duration>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SizeArgs {
    /// Client sessions, half of the SDK's client and half of raw ones
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) sessions: u32,
    /// Tool calls per session
    #[arg(long, default_value_t = 52)]
    pub(crate) calls: u32,
    /// Deadline of every wait, in seconds; what takes longer counts as hung [default: 30, with kills 60]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: Option<u64>,
    /// Seed of scripts, cuts and kills [default: random, printed]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}

impl SizeArgs {
    /// The deadline: where instances die, a dead owner is first waited out.
    pub(crate) fn patience(&self, kills: bool) -> Duration {
        let default = if kills { 60 } else { 30 };
        Duration::from_secs(self.timeout.unwrap_or(default))
    }

    /// The seed, if need be a random one.
    pub(crate) fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| fastrand::u64(..))
    }
}

#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// Print the result as one JSON object on the last line
    #[arg(long)]
    pub(crate) json: bool,
    /// Write the result with plots to this HTML file
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) backend: BackendArgs,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:8000")]
    pub(crate) listen: SocketAddr,
    /// What `whoami` returns [default: the address]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// After how long idle sessions expire [default: half an hour]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) session_ttl: Option<Duration>,
    /// End at once when standard input is closed
    #[arg(long, hide = true)]
    pub(crate) with_parent: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// How requests are spread over the upstreams
    #[arg(long, value_enum, default_value_t = Policy::Anti)]
    pub(crate) policy: Policy,
    /// Address of an instance; repeat for each
    #[arg(long, required = true, num_args = 1..)]
    pub(crate) upstream: Vec<SocketAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The server's address, such as http://127.0.0.1:8080/mcp
    #[arg(long)]
    pub(crate) url: String,
    #[command(flatten)]
    pub(crate) size: SizeArgs,
    /// Instances are killed meanwhile: count failed connections as expected errors
    #[arg(long)]
    pub(crate) expect_kills: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// A time such as `10m`, `90s`, `500ms` or `1h`; without a unit, seconds.
fn time(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let unit_ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("the unit must be ms, s, m or h".into()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit_ms))
        .filter(|ms| *ms > 0)
        .map(Duration::from_millis)
        .ok_or_else(|| "a time such as 10m or 90s is wanted".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_is_run() {
        let cli = Cli::try_parse_from(["fleet", "--sessions", "5", "--policy", "round-robin"]);
        let cli = cli.unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.run.size.sessions, 5);
        assert_eq!(cli.run.fleet.policy, Policy::RoundRobin);
    }

    #[test]
    fn times_have_units() {
        for (text, ms) in [("90", 90_000), ("1s", 1_000), ("10m", 600_000), ("5ms", 5)] {
            assert_eq!(time(text), Ok(Duration::from_millis(ms)));
        }
        for bad in ["", "0s", "m", "-1s", "1.5m", "1d", "99999999999999999999s"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bad_flags_are_refused() {
        for bad in [
            &["fleet", "--unknown"][..],
            &["fleet", "--instances", "0"],
            &["fleet", "--policy", "sticky"],
            &["fleet", "--backend", "paper"],
            &["fleet", "proxy"],
            &["fleet", "--soak", "10x"],
            &["fleet", "--soak", "10m", "--kill"],
            &["fleet", "load"],
            &["fleet", "serve", "--listen", "nowhere"],
        ] {
            let error = Cli::try_parse_from(bad).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad:?}");
        }
    }
}
