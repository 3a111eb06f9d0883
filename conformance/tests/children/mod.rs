//! Children that end, stand still, or are none.

use std::{
    env,
    io::{PipeReader, Read as _},
    process::{Command, ExitCode},
    sync::mpsc,
    time::Duration,
};

use futures::{FutureExt, StreamExt};
use libtest_mimic::{Arguments, Trial};
use mcp_adapter_conformance::{
    faults::Signal,
    process::{self, Remote},
};
use mcp_adapter_core::{Applied, ErrorKind, InstanceId, storage::Storage};
use mcp_adapter_memory::MemoryStorage;
use tokio::runtime::Runtime;

const ROLE: &str = "MCP_TEST_ROLE";
/// Never reached, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn main() -> ExitCode {
    match env::var(ROLE).as_deref() {
        Ok("storage") => return process::serve(|| Ok(MemoryStorage::new())),
        Ok("broken") => return process::serve(|| Err::<MemoryStorage, _>("no such file".into())),
        Ok("talker") => {
            println!("this is no frame");
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let trial = |name: &str, run: fn()| {
        Trial::test(name, move || {
            run();
            Ok(())
        })
    };
    let trials = vec![
        trial("a_child_that_is_killed_is_unavailable", killed),
        trial("a_child_that_stands_still_is_late", late),
        trial("a_caller_that_goes_breaks_nothing", gone),
        trial("a_child_ends_with_its_last_handle", dropped),
        trial("a_child_is_killed_with_its_runtime", shut_down),
        trial("what_is_no_storage_does_not_start", no_storage),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn command(role: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.env(ROLE, role);
    command
}

async fn start(patience: Duration) -> Remote {
    let started = Remote::start("memory", command("storage"), patience).await;
    started.unwrap()
}

/// A child, and a pipe that ends when it does.
async fn watched() -> (Remote, PipeReader) {
    let (life, held) = std::io::pipe().unwrap();
    let mut command = command("storage");
    command.stderr(held);
    let remote = Remote::start("memory", command, PATIENCE).await.unwrap();
    (remote, life)
}

/// Waits for the end of the child.
fn see_it_end(mut life: PipeReader) {
    let (end, ended) = mpsc::channel();
    std::thread::spawn(move || end.send(life.read_to_end(&mut Vec::new())));
    ended.recv_timeout(PATIENCE).unwrap().unwrap();
}

fn send(remote: &Remote, signal: Signal) {
    signal.send(remote.pid().unwrap()).unwrap();
}

fn on_a_runtime(test: impl Future<Output = ()>) {
    Runtime::new().unwrap().block_on(test);
}

fn killed() {
    on_a_runtime(async {
        let (remote, me) = (start(PATIENCE).await, InstanceId::generate());
        remote.attach(me).await.unwrap();
        let mut knocks = remote.doorbell(me).await.unwrap();
        send(&remote, Signal::Stop);
        let mut step = remote.stats();
        assert!(step.as_mut().now_or_never().is_none());
        send(&remote, Signal::Kill);
        let error = step.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.applied(), Applied::Unknown);
        assert!(knocks.next().await.is_none());
        let error = remote.stats().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.applied(), Applied::No);
    });
}

fn late() {
    on_a_runtime(async {
        let remote = start(Duration::from_secs(3)).await;
        send(&remote, Signal::Stop);
        let error = remote.stats().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert_eq!(error.applied(), Applied::Unknown);
        send(&remote, Signal::Continue);
        remote.stats().await.unwrap();
    });
}

fn gone() {
    on_a_runtime(async {
        let (remote, me) = (start(PATIENCE).await, InstanceId::generate());
        send(&remote, Signal::Stop);
        for _ in 0..50 {
            assert!(remote.stats().now_or_never().is_none());
            assert!(remote.doorbell(me).now_or_never().is_none());
        }
        send(&remote, Signal::Continue);
        let generation = remote.attach(me).await.unwrap();
        assert_eq!(remote.attach(me).await.unwrap(), generation);
    });
}

fn dropped() {
    on_a_runtime(async {
        let (remote, life) = watched().await;
        let knocks = remote.doorbell(InstanceId::generate()).await.unwrap();
        drop(remote);
        drop(knocks);
        tokio::task::spawn_blocking(|| see_it_end(life))
            .await
            .unwrap();
    });
}

fn shut_down() {
    let runtime = Runtime::new().unwrap();
    let (remote, life) = runtime.block_on(watched());
    // It cannot end by itself.
    send(&remote, Signal::Stop);
    runtime.shutdown_timeout(PATIENCE);
    see_it_end(life);
    drop(remote);
}

fn no_storage() {
    on_a_runtime(async {
        let commands = [
            command("broken"),
            command("talker"),
            Command::new("/no/such/program"),
        ];
        for command in commands {
            let started = Remote::start("memory", command, PATIENCE).await;
            assert!(started.is_err(), "{started:?}");
        }
    });
}
