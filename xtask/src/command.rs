//! Runs cargo and says what failed.

use std::{
    fmt,
    path::Path,
    process::{Command, Stdio},
};

/// Why a task ended early.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Says what could not be done and why.
    pub(crate) fn io(what: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |error| Self(format!("{what}: {error}"))
    }
}

/// One run of cargo at the root of the repository.
#[derive(Debug)]
pub(crate) struct Cargo {
    step: &'static str,
    command: Command,
    hint: Option<&'static str>,
}

impl Cargo {
    /// `step` names the run in messages.
    pub(crate) fn new<A: AsRef<str>>(
        step: &'static str,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        // The cargo that runs this program, not the first one on the path.
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command.current_dir(root());
        for arg in args {
            command.arg(arg.as_ref());
        }
        Self {
            step,
            command,
            hint: None,
        }
    }

    /// Adds to an environment variable of compiler flags.
    pub(crate) fn env(mut self, name: &str, flags: &str) -> Self {
        let given = std::env::var(name).unwrap_or_default();
        self.command.env(name, format!("{given} {flags}").trim());
        self
    }

    /// What to do when it fails.
    pub(crate) fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }

    /// Runs it; the output goes to the terminal.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        eprintln!("==> {}: {}", self.step, self.line());
        let status = self
            .command
            .status()
            .map_err(|error| Failure(format!("{}: cannot run cargo: {error}", self.step)))?;
        if status.success() {
            return Ok(());
        }
        let hint = self
            .hint
            .map(|hint| format!("; {hint}"))
            .unwrap_or_default();
        Err(Failure(format!(
            "{} failed ({status}): {}{hint}",
            self.step,
            self.line()
        )))
    }

    /// Whether it succeeds; nothing is shown.
    pub(crate) fn works(mut self) -> bool {
        self.command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    fn line(&self) -> String {
        let mut line = String::from("cargo");
        for arg in self.command.get_args() {
            line.push(' ');
            line.push_str(&arg.to_string_lossy());
        }
        line
    }
}

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}
