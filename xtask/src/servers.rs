//! The server programs that tests start.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::command::Failure;

/// A program, where to look for it beside the path, and its Debian package.
struct Wanted {
    programs: &'static [&'static str],
    folders: fn() -> Vec<PathBuf>,
    package: &'static str,
}

const WANTED: &[Wanted] = &[
    Wanted {
        programs: &["redis-server", "valkey-server"],
        folders: Vec::new,
        package: "redis-server",
    },
    Wanted {
        programs: &["initdb"],
        folders: versions_of_postgres,
        package: "postgresql",
    },
    Wanted {
        programs: &["pgbouncer"],
        folders: || vec![PathBuf::from("/usr/sbin")],
        package: "pgbouncer",
    },
];

/// Debian keeps each version in a folder of its own.
fn versions_of_postgres() -> Vec<PathBuf> {
    let entries = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect()
}

impl Wanted {
    fn is_there(&self) -> bool {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut folders = env::split_paths(&path).chain((self.folders)());
        folders.any(|folder| {
            let mut programs = self.programs.iter();
            programs.any(|program| folder.join(program).is_file())
        })
    }
}

/// Installs what is missing where that is Debian and this is root; anywhere else
/// it says what to install.
pub(crate) fn provide() -> Result<(), Failure> {
    let missing: Vec<_> = WANTED
        .iter()
        .filter(|wanted| !wanted.is_there())
        .map(|wanted| wanted.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    if !is_debian() || !is_root() {
        return Err(Failure::new(format!(
            "the tests start servers of their own, and some are not installed. Install what \
             Debian calls {packages} (there: `sudo apt-get install {packages}`) and try again"
        )));
    }
    eprintln!("==> servers: the tests need {packages}: installing");
    apt_get(&["update"])?;
    let install = ["install", "--yes", "--no-install-recommends"];
    apt_get(&[&install[..], &missing].concat())
}

fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists()
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

fn apt_get(args: &[&str]) -> Result<(), Failure> {
    let status = Command::new("apt-get")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .status()
        .map_err(Failure::io("cannot run apt-get"))?;
    if status.success() {
        return Ok(());
    }
    let line = args.join(" ");
    Err(Failure::new(format!("apt-get {line} failed ({status})")))
}
