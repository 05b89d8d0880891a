//! The log on disk: its folder, its lock, its recovery at the start, its head file.
//!
//! One agent writes one log. An appended record survives the agent's death; one that was appended durably, or before a
//! flush, survives the loss of power.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, Seek as _, SeekFrom},
    os::unix::fs::{DirBuilderExt, MetadataExt as _, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    chain::{Head, Origin},
    error::Error,
    head::{self, HeadFile},
    record::{Body, Gap, Moment},
    recover::{self, OtherFormat, Tail},
    writer::{Writer, Written},
};

/// The log's file in its folder.
#[must_use]
pub fn log_file(folder: &Path) -> PathBuf {
    folder.join("evidence.jsonl")
}

/// An open log, locked against other agents for as long as it lives.
#[derive(Debug)]
pub struct Log {
    head_path: PathBuf,
    /// Device and inode number of the log.
    file: (u64, u64),
    /// What the head file holds, where it is known to be in order.
    flushed: Option<Head>,
    writer: Writer<File>,
}

/// What was found when a log was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovery {
    /// Number of the last record, 0 in a new log.
    pub last: u64,
    /// What must be said of the log as it was found. Append each as [`Body::Gap`], then flush, before anything else.
    pub gaps: Vec<Gap>,
}

impl Log {
    /// Opens or makes the log in `folder` (mode 0700; the file 0600), whose head file is `head`. `boot` is the
    /// kernel's boot id.
    ///
    /// What stands behind the last good record is moved to `evidence.torn-<n>-<time>` beside the log.
    ///
    /// # Errors
    ///
    /// The folder or the files cannot be made, locked, read or written, or the log is of a newer format. Nothing was
    /// changed then, but that a copy of the unreadable end may have been made.
    pub fn open(folder: &Path, head: &Path, host: &str, boot: &str, now: Moment) -> Result<(Self, Recovery), Error> {
        let path = log_file(folder);
        let mut file = open_locked(folder, &path)?;
        let tail = match recover::find(&mut file) {
            Ok(Ok(tail)) => tail,
            Ok(Err(OtherFormat(version))) => return Err(Error::NewerFormat { path, version }),
            Err(source) => return Err(Error::Read { path, source }),
        };
        let aside =
            folder.join(format!("evidence.torn-{}-{}", tail.head().n + 1, now.time.strftime("%Y%m%dT%H%M%S%.9fZ")));
        if tail.is_spoiled() {
            set_aside(&mut file, &tail, &aside)?;
        }
        let head_file = HeadFile::read(Some(head));
        let recovery = Recovery { last: tail.head().n, gaps: tail.gaps(&head_file, &aside) };
        let origin = Origin { host: host.to_owned(), boot: boot.to_owned() };
        let is = file.metadata().map_err(|source| Error::Read { path: path.clone(), source })?;
        let writer = Writer::new(file, path, tail.length, tail.head(), origin);
        let mut log = Self { head_path: head.to_owned(), file: (is.dev(), is.ino()), flushed: None, writer };
        if recovery.last == 0 && recovery.gaps.is_empty() {
            // a new log gets its head file now: from here on, none means that it was taken away
            log.flush()?;
        }
        Ok((log, recovery))
    }

    /// Appends a record. If it cannot be written, the log stays as it was, and the next record that can be written is
    /// preceded by a gap record with the number of those that are missing.
    ///
    /// # Errors
    ///
    /// The disk is full or fails, or the record is too large.
    pub fn append(&mut self, body: &Body, when: Moment) -> Result<Written, Error> {
        self.writer.append(body, when)
    }

    /// As [`Log::append`], and returns when the record survives a loss of power.
    ///
    /// # Errors
    ///
    /// As [`Log::append`]; or the disk did not confirm the record, which is in the log nevertheless.
    pub fn append_durable(&mut self, body: &Body, when: Moment) -> Result<Written, Error> {
        let written = self.writer.append(body, when)?;
        self.writer.sync()?;
        Ok(written)
    }

    /// Makes everything appended durable, and then brings the head file up to date. Cheap when nothing was appended.
    ///
    /// # Errors
    ///
    /// The disk did not confirm the log, or the head file cannot be replaced.
    pub fn flush(&mut self) -> Result<(), Error> {
        let last = self.writer.head();
        if self.flushed == Some(last) {
            return Ok(());
        }
        self.writer.sync()?;
        head::replace(&self.head_path, last)
            .map_err(|source| Error::WriteHead { path: self.head_path.clone(), source })?;
        let there = fs::metadata(self.path()).is_ok_and(|is| (is.dev(), is.ino()) == self.file);
        if !there {
            return Err(Error::Removed { path: self.path().to_owned() });
        }
        self.flushed = Some(last);
        Ok(())
    }

    /// Records that could not be written and that no gap record speaks of yet.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.writer.missed()
    }

    /// Number of the last record.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.writer.head().n
    }

    /// The log's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.writer.path()
    }
}

fn open_locked(folder: &Path, path: &Path) -> Result<File, Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| Error::MakeFolder { path: folder.to_owned(), source })?;
    let fail = |source| Error::Open { path: path.to_owned(), source };
    let file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(fail)?;
    if !file.metadata().map_err(fail)?.is_file() {
        return Err(fail(io::Error::other("not a plain file")));
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => return Err(Error::Lock { path: path.to_owned(), source }),
    }
    sync_folder(folder).map_err(fail)?;
    Ok(file)
}

/// Copies what is behind the last good record to `aside`, durably, and only then cuts it off.
fn set_aside(log: &mut File, tail: &Tail, aside: &Path) -> Result<(), Error> {
    copy_and_cut(log, tail.length, aside).map_err(|source| Error::SetAside { path: aside.to_owned(), source })
}

fn copy_and_cut(log: &mut File, length: u64, aside: &Path) -> io::Result<()> {
    let mut copy = File::options().write(true).create_new(true).mode(0o600).open(aside)?;
    log.seek(SeekFrom::Start(length))?;
    io::copy(log, &mut copy)?;
    copy.sync_all()?;
    if let Some(folder) = aside.parent() {
        sync_folder(folder)?;
    }
    log.set_len(length)?;
    log.sync_all()
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
