//! The pinned tree of one host: maps, which outlive every agent, the links of each load of programs in a folder of its
//! own, and the lock that keeps a second agent away.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use tipstaff_common::LAYOUT;

use super::KernelError;
use crate::made::Made;

/// How long the lock of an agent that was killed can outlive it.
const MOMENT: Duration = Duration::from_secs(1);

/// Locks a file or directory for this agent alone. One that was killed while it started a helper is gone before the helper
/// has executed its program, and until then the helper has a copy of the lock: so who finds it held asks again for a moment.
pub fn lock_soon(mut file: File) -> Result<Flock<File>, Errno> {
    let begun = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EWOULDBLOCK)) if begun.elapsed() < MOMENT => file = again,
            Err((_, errno)) => return Err(errno),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A pin directory that this process holds.
#[derive(Debug)]
pub struct Pins {
    top: PathBuf,
    directory: PathBuf,
    made: Made,
    _lock: Flock<File>,
}

impl Pins {
    /// Makes the directory for this layout below `top` and takes its lock.
    pub fn open(top: &Path) -> Result<Self, KernelError> {
        let directory = top.join(format!("v{LAYOUT}"));
        let mut made = Made::default();
        let there = made.directory(&directory, 0o755).map_err(KernelError::file("make", &directory));
        match there.and_then(|()| Self::lock(&directory, top)) {
            Ok(lock) => Ok(Self { top: top.into(), directory, made, _lock: lock }),
            Err(problem) => {
                // what was just made is no pin directory, or nobody's
                made.take_away();
                Err(problem)
            }
        }
    }

    fn lock(directory: &Path, top: &Path) -> Result<Flock<File>, KernelError> {
        let kind = statfs(directory).map_err(|e| KernelError::file("look at", directory)(e.into()))?;
        if kind.filesystem_type() != BPF_FS_MAGIC {
            return Err(KernelError::NotBpffs { path: top.into() });
        }
        let file = File::open(directory).map_err(KernelError::file("open", directory))?;
        match lock_soon(file) {
            Ok(lock) => Ok(lock),
            Err(Errno::EWOULDBLOCK) => Err(KernelError::Held { path: top.into() }),
            Err(error) => Err(KernelError::file("lock", directory)(error.into())),
        }
    }

    /// Where a link of one load is pinned.
    #[must_use]
    pub fn link(&self, generation: u32, name: &str) -> PathBuf {
        self.folder(generation).join(format!("link_{name}"))
    }

    /// Where a map is pinned.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.directory.join(format!("map_{name}"))
    }

    /// Where the links of one load are pinned. (No dot: the kernel keeps names with dots for itself.)
    fn folder(&self, generation: u32) -> PathBuf {
        self.directory.join(format!("g{generation}"))
    }

    /// Makes the folder for the links of a load.
    pub fn begin(&self, generation: u32) -> Result<(), KernelError> {
        let folder = self.folder(generation);
        fs::create_dir_all(&folder).map_err(KernelError::file("make", &folder))
    }

    /// The loads that have a folder, complete or not.
    pub fn generations(&self) -> Result<Vec<u32>, KernelError> {
        let number = |path: &PathBuf| name(path).strip_prefix('g')?.parse().ok();
        Ok(entries(&self.directory)?.iter().filter_map(number).collect())
    }

    /// Removes the links of one load: its programs are detached.
    pub fn remove_generation(&self, generation: u32) -> Result<(), KernelError> {
        let folder = self.folder(generation);
        if folder.exists() { clear(&folder, &mut 0) } else { Ok(()) }
    }

    /// Removes the links of one load whose names begin with `prefix`.
    pub fn clear_links(&self, generation: u32, prefix: &str) -> Result<(), KernelError> {
        self.links(generation, prefix)?
            .into_iter()
            .try_for_each(|path| fs::remove_file(&path).map_err(KernelError::file("remove", &path)))
    }

    /// The links of one load whose names begin with `prefix`.
    pub fn links(&self, generation: u32, prefix: &str) -> Result<Vec<PathBuf>, KernelError> {
        let (folder, start) = (self.folder(generation), format!("link_{prefix}"));
        if !folder.exists() {
            return Ok(Vec::new());
        }
        Ok(entries(&folder)?.into_iter().filter(|path| name(path).starts_with(&start)).collect())
    }

    /// Directories of other layouts that hold pins: another version of Tipstaff is in force.
    pub fn of_other_layouts(&self) -> Result<Vec<PathBuf>, KernelError> {
        let layout = |path: &PathBuf| name(path).strip_prefix('v').is_some_and(|n| n.parse::<u32>().is_ok());
        let others = entries(&self.top)?.into_iter().filter(|path| *path != self.directory && layout(path));
        Ok(others.filter(|path| entries(path).is_ok_and(|pins| !pins.is_empty())).collect())
    }

    /// Removes every pin, of this layout and of others: what the links hold is detached with them. Returns how many
    /// there were.
    pub fn clear(&self) -> Result<usize, KernelError> {
        let mut count = 0;
        for directory in self.of_other_layouts()?.iter().chain([&self.directory]) {
            let mut paths = entries(directory)?;
            paths.sort(); // links before maps: nothing runs on maps that are gone
            for path in paths {
                clear(&path, &mut count)?;
            }
            if *directory != self.directory {
                fs::remove_dir(directory).map_err(KernelError::file("remove", directory))?;
            }
        }
        Ok(count)
    }

    /// Gives up the lock, and the directories that were made for it.
    pub fn leave(self) {
        self.made.take_away();
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

/// Removes a pin, or a folder of pins, and counts the pins.
fn clear(path: &Path, count: &mut usize) -> Result<(), KernelError> {
    if path.is_dir() {
        entries(path)?.iter().try_for_each(|inner| clear(inner, count))?;
        return fs::remove_dir(path).map_err(KernelError::file("remove", path));
    }
    *count += 1;
    fs::remove_file(path).map_err(KernelError::file("remove", path))
}

fn entries(path: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let entries = fs::read_dir(path).map_err(KernelError::file("read", path))?;
    Ok(entries.filter_map(Result::ok).map(|e| e.path()).collect())
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}
