//! What must outlive the agent, in one small database: the sessions that live, so that the next agent can go on with
//! them, and the stays. A commit survives a loss of power when the call returns. What cannot be read is set aside and reported, never
//! guessed; on what is enforced the kernel's pinned state has the last word.
#![forbid(unsafe_code)]

mod kept;
#[cfg(test)]
mod tests;
mod text;

use std::{
    cell::{Cell, RefCell},
    fs, io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use redb::{AccessGuard, Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};

pub use kept::{First, Kept, Named, Narrowed};
pub use text::PolicyText;

use crate::session::SessionId;

/// Its file in the state folder.
pub const FILE: &str = "store.redb";
/// Version of what the tables hold.
const VERSION: u64 = 1;
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const STAYS: Table = TableDefinition::new("stays");
const SESSIONS: Table = TableDefinition::new("sessions");
/// Holds something only while it is tried whether there is room.
const ROOM: Table = TableDefinition::new("room");
type Table = TableDefinition<'static, &'static str, &'static [u8]>;
/// What was kept, and what could not be read, each with why.
pub type Stored<T> = (Vec<T>, Vec<String>);
/// A key and its new value; none: it goes.
type Change = (String, Option<Vec<u8>>);
/// Bytes of a digest before each value.
const DIGEST: usize = 32;
/// The database is a few kilobytes; its cache need not be more.
const CACHE: usize = 1024 * 1024;

/// The store cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("another agent has {} open: stop it, or give this one its own --state-dir", path.display())]
    Held {
        /// The file.
        path: PathBuf,
    },
    /// It was written by a newer version.
    #[error("{} is of version {version}, this program reads {VERSION}: use the newer program, or another --state-dir", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u64,
    },
    /// It cannot be opened, read or written.
    #[error("cannot use {}: {why}; check the disk and its free space", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// The open store, locked against other agents. After an error it is closed, and opened again when it is used: the database
/// would refuse everything from then on.
pub struct Store {
    path: PathBuf,
    boot: String,
    database: RefCell<Option<Database>>,
    trouble: RefCell<Option<Trouble>>,
    refused: Cell<u64>,
}

/// The disk refused something.
struct Trouble {
    why: StoreError,
    /// So much has to find room before it is over.
    bytes: usize,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Why what a file holds was not taken.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("another agent has it open")]
    Held,
    #[error("it is of version {0} now")]
    Newer(u64),
    /// The file itself is not to be had: nothing was read.
    #[error("{0}")]
    Unusable(String),
    /// It was read, and is no store.
    #[error("{0}")]
    Spoiled(String),
}

impl Store {
    /// Opens the store in `state`, or makes it (mode 0600). `boot` is the kernel's boot id. One that is spoiled is moved
    /// aside; the second value says so.
    ///
    /// # Errors
    /// Another agent has it, it is of a newer version, or the disk refuses. Nothing was changed.
    pub fn open(state: &Path, boot: String) -> Result<(Self, Option<String>), StoreError> {
        let path = state.join(FILE);
        let unusable = |why: String| StoreError::Unusable { path: path.clone(), why };
        if !path.exists() {
            make(&path).map_err(unusable)?;
        }
        let mut spoiled = None;
        let opened = match open(&path) {
            Err(Refusal::Spoiled(why)) => {
                let aside = set_aside(&path).map_err(|e| unusable(e.to_string()))?;
                let (from, to) = (path.display(), aside.display());
                spoiled = Some(format!("{from} cannot be read ({why}) and is now {to}; every stay in it is lost"));
                make(&path).map_err(unusable)?;
                open(&path)
            }
            other => other,
        };
        match opened {
            Ok(database) => {
                let (database, trouble) = (RefCell::new(Some(database)), RefCell::new(None));
                Ok((Self { path, boot, database, trouble, refused: Cell::new(0) }, spoiled))
            }
            Err(Refusal::Held) => Err(StoreError::Held { path }),
            Err(Refusal::Newer(version)) => Err(StoreError::Newer { path, version }),
            Err(Refusal::Unusable(why) | Refusal::Spoiled(why)) => Err(StoreError::Unusable { path, why }),
        }
    }

