//! A fleet of MCP servers that shows what the adapters promise: any instance
//! serves any request of any session.

mod backend;
mod cli;
mod error;
mod load;
mod net;
mod node;
mod proxy;
mod report;
mod run;
mod server;
mod usage;

use std::process::ExitCode;

use clap::Parser;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};

use self::{
    backend::Store,
    cli::{Cli, Command, OutputArgs, ProxyArgs, ServeArgs},
    error::Failure,
    run::Outcome,
    server::{Instance, StateKey},
};

const PROMISE_BROKEN: u8 = 1;
pub(crate) const COULD_NOT_RUN: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = start_logging().and_then(|()| {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(Failure::context("cannot start a runtime"))?
            .block_on(dispatch(cli))
    });
    match done {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("fleet: {failure}");
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}

async fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    match cli.command.unwrap_or(Command::Run(cli.run)) {
        Command::Run(args) => show(&run::run(&args, until_signal()).await?, &args.output),
        Command::Load(args) => show(&run::load(&args).await?, &args.output),
        Command::Up(args) => run::up(&args, until_signal())
            .await
            .map(|()| ExitCode::SUCCESS),
        Command::Serve(args) => serve(args).await.map(|()| ExitCode::SUCCESS),
        Command::Proxy(args) => proxy(args).await.map(|()| ExitCode::SUCCESS),
    }
}

fn show(outcome: &Outcome, output: &OutputArgs) -> Result<ExitCode, Failure> {
    print!("{}", report::table(outcome));
    if let Some(path) = &output.report {
        std::fs::write(path, report::html(outcome))
            .map_err(Failure::context(format!("cannot write {}", path.display())))?;
        println!("report written to {}", path.display());
    }
    if output.json {
        println!("{}", outcome.summary.to_json()?);
    }
    Ok(if outcome.is_clean() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(PROMISE_BROKEN)
    })
}

async fn serve(args: ServeArgs) -> Result<(), Failure> {
    if args.with_parent {
        node::exit_with_parent()?;
    }
    net::raise_descriptor_limit();
    let listener = net::listen(args.listen)?;
    let addr = listener
        .local_addr()
        .map_err(Failure::context("cannot tell the port"))?;
    let url = args.backend.url.as_deref();
    let store = Store::open(args.backend.backend, url, args.session_ttl).await?;
    let name = args.name.unwrap_or_else(|| addr.to_string());
    let key = match node::read_key()? {
        Some(key) => key,
        None => StateKey::generate()?,
    };
    let ready = || println!("listening on http://{addr}/mcp");
    let mounted = store.mount(Instance::new(name, &key), args.session_ttl);
    node::serve(listener, mounted, until_signal(), ready).await
}

async fn proxy(args: ProxyArgs) -> Result<(), Failure> {
    net::raise_descriptor_limit();
    let listener = net::listen(args.listen)?;
    let addr = listener
        .local_addr()
        .map_err(Failure::context("cannot tell the port"))?;
    println!("listening on http://{addr}");
    proxy::serve(listener, args.policy, args.upstream, until_signal()).await
}

/// Cancelled when the process is asked to stop.
fn until_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        if let Err(failure) = net::stop_signal().await {
            // Without signals, only a kill ends the process.
            tracing::error!("{failure}");
            return;
        }
        token.cancel();
    });
    stop
}

/// Logs to stderr what `RUST_LOG` asks for; it takes targets and levels, such as `fleet=debug`.
fn start_logging() -> Result<(), Failure> {
    let wanted = std::env::var("RUST_LOG").unwrap_or_else(|_| "off".into());
    let filter: Targets = wanted
        .parse()
        .map_err(Failure::context("RUST_LOG cannot be read"))?;
    tracing_subscriber::registry()
        .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr))
        .with(filter)
        .init();
    Ok(())
}
