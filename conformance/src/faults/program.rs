//! Server programs of our own: a free port, a folder of their own, and gone
//! when the test is, however it ends.

use std::{
    fmt, fs, io,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, kill_process};

/// Waits for the end of whoever started it, which closes its input, and then
/// ends the server: a test that is killed leaves nothing behind either. `keep`
/// as a line before that leaves the folder.
const WATCH: &str = r#"
trap '' INT TERM HUP
log=$1 stop=$2 folder=$3; shift 3
"$@" </dev/null >"$log" 2>&1 &
pid=$!
echo $pid
exec >/dev/null
read -r word
kill -s "$stop" $pid
kill -s CONT $pid
(sleep 5; kill -s KILL $pid) 2>/dev/null &
timer=$!
wait $pid
kill -s KILL $timer 2>/dev/null
[ "$word" = keep ] || rm -rf "$folder"
"#;

/// A port of 127.0.0.1 that nobody uses just now.
///
/// # Errors
/// Where there is none.
pub fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

/// A signal to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// SIGKILL: it ends at once, with no last words.
    Kill,
    /// SIGSTOP: it stands still; its connections stay open.
    Stop,
    /// SIGCONT: it goes on.
    Continue,
    /// SIGTERM: it is asked to end.
    Terminate,
    /// SIGINT.
    Interrupt,
    /// SIGQUIT.
    Quit,
}

impl Signal {
    /// Sends it to a process by its id.
    ///
    /// # Errors
    /// Where there is no such process, or it is somebody else's.
    pub fn send(self, pid: u32) -> io::Result<()> {
        use rustix::process::Signal as Raw;
        let raw = match self {
            Self::Kill => Raw::KILL,
            Self::Stop => Raw::STOP,
            Self::Continue => Raw::CONT,
            Self::Terminate => Raw::TERM,
            Self::Interrupt => Raw::INT,
            Self::Quit => Raw::QUIT,
        };
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(kill_process(pid, raw)?)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Kill => "KILL",
            Self::Stop => "STOP",
            Self::Continue => "CONT",
            Self::Terminate => "TERM",
            Self::Interrupt => "INT",
            Self::Quit => "QUIT",
        }
    }
}

/// A user that a server runs as.
#[derive(Debug, Clone, Copy)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// How a server is started, and how it is known to be ready.
pub(crate) struct Recipe {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) user: Option<User>,
    /// What ends it cleanly and soon.
    pub(crate) stop: Signal,
    pub(crate) is_ready: fn(SocketAddr) -> bool,
}

/// A server program that runs on a port of 127.0.0.1 with a folder of its own.
/// Dropping it ends the server and removes the folder, and so does the end of
/// the process that started it, however it comes.
pub struct Program {
    recipe: Recipe,
    folder: PathBuf,
    port: u16,
    pid: u32,
    watch: Option<Child>,
}

/// A folder of its own, given to `user`.
pub(crate) fn own_folder(name: &str, user: Option<User>) -> io::Result<PathBuf> {
    let folder = tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .tempdir()?
        .keep();
    if let Some(user) = user {
        chown(&folder, Some(user.uid), Some(user.gid))?;
    }
    Ok(folder)
}

impl Program {
    /// Starts the server on `port` and waits until it is ready.
    pub(crate) fn start(recipe: Recipe, folder: PathBuf, port: u16) -> io::Result<Self> {
        let mut program = Self {
            recipe,
            folder,
            port,
            pid: 0,
            watch: None,
        };
        program.launch()?;
        Ok(program)
    }

    fn launch(&mut self) -> io::Result<()> {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", WATCH, "watch"])
            .arg(self.log())
            .arg(self.recipe.stop.name())
            .arg(&self.folder)
            .arg(&self.recipe.program)
            .args(&self.recipe.args)
            .current_dir(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        if let Some(user) = self.recipe.user {
            command.uid(user.uid).gid(user.gid);
        }
        let mut watch = command.spawn()?;
        let mut line = String::new();
        if let Some(output) = watch.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        self.watch = Some(watch);
        self.pid = line.trim().parse().map_err(io::Error::other)?;
        self.wait_until_ready()
    }

    fn wait_until_ready(&self) -> io::Result<()> {
        let until = Instant::now() + Duration::from_secs(30);
        while !(self.recipe.is_ready)(self.addr()) {
            if self.has_ended() || Instant::now() > until {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                let last: Vec<_> = log.lines().rev().take(10).collect();
                let last: Vec<_> = last.into_iter().rev().collect();
                return Err(io::Error::other(format!(
                    "{} did not become ready:\n{}",
                    self.recipe.name,
                    last.join("\n")
                )));
            }
            pause(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Where the system tells; elsewhere the time runs out.
    fn has_ended(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid));
        // The name in brackets may contain anything; the state follows it.
        stat.is_ok_and(|stat| {
            let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
            state.is_some_and(|state| state.starts_with('Z'))
        })
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        signal.send(self.pid)
    }

    /// Ends it, with SIGKILL where `hard`, and keeps its folder.
    ///
    /// # Errors
    /// Where it had ended before.
    pub fn end(&mut self, hard: bool) -> io::Result<()> {
        if hard {
            self.signal(Signal::Kill)?;
        }
        self.dismiss(b"keep\n")
    }

    /// Starts it again on the same port and folder, after [`end`](Self::end).
    ///
    /// # Errors
    /// Where it does not become ready.
    pub fn restart(&mut self) -> io::Result<()> {
        self.dismiss(b"keep\n")?;
        self.launch()
    }

    fn dismiss(&mut self, word: &[u8]) -> io::Result<()> {
        let Some(mut watch) = self.watch.take() else {
            return Ok(());
        };
        if let Some(mut input) = watch.stdin.take() {
            // It may be gone; then there is nobody to be told.
            let _ = input.write_all(word);
        }
        watch.wait().map(drop)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.dismiss(b"remove\n");
        // The server may have been ended before, with its folder kept.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("name", &self.recipe.name)
            .field("pid", &self.pid)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// Waits where no runtime is.
pub(crate) fn pause(time: Duration) {
    let (_sender, receiver) = std::sync::mpsc::channel::<()>();
    // Nobody sends: it is a wait that blocks only the thread of a fixture.
    let _ = receiver.recv_timeout(time);
}
