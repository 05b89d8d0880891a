//! The pinned tree of one agent: links (which hold the programs), maps, and the lock that keeps a second agent away.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use tipstaff_common::LAYOUT;

use super::KernelError;

/// A pin directory that this process holds.
#[derive(Debug)]
pub struct Pins {
    top: PathBuf,
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Pins {
    /// Makes the directory for this layout below `top` and takes its lock.
    pub fn open(top: &Path) -> Result<Self, KernelError> {
        let directory = top.join(format!("v{LAYOUT}"));
        fs::create_dir_all(&directory).map_err(KernelError::file("make", &directory))?;
        let kind = statfs(&directory).map_err(|e| KernelError::file("look at", &directory)(e.into()))?;
        if kind.filesystem_type() != BPF_FS_MAGIC {
            // what was just made is not a pin directory: leave nothing behind
            let _ = fs::remove_dir(&directory);
            let _ = fs::remove_dir(top);
            return Err(KernelError::NotBpffs { path: top.into() });
        }
        let file = File::open(&directory).map_err(KernelError::file("open", &directory))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Self { top: top.into(), directory, _lock: lock }),
            Err((_, Errno::EWOULDBLOCK)) => Err(KernelError::Held { path: top.into() }),
            Err((_, error)) => Err(KernelError::file("lock", &directory)(error.into())),
        }
    }

    /// Where a link is pinned.
    #[must_use]
    pub fn link(&self, name: &str) -> PathBuf {
        self.directory.join(format!("link_{name}"))
    }

    /// Where a map is pinned.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.directory.join(format!("map_{name}"))
    }

    /// Removes every pin of an earlier agent, or of this one: what the links hold is detached with them. Returns how
    /// many there were.
    pub fn clear(&self) -> Result<usize, KernelError> {
        let mut paths = self.entries()?;
        paths.sort(); // links before maps: nothing runs on maps that are gone
        for path in &paths {
            fs::remove_file(path).map_err(KernelError::file("remove", path))?;
        }
        Ok(paths.len())
    }

    /// Removes the links whose names begin with `prefix`.
    pub fn clear_links(&self, prefix: &str) -> Result<(), KernelError> {
        let start = format!("link_{prefix}");
        for path in self
            .entries()?
            .into_iter()
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&start)))
        {
            fs::remove_file(&path).map_err(KernelError::file("remove", &path))?;
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<PathBuf>, KernelError> {
        let entries = fs::read_dir(&self.directory).map_err(KernelError::file("read", &self.directory))?;
        Ok(entries.filter_map(Result::ok).map(|e| e.path()).collect())
    }

    /// Gives up the lock, and the directories where they hold no pin of an earlier agent.
    pub fn leave(self) {
        // not empty: then they are in use
        let _ = fs::remove_dir(&self.directory);
        let _ = fs::remove_dir(&self.top);
    }

    /// Removes the pins and the directories. Returns how many pins there were.
    pub fn remove(self) -> Result<usize, KernelError> {
        let count = self.clear()?;
        fs::remove_dir(&self.directory).map_err(KernelError::file("remove", &self.directory))?;
        match fs::remove_dir(&self.top) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(count),
            Err(error) => Err(KernelError::file("remove", &self.top)(error)),
            Ok(()) => Ok(count),
        }
    }
}
