//! The head file: the number and hash of a log's last record, kept elsewhere, so that a cut end of the log is noticed.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::chain::Head;

/// What is known of a log's head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadFile {
    /// Nobody said where it is: a log by itself, copied from another host perhaps.
    NotGiven,
    /// It is not there.
    Missing,
    /// It is there, and is no head file.
    Unreadable {
        /// What is wrong with it.
        why: String,
    },
    /// What it holds.
    Known(Head),
}

impl HeadFile {
    /// Reads the file. None: [`HeadFile::NotGiven`].
    #[must_use]
    pub fn read(path: Option<&Path>) -> Self {
        let Some(path) = path else { return Self::NotGiven };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::Missing,
            Err(error) => return Self::Unreadable { why: error.to_string() },
        };
        match serde_json::from_str(&text) {
            Ok(head) => Self::Known(head),
            Err(error) => Self::Unreadable { why: error.to_string() },
        }
    }
}

/// Replaces the head file as a whole: after a crash it is the old one or the new one.
pub(super) fn replace(path: &Path, head: Head) -> io::Result<()> {
    let mut name = OsString::from(path);
    name.push(".new");
    let new = PathBuf::from(name);
    let mut text = serde_json::to_string(&head)?;
    text.push('\n');
    let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    fs::rename(&new, path)
}
