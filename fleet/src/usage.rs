//! What a process takes of the machine.

use std::{fs, io, path::PathBuf};

/// Memory and descriptors of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Resident memory, in bytes.
    pub(crate) memory: u64,
    /// Open files and sockets.
    pub(crate) descriptors: u64,
}

/// What the process `pid` takes now.
///
/// # Errors
/// `Unsupported` where the system shows no processes as files; else as reading
/// them gives it, `NotFound` for a process that has ended.
pub(crate) fn of(pid: u32) -> io::Result<Usage> {
    if !cfg!(target_os = "linux") {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let status = fs::read_to_string(folder.join("status"))?;
    // A process that has ended and was not waited for has no such line.
    let memory = resident(&status).ok_or(io::ErrorKind::NotFound)?;
    let descriptors = fs::read_dir(folder.join("fd"))?.count();
    Ok(Usage {
        memory,
        descriptors: u64::try_from(descriptors).unwrap_or(u64::MAX),
    })
}

fn resident(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(resident("VmPeak: 9 kB\nVmRSS:\t  12 kB\n"), Some(12 * 1024));
        assert_eq!(resident("State:\tZ (zombie)\n"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_has_memory_and_descriptors() {
        let before = of(std::process::id()).unwrap();
        assert!(
            before.memory > 100_000 && before.descriptors > 2,
            "{before:?}"
        );
        assert_eq!(of(u32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
