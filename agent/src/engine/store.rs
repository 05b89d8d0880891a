//! What must outlive the agent so that the next one can end what this one began: one small file a session. What cannot
//! be read is moved aside and reported, never guessed.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::stays::Stay;
use crate::{evidence::SessionStart, session::SessionId};

/// Version of the files.
const VERSION: u32 = 1;

/// A session as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    version: u32,
    /// The kernel's boot id.
    pub boot: String,
    /// Slot in the kernel's arrays.
    pub slot: u32,
    /// Generation of the slot.
    pub generation: u32,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// Whether it enforced.
    pub enforce: bool,
    /// It has ended, and members of it run on: it only observed.
    pub over: bool,
    /// Its first record.
    pub start: SessionStart,
}

impl Kept {
    /// A session to be kept.
    #[must_use]
    pub fn new(boot: String, slot: u32, generation: u32, cgroup: PathBuf, enforce: bool, start: SessionStart) -> Self {
        Self { version: VERSION, boot, slot, generation, cgroup, enforce, over: false, start }
    }

    /// The same after its end, with members that run on.
    #[must_use]
    pub fn ended(self) -> Self {
        Self { over: true, ..self }
    }
}

/// What was kept, and the files that could not be read, each with why.
pub type Stored<T> = (Vec<T>, Vec<(PathBuf, String)>);

/// The folder of session files.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    stays: PathBuf,
    boot: String,
}

impl Store {
    /// Makes the folder (mode 0700) below the state directory.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(state: &Path, boot: String) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let folder = state.join("sessions");
        let stays = state.join("stays");
        for folder in [&folder, &stays] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        Ok(Self { folder, stays, boot })
    }

    /// The kernel's boot id.
    #[must_use]
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn file(&self, id: SessionId) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    /// Keeps a session; it survives a loss of power when this returns.
    ///
    /// # Errors
    /// The disk is full or fails; nothing half-written is left.
    pub fn keep(&self, kept: &Kept) -> io::Result<()> {
        replace(&self.file(kept.start.session), &serde_json::to_vec(kept)?)
    }

    /// Keeps a stay; it survives a loss of power when this returns.
    ///
    /// # Errors
    /// The disk is full or fails; nothing half-written is left.
    pub fn keep_stay(&self, stay: &Stay) -> io::Result<()> {
        replace(&self.stay(stay.id), &serde_json::to_vec(stay)?)
    }

    /// Forgets a stay that is over or was lifted.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget_stay(&self, id: SessionId) -> io::Result<()> {
        remove(&self.stay(id))
    }

    fn stay(&self, id: SessionId) -> PathBuf {
        self.stays.join(format!("{id}.json"))
    }

    /// The stays that were kept, and the files that could not be read, each with why.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn stays(&self) -> io::Result<Stored<Stay>> {
        all(&self.stays, |path| {
            let bytes = fs::read(path).map_err(|e| e.to_string())?;
            serde_json::from_slice(&bytes).map_err(|e| e.to_string())
        })
    }

    /// Forgets a session that is over.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget(&self, id: SessionId) -> io::Result<()> {
        remove(&self.file(id))
    }

    /// The sessions that an earlier agent kept, and the files that could not be read, each with why.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn kept(&self) -> io::Result<Stored<Kept>> {
        all(&self.folder, read)
    }
}

/// Puts `bytes` in the place of a file, as a whole.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let written = fs::File::create(&fresh).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| fs::rename(&fresh, path)) {
        let _ = fs::remove_file(&fresh);
        return Err(error);
    }
    path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Reads every file of a folder; what cannot be read is moved aside.
fn all<T>(folder: &Path, read: impl Fn(&Path) -> Result<T, String>) -> io::Result<Stored<T>> {
    let (mut found, mut unreadable) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("new") => fs::remove_file(&path)?,
            Some("json") => match read(&path) {
                Ok(kept) => found.push(kept),
                Err(why) => {
                    fs::rename(&path, path.with_extension("unreadable"))?;
                    unreadable.push((path, why));
                }
            },
            _ => {}
        }
    }
    Ok((found, unreadable))
}

fn read(path: &Path) -> Result<Kept, String> {
    let bytes = fs::read(path).map_err(|e| e.to_string())?;
    let kept: Kept = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    if kept.version == VERSION { Ok(kept) } else { Err(format!("version {} is not {VERSION}", kept.version)) }
}
