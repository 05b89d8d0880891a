//! Appends records so that a failed write leaves no trace but a count.
//!
//! Owns the chain's position, the length of what is known to be good, and the records that could not be written.
//! [`Store`] is the file; its path is for messages only.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::{
    chain::{Head, LINE_MAX, Origin, seal},
    error::Error,
    record::{Body, Gap, GapCause, Mark, Moment},
};

/// Where lines go.
pub(super) trait Store {
    /// Appends all of it, or fails with some of it appended.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Cuts the end off.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// Returns when what was appended survives a loss of power.
    fn sync(&mut self) -> io::Result<()>;
}

impl Store for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// What an append wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The record's number.
    pub n: u64,
    /// Its line, without the newline.
    pub line: String,
    /// The line of the gap record that had to be written before it.
    pub gap: Option<String>,
}

#[derive(Debug)]
struct Missed {
    count: u64,
    since: Mark,
    why: String,
}

#[derive(Debug)]
pub(super) struct Writer<S> {
    store: S,
    /// What the store is called.
    path: PathBuf,
    origin: Origin,
    head: Head,
    /// Bytes of the store that hold whole records.
    length: u64,
    /// Whether the store may have more than that.
    dirty: bool,
    missed: Option<Missed>,
}

impl<S: Store> Writer<S> {
    pub(super) fn new(store: S, path: PathBuf, length: u64, head: Head, origin: Origin) -> Self {
        Self { store, path, origin, head, length, dirty: false, missed: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn head(&self) -> Head {
        self.head
    }

    pub(super) fn missed(&self) -> u64 {
        self.missed.as_ref().map_or(0, |missed| missed.count)
    }

    pub(super) fn append(&mut self, body: &Body, when: Moment) -> Result<Written, Error> {
        self.put_both(body, when).map_err(|error| self.miss(when, error))
    }

    pub(super) fn sync(&mut self) -> Result<(), Error> {
        self.store.sync().map_err(|source| Error::Sync { path: self.path.clone(), source })
    }

    fn put_both(&mut self, body: &Body, when: Moment) -> Result<Written, Error> {
        let gap = match &self.missed {
            Some(missed) => Some(self.put(&missed.gap(), when)?),
            None => None,
        };
        self.missed = None;
        let line = self.put(body, when)?;
        Ok(Written { n: self.head.n, line, gap })
    }

    fn put(&mut self, body: &Body, when: Moment) -> Result<String, Error> {
        // `miss` fills the count in
        let failed = |source| Error::Write { path: self.path.clone(), missed: 0, source };
        let (mut line, head) = seal(self.head, &self.origin, body, when).map_err(|source| Error::Encode { source })?;
        line.push('\n');
        if line.len() > LINE_MAX {
            return Err(Error::TooLong { bytes: line.len() });
        }
        if self.dirty {
            self.store.truncate(self.length).map_err(failed)?;
            self.dirty = false;
        }
        if let Err(source) = self.store.append(line.as_bytes()) {
            // what there is of the line must not stay; where even that fails, the next append tries again first
            self.dirty = self.store.truncate(self.length).is_err();
            return Err(failed(source));
        }
        self.length += line.len() as u64;
        self.head = head;
        line.pop();
        Ok(line)
    }

    /// Counts a record that was not written, and says so in the error.
    fn miss(&mut self, when: Moment, error: Error) -> Error {
        let Moment { time, boot_ns } = when;
        let count = self.missed() + 1;
        let (error, why) = match error {
            Error::Write { path, source, .. } => {
                let why = source.to_string();
                (Error::Write { path, missed: count, source }, why)
            }
            other => {
                let why = other.to_string();
                (other, why)
            }
        };
        match &mut self.missed {
            Some(missed) => missed.count = count,
            None => {
                let since = Mark { time, boot_ns, boot: self.origin.boot.clone() };
                self.missed = Some(Missed { count, since, why });
            }
        }
        error
    }
}

impl Missed {
    fn gap(&self) -> Body {
        Body::Gap(Gap {
            lost: Some(self.count),
            since: Some(self.since.clone()),
            detail: Some(self.why.clone()),
            ..Gap::new(GapCause::NotWritten)
        })
    }
}
