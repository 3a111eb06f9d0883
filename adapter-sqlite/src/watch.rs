//! What says that somebody may have committed.

use std::{path::Path, time::Duration};

use crate::lock::sleep;

/// How long a change is waited for, at the longest.
pub(crate) const LONGEST: Duration = Duration::from_millis(100);
/// Without a watch: how often to look.
const POLL: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub(crate) struct Watch {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    inotify: Option<std::os::fd::OwnedFd>,
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux {
    use std::{mem::MaybeUninit, os::fd::OwnedFd, path::Path, time::Duration};

    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        fs::inotify::{self, CreateFlags, WatchFlags},
    };

    /// Watches the log of the file: it is named, not opened.
    pub(super) fn watch(log: &Path) -> Option<OwnedFd> {
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let inotify = inotify::init(flags).ok()?;
        inotify::add_watch(&inotify, log, WatchFlags::MODIFY).ok()?;
        Some(inotify)
    }

    /// Whether it was written to within `time`.
    pub(super) fn wait(inotify: &OwnedFd, time: Duration) -> bool {
        let time = Timespec::try_from(time).ok();
        let mut fds = [PollFd::new(inotify, PollFlags::IN)];
        if poll(&mut fds, time.as_ref()) != Ok(1) {
            return false;
        }
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(inotify, &mut buffer);
        while reader.next().is_ok() {}
        true
    }
}

impl Watch {
    /// On the log of an open file.
    pub(crate) fn new(log: &Path, watch: bool) -> Self {
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let _ = (log, watch);
        Self {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            inotify: watch.then(|| linux::watch(log)).flatten(),
        }
    }

    /// Waits until somebody has written, or may have. Whether somebody has for
    /// sure.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(inotify) = &self.inotify {
            return linux::wait(inotify, time);
        }
        sleep(time.min(POLL));
        false
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_watch_notices_a_write_and_a_poll_only_the_time() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        std::fs::write(&log, "1").unwrap();
        let far = Duration::from_secs(60);
        let watch = Watch::new(&log, true);
        let poll = Watch::new(&log, false);
        std::fs::write(&log, "2").unwrap();
        let since = Instant::now();
        assert!(watch.wait(far), "it was written");
        assert!(!poll.wait(far), "whether it was written it cannot tell");
        assert!(since.elapsed() < far);
        assert!(!watch.wait(Duration::from_millis(1)), "only once");
        // Where there is nothing to watch it looks now and then.
        let none = Watch::new(&folder.path().join("none"), true);
        assert!(!none.wait(far));
        assert!(since.elapsed() < far);
    }
}
