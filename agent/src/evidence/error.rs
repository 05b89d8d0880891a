//! What can go wrong with the log, each with what to do about it.

use std::{io, path::PathBuf};

use super::chain::LINE_MAX;

/// A failed operation on the log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be made.
    #[error("cannot make the evidence folder {}: {source}; make it or name another with --evidence-dir", path.display())]
    MakeFolder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be opened.
    #[error("cannot open {}: {source}; check that it is a plain file and that you may read it", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent writes this log.
    #[error("another agent writes {}: stop it, or give this one its own --evidence-dir", path.display())]
    Locked {
        /// The log.
        path: PathBuf,
    },
    /// A file cannot be locked.
    #[error("cannot lock {}: {source}; put it on a file system with flock", path.display())]
    Lock {
        /// The log.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The log's file has another name or none.
    #[error("{} was removed or replaced: what is recorded goes to the file that was there; stop the agent and put that file back, or start a new log", path.display())]
    Removed {
        /// The log.
        path: PathBuf,
    },
    /// The log was written by a newer version.
    #[error("{} has records of format {version}, this program writes 1: use the newer program, or another --evidence-dir", path.display())]
    NewerFormat {
        /// The log.
        path: PathBuf,
        /// The format of its last record.
        version: u32,
    },
    /// The unreadable end of the log cannot be set aside.
    #[error("cannot set the unreadable end of the log aside in {}: {source}; make room there", path.display())]
    SetAside {
        /// The file to hold it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The head file cannot be replaced.
    #[error("cannot write {}: {source}; until it can be, a cut end of the log goes unnoticed", path.display())]
    WriteHead {
        /// The head file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A record was not written; the log is as it was before.
    #[error("cannot write to {}: {source}; {missed} records are missing so far, make room", path.display())]
    Write {
        /// The log.
        path: PathBuf,
        /// Records that were not written since the last one that was.
        missed: u64,
        /// Why.
        source: io::Error,
    },
    /// A record is too large for a line.
    #[error("a record of {bytes} bytes is over the limit of {LINE_MAX}; its lists should have been cut")]
    TooLong {
        /// Its size.
        bytes: usize,
    },
    /// A record has no form as JSON.
    #[error("cannot encode a record: {source}")]
    Encode {
        /// Why.
        source: serde_json::Error,
    },
    /// The disk did not confirm what was written.
    #[error(
        "the disk did not confirm {}: {source}; check the device, what was written last may be lost with the power", path.display()
    )]
    Sync {
        /// The log.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is no record of this format.
    #[error("{} line {line}: {why}; see `tipstaff verify`", path.display())]
    Malformed {
        /// The log.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        why: String,
    },
}
