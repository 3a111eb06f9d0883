//! The file as the operating system sees it. Nothing here opens it: closing any
//! descriptor of a database drops all POSIX locks that the process has on it.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    error::{Done, SqliteError},
    options::SqliteOptions,
};

/// Which file it is: the device and the number of the inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    pub(crate) inode: u64,
}

/// Which file is at `path`; `None` where there is none, or where the system
/// does not tell.
pub(crate) fn identity(path: &Path) -> Done<Option<Identity>> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(of(&metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(unix)]
fn of(metadata: &std::fs::Metadata) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt as _;
    Some(Identity {
        device: metadata.dev(),
        inode: metadata.ino(),
    })
}

#[cfg(not(unix))]
fn of(_: &std::fs::Metadata) -> Option<Identity> {
    None
}

/// The log, which is beside the file itself, not beside a link that leads to it.
fn log(path: &Path) -> Done<PathBuf> {
    let mut name = std::fs::canonicalize(path)?.into_os_string();
    name.push("-wal");
    Ok(name.into())
}

/// The file and its log as they were when they were opened.
#[derive(Debug, Clone)]
pub(crate) struct Seal {
    path: PathBuf,
    file: Option<Identity>,
    log: PathBuf,
    log_is: Option<Identity>,
}

impl Seal {
    /// Of an open file: the log is there as long as a connection is.
    pub(crate) fn new(path: &Path, file: Option<Identity>) -> Done<Self> {
        let log = log(path)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            log_is: identity(&log)?,
            log,
        })
    }

    /// The log of the file.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// What is written to a file that has no name any more is lost with the
    /// last process that has it open.
    pub(crate) fn check(&self) -> Done<()> {
        if identity(&self.path)? == self.file && identity(&self.log)? == self.log_is {
            return Ok(());
        }
        Err(SqliteError::Replaced)
    }
}

/// Types of file systems that are behind a network, as `statfs` tells them.
const NETWORK: &[u64] = &[
    0x6969,      // NFS
    0x517b,      // SMB
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x0102_1997, // 9p
    0x00c3_6400, // Ceph
    0x5346_414f, // AFS
    0x6b41_4653, // kAFS
    0x7375_7245, // Coda
    0x564c,      // NCP
    0x0bd0_0bd0, // Lustre
    0x4750_4653, // GPFS
    0x0bad_face, // GlusterFS's own
    0x0116_1970, // GFS2
    0x7461_636f, // OCFS2
];

/// Refuses a path that SQLite takes for something else than a file, and a folder
/// whose file system does not keep locks.
pub(crate) fn check_path(options: &SqliteOptions) -> Done<()> {
    let path = &options.path;
    // An empty name is a file without one to SQLite, and this is no file at all.
    let named = !path.as_os_str().is_empty() && path != Path::new(":memory:");
    let other = std::fs::metadata(path).is_ok_and(|there| !there.is_file());
    if !named || other {
        return Err(SqliteError::NoRegularFile);
    }
    let folder = match options.path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        return Err(SqliteError::NoFolder);
    }
    let kind = options.file_system.or_else(|| file_system(folder));
    match kind.filter(|kind| NETWORK.contains(kind)) {
        Some(kind) => Err(SqliteError::NetworkFileSystem(kind)),
        None => Ok(()),
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn file_system(folder: &Path) -> Option<u64> {
    // The type has another width on each architecture; all known ones fit 32 bits.
    let kind = rustix::fs::statfs(folder).ok()?.f_type;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::unnecessary_cast,
        reason = "the type has another width on each architecture"
    )]
    Some(u64::from(kind as u32))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn file_system(_: &Path) -> Option<u64> {
    None
}

/// Another value after each start of the system.
pub(crate) fn boot() -> String {
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    read.map_or_else(|_| String::new(), |id| id.trim().to_owned())
}
