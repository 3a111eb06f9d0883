//! `cargo xtask bench <adapter>` runs this: each gate is a ratio to the raw
//! engine in the same run, so that a busy machine disturbs both.

mod gate;
mod http;
mod memory;
mod postgres;
mod redis;
mod sdk;
mod sqlite;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Adapter {
    Memory,
    Postgres,
    Redis,
    Sqlite,
}

#[derive(Debug, Parser)]
#[command(about = "Measures the gates of an adapter")]
struct Arguments {
    /// Whose gates.
    adapter: Adapter,
    /// Only these gates, by name: `M1`, `M2` (with `M2b`), `H1`; `RD1` (with `RD2`),
    /// `RD3` (with `RD4`), `H2` (with `H2c`); `PG1` (with `PG2`), `PG3`, `PG4`.
    #[arg(
        long = "gate",
        value_name = "GATE",
        value_parser = ["M1", "M2", "H1", "RD1", "RD3", "H2", "PG1", "PG3", "PG4"]
    )]
    gates: Vec<String>,
    /// Interleaved rounds per gate.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(5..))]
    rounds: u16,
    /// Sessions of the memory gate M2.
    #[arg(long, default_value_t = 1_000_000)]
    sessions: usize,
    /// Where the figures and the plot go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

impl Arguments {
    fn wants(&self, gate: &str) -> bool {
        self.gates.is_empty() || self.gates.iter().any(|wanted| wanted == gate)
    }
}

async fn run(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let machine = gate::Machine::measure()?;
    let mut gates = Vec::new();
    match arguments.adapter {
        Adapter::Memory => {
            if arguments.wants("M1") {
                gates.push(memory::m1(arguments.rounds.into()).await?);
            }
            if arguments.wants("M2") {
                gates.extend(memory::m2(arguments.sessions).await?);
            }
            if arguments.wants("H1") {
                gates.extend(http::h1(arguments.rounds.into()).await?);
            }
        }
        Adapter::Postgres => {
            let mut bench = postgres::Bench::start().await?;
            if arguments.wants("PG1") {
                gates.extend(bench.appends(arguments.rounds.into()).await?);
            }
            if arguments.wants("PG3") {
                gates.push(bench.crowded(arguments.rounds.into()).await?);
            }
            if arguments.wants("PG4") {
                gates.push(bench.latencies(arguments.rounds.into()).await?);
            }
        }
        Adapter::Redis => {
            let bench = redis::Bench::start().await?;
            if arguments.wants("RD1") {
                gates.extend(bench.appends(arguments.rounds.into()).await?);
            }
            if arguments.wants("RD3") {
                gates.extend(bench.latencies(arguments.rounds.into()).await?);
            }
            if arguments.wants("H2") {
                gates.extend(bench.h2(arguments.rounds.into()).await?);
            }
        }
        Adapter::Sqlite => gates.extend(sqlite::gates(arguments.rounds.into()).await?),
    }
    for gate in &gates {
        println!("{gate}");
    }
    println!("{machine}");
    gate::write(&arguments.out, &gates, &machine)?;
    Ok(gates.iter().all(gate::Gate::is_reached))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let listens = std::env::var_os(sqlite::LISTENER);
    // One thread: what is compared is work, not how two cores are shared.
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::from(2);
        }
    };
    if let Some(file) = listens {
        return match runtime.block_on(sqlite::listen(&file)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("the second process: {error}");
                ExitCode::from(2)
            }
        };
    }
    match runtime.block_on(run(&arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the gates could not be measured: {error}");
            ExitCode::from(2)
        }
    }
}
