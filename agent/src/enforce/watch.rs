//! Watches the directories in which the files of rules stand (inotify(7)): a file that is replaced, renamed or changed makes
//! somebody look again. Nothing depends on it: what changed is denied until it was looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// Directories under watch.
#[derive(Debug)]
pub struct FileWatch {
    inotify: Inotify,
    directories: BTreeMap<PathBuf, WatchDescriptor>,
}

impl FileWatch {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// The kernel has no instance left.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self { inotify, directories: BTreeMap::new() })
    }

    /// A descriptor that is readable when something happened.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.inotify.as_fd().try_clone_to_owned()
    }

    /// Watches these directories and no others. Gives those that cannot be watched.
    pub fn set(&mut self, wanted: &BTreeSet<PathBuf>) -> Vec<(PathBuf, io::Error)> {
        let gone: Vec<PathBuf> = self.directories.keys().filter(|path| !wanted.contains(*path)).cloned().collect();
        for path in gone {
            if let Some(watch) = self.directories.remove(&path) {
                // a directory that was removed has none any more
                let _ = self.inotify.rm_watch(watch);
            }
        }
        let mut failed = Vec::new();
        for path in wanted {
            // again for those that are watched: another directory may stand there now
            match self.inotify.add_watch(path.as_path(), flags()) {
                Ok(watch) => drop(self.directories.insert(path.clone(), watch)),
                Err(error) => failed.push((path.clone(), error.into())),
            }
        }
        failed
    }

    /// Forgets what happened. True: something did.
    pub fn happened(&self) -> bool {
        let mut any = false;
        while let Ok(events) = self.inotify.read_events() {
            if events.is_empty() {
                break;
            }
            any = true;
        }
        any
    }
}

fn flags() -> AddWatchFlags {
    AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_ONLYDIR
}

/// The directories whose change can make a path lead elsewhere, from the nearest up: where the file is, and where the
/// links that lead to it stand.
#[must_use]
pub fn directories_of(path: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut at = path.to_owned();
    // as many links as the kernel follows
    for _ in 0..40 {
        found.extend(at.parent().map(Path::to_owned));
        let Ok(to) = std::fs::read_link(&at) else { break };
        at = at.parent().map_or_else(|| to.clone(), |parent| parent.join(&to));
    }
    found.extend(std::fs::canonicalize(path).ok().and_then(|real| Some(real.parent()?.to_owned())));
    found
}
