//! An instance that is a process: `fleet serve` of this very program.
//!
//! It is never left behind. Dropping it kills it; and its standard input is a
//! pipe that only this process holds open, so that it ends when this process
//! does, in whatever way.

use std::{
    collections::VecDeque,
    io::Read as _,
    net::SocketAddr,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    task::JoinHandle,
};

use super::{DRAIN, Fleet, LINGER, NotStarted, SETTLE};
use crate::{error::Failure, net, server::StateKey};

/// How long a process may take until it listens.
const START: Duration = Duration::from_secs(30);
/// How long a process may take to end after SIGTERM: its drain, and the way to
/// it. Then it is killed.
const STOP: Duration = SETTLE
    .saturating_add(DRAIN)
    .saturating_add(LINGER)
    .saturating_add(Duration::from_secs(8));
/// How long its last words may take after its end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Its last words, in bytes.
const KEPT: usize = 4096;
/// Environment variable with the key that all instances share. Command lines
/// are open to everybody on the machine, environments are not.
const KEY: &str = "FLEET_STATE_KEY";

#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    /// Closing it ends the process.
    _stdin: Option<ChildStdin>,
    words: Words,
}

/// The last that a process wrote to its standard error.
#[derive(Debug)]
struct Words {
    kept: Arc<Mutex<VecDeque<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts a process and waits until it listens.
    pub(super) async fn start(
        name: &str,
        addr: SocketAddr,
        fleet: &Fleet,
    ) -> Result<Self, NotStarted> {
        let mut process = Self::spawn(name, addr, fleet).map_err(NotStarted::Failed)?;
        let Some(stdout) = process.child.stdout.take() else {
            return Err(NotStarted::Failed(Failure::new(format!(
                "{name} has no output"
            ))));
        };
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        let read = tokio::time::timeout(START, stdout.read_line(&mut line)).await;
        if matches!(read, Ok(Ok(_))) && line.starts_with("listening on ") {
            // The pipe stays open, or its next line would end it.
            tokio::spawn(async move { tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await });
            return Ok(process);
        }
        Err(process.explain_failed_start(read.is_err()).await)
    }

    fn spawn(name: &str, addr: SocketAddr, fleet: &Fleet) -> Result<Self, Failure> {
        let program =
            std::env::current_exe().map_err(Failure::context("cannot find this program"))?;
        let mut command = Command::new(program);
        command
            .args([
                "serve",
                "--with-parent",
                "--backend",
                fleet.place.backend().as_str(),
            ])
            .args(["--listen", &addr.to_string(), "--name", name])
            .env(KEY, fleet.key.to_text())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(url) = fleet.place.url() {
            command.env(crate::cli::URL, url);
        }
        if let Some(ttl) = fleet.ttl {
            command.args(["--session-ttl", &format!("{}ms", ttl.as_millis())]);
        }
        // Ctrl-C at the terminal is for this process, which then ends the others.
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command
            .spawn()
            .map_err(Failure::context(format!("cannot start {name}")))?;
        Ok(Self {
            name: name.to_owned(),
            _stdin: child.stdin.take(),
            words: Words::of(child.stderr.take()),
            child,
        })
    }

