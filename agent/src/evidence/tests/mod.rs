//! The log as a whole: what is written reads back, and what is changed is noticed.

mod disk;
mod format;
mod tamper;

use std::{fs, io::Cursor, path::PathBuf};

use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;

use super::{chain::Origin, *};
use crate::session::{Cause, EndReason, SessionId, State};

fn session() -> SessionId {
    SessionId::from_random([0xab; 16])
}

/// Second `n` of a fixed hour.
fn at(n: u64) -> Moment {
    let start: Timestamp = "2026-11-21T22:00:00.000000001Z".parse().expect("a time");
    let seconds = i64::try_from(n).expect("a small number");
    Moment { time: start + SignedDuration::from_secs(seconds), boot_ns: n * 1_000_000_000 + 7 }
}

fn origin() -> Origin {
    Origin { host: "host-1".to_owned(), boot: "b7f0".to_owned() }
}

fn state(n: u64) -> Body {
    let cause = if n.is_multiple_of(2) { Cause::Labelled } else { Cause::End(EndReason::Ttl) };
    Body::State(Transition { session: session(), from: State::Starting, to: State::Active, cause })
}

/// A log's text with `count` records, and its head.
fn text(count: u64) -> (String, Head) {
    let (mut text, mut head) = (String::new(), Head::START);
    for n in 0..count {
        let (line, next) = chain::seal(head, &origin(), &state(n), at(n)).expect("a record has a form");
        text.push_str(&line);
        text.push('\n');
        head = next;
    }
    (text, head)
}

fn checked(text: &[u8], head: HeadFile) -> Report {
    check(&mut Cursor::new(text), head).expect("memory can be read")
}

/// A folder with a log and a head file in it.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// With a log of `count` records whose head file is up to date.
    fn with(count: u64) -> Self {
        let place = Self::new();
        let (text, head) = text(count);
        fs::create_dir(place.evidence()).expect("a folder");
        fs::write(place.log(), text).expect("a log");
        fs::write(place.head(), serde_json::to_string(&head).expect("a head")).expect("a head file");
        place
    }

    fn evidence(&self) -> PathBuf {
        self.folder.path().join("evidence")
    }

    fn log(&self) -> PathBuf {
        log_file(&self.evidence())
    }

    fn head(&self) -> PathBuf {
        self.folder.path().join("evidence.head")
    }

    fn open(&self) -> Result<(Log, Recovery), Error> {
        Log::open(&self.evidence(), &self.head(), "host-1", "b7f0", at(100))
    }

    fn verify(&self) -> Report {
        verify(&self.evidence(), Some(&self.head())).expect("the log can be read")
    }

    /// Opens the log, writes what recovery found and one more record, and closes it.
    fn restart(&self) -> Recovery {
        let (mut log, recovery) = self.open().expect("the log opens");
        for gap in &recovery.gaps {
            log.append_durable(&Body::Gap(gap.clone()), at(100)).expect("a gap is written");
        }
        log.append(&state(0), at(101)).expect("a record is written");
        log.flush().expect("the log is flushed");
        recovery
    }

    fn set_aside(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.evidence()).expect("the folder can be listed");
        files.map(|file| file.expect("a file").path()).filter(|path| *path != self.log()).collect()
    }
}
