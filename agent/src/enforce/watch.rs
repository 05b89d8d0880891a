//! Watches the directories in which the files of rules stand (inotify(7)): a file that is replaced, renamed or changed makes
//! somebody look again. No rule depends on it: what changed is denied until it was looked at, and a new file in the place of one
//! that is denied is denied by its place. What a link leads to by now is denied from that look on.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use tracing::warn;

use super::trust::{LINKS, names};

/// Reads of what happened at a time: whoever changes files without pause does not keep the agent.
const READS: usize = 64;

/// Directories under watch.
#[derive(Debug)]
pub struct FileWatch {
    /// `None`: the kernel has no instance left (`fs.inotify.max_user_instances`).
    inotify: Option<Inotify>,
    directories: BTreeMap<PathBuf, WatchDescriptor>,
}

impl FileWatch {
    /// Watches nothing yet, and nothing ever where the kernel has no instance left: that is logged.
    #[must_use]
    pub fn open() -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        if let Err(error) = &inotify {
            warn!(
                "files of rules are not watched, so what is replaced is denied until it is tried: inotify: {error}; \
                 raise fs.inotify.max_user_instances"
            );
        }
        Self { inotify: inotify.ok(), directories: BTreeMap::new() }
    }

    /// A descriptor that is readable when something happened; `None`: nothing is watched.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn descriptor(&self) -> io::Result<Option<OwnedFd>> {
        self.inotify.as_ref().map(|inotify| inotify.as_fd().try_clone_to_owned()).transpose()
    }

    /// Watches these directories and no others. Gives those that cannot be watched.
    pub fn set(&mut self, wanted: &BTreeSet<PathBuf>) -> Vec<(PathBuf, io::Error)> {
        let Some(inotify) = &self.inotify else { return Vec::new() };
        let gone: Vec<PathBuf> = self.directories.keys().filter(|path| !wanted.contains(*path)).cloned().collect();
        for path in gone {
            if let Some(watch) = self.directories.remove(&path) {
                // a directory that was removed has none any more
                let _ = inotify.rm_watch(watch);
            }
        }
        let mut failed = Vec::new();
        for path in wanted {
            // again for those that are watched: another directory may stand there now
            match inotify.add_watch(path.as_path(), flags()) {
                Ok(watch) => drop(self.directories.insert(path.clone(), watch)),
                Err(error) => failed.push((path.clone(), error.into())),
            }
        }
        failed
    }

    /// Forgets what happened. True: something did. What comes without pause may stay unread: the look that follows sees its
    /// effect all the same.
    pub fn happened(&self) -> bool {
        let read = || self.inotify.as_ref()?.read_events().ok().filter(|events| !events.is_empty());
        (0..READS).take_while(|_| read().is_some()).count() > 0
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

/// The directories whose change can make a path lead elsewhere: all on the way, through links too.
#[must_use]
pub fn directories_of(path: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    walk(
        path,
        |link| std::fs::read_link(link).ok(),
        |at, _, _| {
            found.insert(at.to_owned());
        },
    );
    found
}

/// Goes along a path, through at most 40 links. `leads` tells where a link leads, and of what is none nothing; `met` is
/// told of each directory on the way, of the name that leads on from there, and of those after it, the last first.
pub fn walk(
    path: &Path,
    mut leads: impl FnMut(&Path) -> Option<PathBuf>,
    mut met: impl FnMut(&Path, &OsString, &[OsString]),
) {
    let mut rest = names(path);
    let mut at = PathBuf::from("/");
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        met(&at, &name, &rest);
        let next = at.join(&name);
        let Some(to) = leads(&next) else {
            at = next;
            continue;
        };
        links += 1;
        if links > LINKS {
            break;
        }
        if to.is_absolute() {
            at = PathBuf::from("/");
        }
        rest.extend(names(&to));
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn all_directories_on_the_way_are_watched() {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(base.join("releases/1/bin")).unwrap();
        fs::create_dir(base.join("app")).unwrap();
        fs::write(base.join("releases/1/bin/x"), "").unwrap();
        symlink("../releases/1", base.join("app/current")).unwrap();
        let found = directories_of(&base.join("app/current/bin/x"));
        let expected = ["", "app", "releases", "releases/1", "releases/1/bin"].map(|name| base.join(name));
        assert!(expected.iter().all(|folder| found.contains(&folder.components().collect::<PathBuf>())), "{found:?}");
        assert!(found.contains(Path::new("/")) && !found.contains(&base.join("app/current")), "{found:?}");
        symlink("loop", base.join("loop")).unwrap();
        assert!(directories_of(&base.join("loop")).contains(&base));
    }
}