    /// The kernel's boot id.
    #[must_use]
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes that the disk refused since the store was opened.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Why the disk refused a write; `None`: there is room again for what it refused.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.borrow().as_ref().map(|trouble| trouble.why.to_string())
    }

    /// After trouble, tries whether there is room for as much as was refused. False: there is none.
    #[must_use]
    pub fn try_again(&self) -> bool {
        let Some(bytes) = self.trouble.borrow().as_ref().map(|trouble| trouble.bytes) else { return true };
        let room = |value| [("room".to_owned(), value)];
        let tried = self.write(ROOM, &room(Some(vec![0; bytes]))).and_then(|()| self.write(ROOM, &room(None)));
        tried.is_ok()
    }

    /// Keeps a session as it is now.
    ///
    /// # Errors
    /// The disk is full or fails; what was kept before stands.
    pub fn keep(&self, kept: &Kept) -> Result<(), StoreError> {
        self.put(SESSIONS, kept.start.session, kept)
    }

    /// Keeps sessions as they are now: all of them, or none.
    ///
    /// # Errors
    /// As [`Store::keep`].
    pub fn keep_all(&self, kept: &[Kept]) -> Result<(), StoreError> {
        let value = |kept: &Kept| Ok((kept.start.session.to_string(), Some(encode(kept)?)));
        let values: serde_json::Result<Vec<_>> = kept.iter().map(value).collect();
        self.change(SESSIONS, &values.map_err(|e| self.unusable(&e))?)
    }

    /// Forgets a session that is over.
    ///
    /// # Errors
    /// The disk fails; it is still kept then.
    pub fn forget(&self, id: SessionId) -> Result<(), StoreError> {
        self.forget_all(&[id])
    }

    /// Forgets sessions that are over: all of them, or none.
    ///
    /// # Errors
    /// As [`Store::forget`].
    pub fn forget_all(&self, ids: &[SessionId]) -> Result<(), StoreError> {
        let gone: Vec<Change> = ids.iter().map(|id| (id.to_string(), None)).collect();
        self.change(SESSIONS, &gone)
    }

    /// The sessions that are kept, and what of them could not be read, each with why: those are forgotten.
    ///
    /// # Errors
    /// The database cannot be read or written.
    pub fn kept(&self) -> Result<Stored<Kept>, StoreError> {
        self.all(SESSIONS, "session")
    }

    /// Keeps a stay, which names itself `id`.
    ///
    /// # Errors
    /// As [`Store::keep`].
    pub fn keep_stay(&self, id: SessionId, stay: &impl Serialize) -> Result<(), StoreError> {
        self.put(STAYS, id, stay)
    }

    /// Forgets a stay that is over or was lifted.
    ///
    /// # Errors
    /// As [`Store::forget`].
    pub fn forget_stay(&self, id: SessionId) -> Result<(), StoreError> {
        self.change(STAYS, &[(id.to_string(), None)])
    }

    /// The stays that are kept, and what of them could not be read, each with why: those are forgotten.
    ///
    /// # Errors
    /// As [`Store::kept`].
    pub fn stays<T: DeserializeOwned>(&self) -> Result<Stored<T>, StoreError> {
        self.all(STAYS, "stay")
    }

    fn put(&self, table: Table, id: SessionId, value: &impl Serialize) -> Result<(), StoreError> {
        let value = encode(value).map_err(|e| self.unusable(&e))?;
        self.change(table, &[(id.to_string(), Some(value))])
    }

    fn all<T: DeserializeOwned>(&self, table: Table, what: &str) -> Result<Stored<T>, StoreError> {
        let (mut found, mut spoiled) = (Vec::new(), Vec::new());
        for (key, value) in self.with(0, |database| values(database, table))? {
            match decode(&value) {
                Ok(value) => found.push(value),
                Err(why) => {
                    self.change(table, &[(key.clone(), None)])?;
                    spoiled.push(format!("what was kept of {what} {key} cannot be read: {why}"));
                }
            }
        }
        Ok((found, spoiled))
    }

    fn change(&self, table: Table, changes: &[Change]) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.write(table, changes).inspect_err(|_| self.refused.set(self.refused.get().saturating_add(1)))
    }

    fn write(&self, table: Table, changes: &[Change]) -> Result<(), StoreError> {
        let bytes = changes.iter().filter_map(|(_, value)| value.as_ref()).map(Vec::len).sum();
        self.with(bytes, |database| write(database, table, changes))
    }

    /// Does something that needs room for `bytes`.
    fn with<T>(&self, bytes: usize, work: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let held = self.database.take();
        let database = held.map_or_else(|| open(&self.path).map_err(|why| self.unusable(&why)), Ok);
        let done = database.and_then(|database| {
            let done = work(&database).map_err(|e| self.unusable(&e))?;
            self.database.replace(Some(database));
            Ok(done)
        });
        let mut trouble = self.trouble.borrow_mut();
        match &done {
            Ok(_) => drop(trouble.take_if(|trouble| trouble.bytes <= bytes)),
            Err(why) => {
                let most = trouble.as_ref().map_or(0, |trouble| trouble.bytes).max(bytes);
                *trouble = Some(Trouble { why: why.clone(), bytes: most });
            }
        }
        done
    }

    fn unusable(&self, why: &dyn std::fmt::Display) -> StoreError {
        StoreError::Unusable { path: self.path.clone(), why: why.to_string() }
    }
}