    async fn explain_failed_start(&mut self, late: bool) -> NotStarted {
        let name = &self.name;
        if late {
            let text = format!("{name} does not listen after {} s", START.as_secs());
            return NotStarted::Failed(Failure::new(text));
        }
        let ended = tokio::time::timeout(LAST_WORDS, self.child.wait()).await;
        let how = match ended {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it still runs".to_owned(),
        };
        let words = self.words.last().await;
        let failure = Failure::new(format!("{name} did not start ({how}): {words}"));
        if words.contains(net::IN_USE) {
            NotStarted::PortInUse(failure)
        } else {
            NotStarted::Failed(failure)
        }
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    pub(super) async fn kill(mut self) -> Result<(), Failure> {
        self.check().await?;
        let name = &self.name;
        self.child
            .kill()
            .await
            .map_err(Failure::context(format!("cannot kill {name}")))
    }

    /// One that has ended by itself has failed.
    async fn check(&mut self) -> Result<(), Failure> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.died(status).await),
            Err(error) => Err(Failure::context(format!("cannot look after {}", self.name))(error)),
        }
    }

    async fn died(&mut self, status: ExitStatus) -> Failure {
        let words = self.words.last().await;
        Failure::new(format!("{} died ({status}): {words}", self.name))
    }

    pub(super) async fn stop(mut self) -> Result<(), Failure> {
        self.check().await?;
        self.terminate()?;
        match tokio::time::timeout(STOP, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.died(status).await),
            Ok(Err(error)) => Err(Failure::context(format!("cannot stop {}", self.name))(
                error,
            )),
            // Dropping it kills it.
            Err(_) => Err(Failure::new(format!(
                "{} did not end within {} s of SIGTERM",
                self.name,
                STOP.as_secs()
            ))),
        }
    }

    #[cfg(unix)]
    fn terminate(&self) -> Result<(), Failure> {
        use rustix::process::{Pid, Signal, kill_process};
        let pid = self
            .child
            .id()
            .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let Some(pid) = pid else {
            return Ok(());
        };
        kill_process(pid, Signal::TERM)
            .map_err(Failure::context(format!("cannot stop {}", self.name)))
    }

    /// Without signals there is no drain.
    #[cfg(not(unix))]
    fn terminate(&mut self) -> Result<(), Failure> {
        self.child
            .start_kill()
            .map_err(Failure::context(format!("cannot stop {}", self.name)))
    }
}

impl Words {
    fn of(stderr: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let keep = Arc::clone(&kept);
        // Who asks for logs wants to see them.
        let shown = std::env::var_os("RUST_LOG").is_some();
        let reader = stderr.map(|mut stderr| {
            tokio::spawn(async move {
                let mut bytes = [0; 1024];
                while let Ok(read @ 1..) = stderr.read(&mut bytes).await {
                    let Some(bytes) = bytes.get(..read) else {
                        return;
                    };
                    if shown {
                        eprint!("{}", String::from_utf8_lossy(bytes));
                    }
                    let mut kept = keep.lock();
                    kept.extend(bytes);
                    let surplus = kept.len().saturating_sub(KEPT);
                    kept.drain(..surplus);
                }
            })
        });
        Self { kept, reader }
    }

    /// What it said, once it has ended.
    async fn last(&mut self) -> String {
        if let Some(reader) = self.reader.take() {
            // A process of its own making may hold the pipe open.
            let _ = tokio::time::timeout(LAST_WORDS, reader).await;
        }
        let bytes: Vec<u8> = self.kept.lock().iter().copied().collect();
        match String::from_utf8_lossy(&bytes).trim() {
            "" => "it said nothing".to_owned(),
            words => words.to_owned(),
        }
    }
}

/// The key that the fleet's instances share, where this is one of them.
pub(crate) fn read_key() -> Result<Option<StateKey>, Failure> {
    match std::env::var(KEY) {
        Ok(text) => StateKey::from_text(&text)
            .ok_or_else(|| Failure::new(format!("{KEY} holds no key")))
            .map(Some),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(Failure::context(format!("{KEY} cannot be read"))(error)),
    }
}

/// Ends this process as soon as its standard input is closed. It is not drained:
/// whoever could have asked for that is gone.
pub(crate) fn exit_with_parent() -> Result<(), Failure> {
    std::thread::Builder::new()
        .name("parent".into())
        .spawn(|| {
            let mut bytes = [0; 64];
            loop {
                match std::io::stdin().read(&mut bytes) {
                    Ok(1..) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Ok(0) | Err(_) => std::process::exit(i32::from(crate::COULD_NOT_RUN)),
                }
            }
        })
        .map(drop)
        .map_err(Failure::context("cannot watch for the end of the parent"))
}
