//! Verification: reads a log once, in bounded memory, and says what does not hold.
//!
//! It needs no key and no agent. What the chain proves, and what it cannot, is in `docs/evidence.md`.

use std::{
    collections::BTreeMap,
    fs::{File, TryLockError},
    io::{self, BufRead, BufReader, ErrorKind},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde::Deserialize;

use super::{
    chain::{Envelope, Hash, Head, Line, VERSION, is_sealed, next_line, stated_hash},
    error::Error,
    head::HeadFile,
    log::log_file,
    record::Mark,
    report::{Damage, NotedGap, Report, Soundness},
};

/// Verifies a log file, or the log in a folder, against its head file if that is given. An agent may be writing it.
///
/// # Errors
///
/// A file cannot be opened or read, or is no plain file. Damage is no error: the report tells.
pub fn verify(path: &Path, head: Option<&Path>) -> Result<Report, Error> {
    let path = if path.is_dir() { log_file(path) } else { path.to_owned() };
    let file = open(&path).map_err(|source| Error::Open { path: path.clone(), source })?;
    if let Some(head) = head
        && let Err(source) = File::open(head)
        && source.kind() == ErrorKind::PermissionDenied
    {
        return Err(Error::Open { path: head.to_owned(), source });
    }
    // the head is read first: an agent that writes meanwhile only takes the log further
    let head = HeadFile::read(head);
    let read = |source| Error::Read { path: path.clone(), source };
    let mut walk = Walk::new(head);
    walk.all(&mut BufReader::new(&file)).map_err(read)?;
    if walk.torn.is_some() && is_written(&file) {
        walk.torn = None;
        walk.report.being_written = true;
    }
    Ok(walk.finish())
}

/// Opens a plain file, and nothing that would have to be waited for.
fn open(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::new(ErrorKind::InvalidInput, "not a plain file")) }
}

/// Verifies what `input` holds.
///
/// # Errors
///
/// The input cannot be read.
pub fn check(input: &mut impl BufRead, head: HeadFile) -> io::Result<Report> {
    let mut walk = Walk::new(head);
    walk.all(input)?;
    Ok(walk.finish())
}

/// Whether an agent holds the log's lock. Asked only where the last line is unfinished: for an instant it may take the
/// lock itself.
fn is_written(file: &File) -> bool {
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

struct Walk {
    head: HeadFile,
    report: Report,
    line: u64,
    /// The record that was read last, as it describes itself.
    last: Head,
    /// None: the line before states no hash.
    prev: Option<Hash>,
    /// Whether the record that the head file names was seen.
    head_seen: bool,
    torn: Option<Damage>,
}

impl Walk {
    fn new(head: HeadFile) -> Self {
        let head_seen = matches!(head, HeadFile::Known(Head::START));
        let (last, prev) = (Head::START, Some(Hash::ZERO));
        Self { head, report: Report::new(), line: 0, last, prev, head_seen, torn: None }
    }

    fn all(&mut self, input: &mut impl BufRead) -> io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            let read = next_line(input, &mut buffer)?;
            self.line += 1;
            let line = self.line;
            match read {
                Line::End => return Ok(()),
                Line::Complete => self.one(&buffer),
                Line::TooLong { bytes } => self.skip(Damage::TooLong { line, bytes }, None),
                Line::Unfinished => {
                    self.torn = Some(Damage::TornTail { line, bytes: buffer.len() as u64 });
                    return Ok(());
                }
            }
        }
    }

    /// A line that says nothing that can be checked: it takes one number.
    fn skip(&mut self, damage: Damage, stated: Option<Hash>) {
        self.report.damaged(damage);
        self.last.n = self.last.n.saturating_add(1);
        self.prev = stated;
    }

    fn one(&mut self, bytes: &[u8]) {
        let line = self.line;
        let Some(stated) = stated_hash(bytes) else {
            return self.skip(Damage::Malformed { line, why: "it does not end in a hash".to_owned() }, None);
        };
        if !is_sealed(bytes) {
            self.report.damaged(Damage::BadHash { line });
        }
        let envelope: Envelope = match serde_json::from_slice(bytes) {
            Ok(envelope) => envelope,
            Err(error) => return self.skip(Damage::Malformed { line, why: error.to_string() }, Some(stated)),
        };
        if envelope.v != VERSION {
            self.report.damaged(Damage::UnknownFormat { line, version: envelope.v });
        }
        let expected = self.last.n.saturating_add(1);
        if envelope.n != expected {
            self.report.damaged(Damage::BadNumber { line, expected, found: envelope.n });
        }
        if self.prev.is_some_and(|prev| prev != envelope.prev) {
            self.report.damaged(Damage::BrokenLink { line });
        }
        self.prev = Some(stated);
        self.last = Head { n: envelope.n, hash: stated };
        self.head_seen |= self.head == HeadFile::Known(self.last);
        self.note(envelope, bytes);
    }

    /// Counts what a record says.
    fn note(&mut self, envelope: Envelope, bytes: &[u8]) {
        #[derive(Deserialize)]
        struct GapFields {
            cause: String,
            lost: Option<u64>,
            since: Option<Mark>,
        }
        #[derive(Deserialize)]
        struct EndFields {
            lost: BTreeMap<String, u64>,
        }
        let Envelope { n, time, boot_ns, boot, kind, .. } = envelope;
        let mark = Mark { time, boot_ns, boot };
        let line = self.line;
        let malformed = |error: serde_json::Error| Damage::Malformed { line, why: error.to_string() };
        match kind.as_str() {
            "session-start" => self.report.sessions += 1,
            "gap" => match serde_json::from_slice(bytes) {
                Ok(GapFields { cause, lost, since }) => {
                    self.report.gap(NotedGap { n, cause, lost, since, until: mark.clone() });
                }
                Err(error) => self.report.damaged(malformed(error)),
            },
            "session-end" => match serde_json::from_slice(bytes) {
                Ok(EndFields { lost }) => {
                    let total = &mut self.report.lost_in_kernel;
                    *total = lost.values().fold(*total, |sum, count| sum.saturating_add(*count));
                }
                Err(error) => self.report.damaged(malformed(error)),
            },
            _ => {}
        }
        self.report.records += 1;
        self.report.first.get_or_insert_with(|| mark.clone());
        self.report.last = Some(mark);
    }

    fn finish(mut self) -> Report {
        if let Some(torn) = self.torn {
            self.report.damaged(torn);
        }
        let last = self.last.n;
        match self.head {
            HeadFile::NotGiven => {}
            // an agent that has only just made its folder
            HeadFile::Missing if last == 0 => {}
            HeadFile::Missing => self.report.damaged(Damage::HeadMissing),
            HeadFile::Unreadable { why } => self.report.damaged(Damage::HeadUnreadable { why }),
            HeadFile::Known(head) => {
                self.report.head_checked = true;
                if head.n > last {
                    self.report.damaged(Damage::CutTail { last, head: head.n });
                } else if !self.head_seen {
                    self.report.damaged(Damage::HeadDiffers { n: head.n });
                }
            }
        }
        self.report
    }
}

impl Report {
    /// Whether the chain holds.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.verdict == Soundness::Intact
    }
}