fn values(database: &Database, table: Table) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
    let table = database.begin_read()?.open_table(table)?;
    let owned = |row: Result<(AccessGuard<'_, &str>, AccessGuard<'_, &[u8]>), _>| {
        row.map(|(key, value)| (key.value().to_owned(), value.value().to_owned()))
    };
    table.iter()?.map(owned).collect::<Result<_, _>>().map_err(redb::StorageError::into)
}

fn write(database: &Database, table: Table, changes: &[Change]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(table)?;
        for (key, value) in changes {
            match value {
                Some(value) => table.insert(key.as_str(), value.as_slice()).map(drop)?,
                None => table.remove(key.as_str()).map(drop)?,
            }
        }
    }
    Ok(transaction.commit()?)
}

/// Makes an empty store under another name, and gives it its name when it is complete.
fn make(path: &Path) -> Result<(), String> {
    let fresh = path.with_extension("new");
    let made = || -> Result<(), redb::Error> {
        fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        let database = builder().create(&fresh)?;
        lay_out(&database)?;
        drop(database);
        fs::rename(&fresh, path)?;
        Ok(sync_folder(path)?)
    };
    made().map_err(|error| {
        // half a store is none
        let _ = fs::remove_file(&fresh);
        error.to_string()
    })
}

/// Gives an empty database its tables.
fn lay_out(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert("version", VERSION)?;
    transaction.open_table(SESSIONS)?;
    transaction.open_table(STAYS)?;
    Ok(transaction.commit()?)
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    // every page is checked against its checksum: a file is read once and trusted afterwards
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    builder
}

fn open(path: &Path) -> Result<Database, Refusal> {
    let kind = fs::metadata(path).map_err(|e| Refusal::Unusable(e.to_string()))?;
    if !kind.is_file() {
        return Err(Refusal::Unusable("it is not a plain file".into()));
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|e| Refusal::Unusable(e.to_string()))?;
    sound(|| builder().open(path))
}

/// The database that `open` opens, if it is one of this version and all of it is in order.
fn sound(open: impl FnOnce() -> Result<Database, DatabaseError>) -> Result<Database, Refusal> {
    // bytes that nobody wrote may make the database panic
    let opened = catch_unwind(AssertUnwindSafe(|| read_version(open())));
    match opened {
        Ok(Ok((database, VERSION))) => Ok(database),
        Ok(Ok((_, version))) if version > VERSION => Err(Refusal::Newer(version)),
        Ok(Ok((_, version))) => Err(Refusal::Spoiled(format!("there is no version {version}"))),
        Ok(Err(refusal)) => Err(refusal),
        Err(_) => Err(Refusal::Spoiled("its structure is damaged".into())),
    }
}

fn read_version(opened: Result<Database, DatabaseError>) -> Result<(Database, u64), Refusal> {
    let database = opened.map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => Refusal::Held,
        DatabaseError::UpgradeRequired(format) => Refusal::Unusable(format!("its file format {format} is another")),
        DatabaseError::Storage(redb::StorageError::Io(error)) if !is_content(&error) => {
            Refusal::Unusable(error.to_string())
        }
        other => Refusal::Spoiled(other.to_string()),
    })?;
    let spoiled = |error: redb::Error| Refusal::Spoiled(error.to_string());
    let version = version(&database).map_err(spoiled)?;
    let version = version.ok_or_else(|| Refusal::Spoiled("it has no version".into()))?;
    Ok((database, version))
}

/// Whether an error of the file is about what it holds, and not about the file.
fn is_content(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
}

fn version(database: &Database) -> Result<Option<u64>, redb::Error> {
    let transaction = database.begin_read()?;
    // all tables must be there
    transaction.open_table(SESSIONS)?;
    transaction.open_table(STAYS)?;
    let version = transaction.open_table(META)?.get("version")?.map(|v| v.value());
    Ok(version)
}

fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let free = (1u32..).map(|n| path.with_extension(format!("unreadable-{n}"))).find(|aside| !aside.exists());
    let aside = free.ok_or_else(|| io::Error::other("too many stores were set aside"))?;
    fs::rename(path, &aside)?;
    sync_folder(path)?;
    Ok(aside)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
}

/// A value with its digest before it.
fn encode(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut bytes = vec![0; DIGEST];
    serde_json::to_writer(&mut bytes, value)?;
    let digest = Sha256::digest(&bytes[DIGEST..]);
    bytes[..DIGEST].copy_from_slice(&digest);
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let (digest, text) = bytes.split_at_checked(DIGEST).ok_or("it is too short")?;
    if digest != Sha256::digest(text).as_slice() {
        return Err("its digest is another".into());
    }
    serde_json::from_slice(text).map_err(|e| e.to_string())
}
