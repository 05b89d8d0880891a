//! Where a log really ends: the last line that bears its hash. What stands behind it is a crash's or an intruder's.
//!
//! Reads only; [`super::Log`] sets the rest aside. It never judges what stands before the last good line: that is
//! verification.

use std::{
    fs::File,
    io::{self, BufReader, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use serde::Deserialize;

use super::{
    chain::{Envelope, Head, LINE_MAX, Line, VERSION, is_sealed, next_line, stated_hash},
    head::HeadFile,
    record::{Gap, GapCause, Mark},
};

/// The end of a log.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// The last good record; none in a log without one.
    pub(super) last: Option<Last>,
    /// Bytes up to the end of its line.
    pub(super) length: u64,
    /// Complete lines behind it.
    pub(super) lines: u64,
    /// Bytes behind those, without a newline.
    pub(super) unfinished: u64,
}

#[derive(Debug)]
pub(super) struct Last {
    pub(super) head: Head,
    pub(super) mark: Mark,
}

/// The last record is of another format.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OtherFormat(pub(super) u32);

impl Tail {
    pub(super) fn head(&self) -> Head {
        self.last.as_ref().map_or(Head::START, |last| last.head)
    }

    pub(super) fn is_spoiled(&self) -> bool {
        self.lines > 0 || self.unfinished > 0
    }

    /// What has to be said of this end, given the head file. `aside`: where what was spoiled is now.
    pub(super) fn gaps(&self, head_file: &HeadFile, aside: &Path) -> Vec<Gap> {
        let head = self.head();
        let gap = |cause, lost, detail: String| {
            let since = self.last.as_ref().map(|last| last.mark.clone());
            vec![Gap { lost, since, detail: Some(detail), ..Gap::new(cause) }]
        };
        let ahead = match head_file {
            HeadFile::Known(known) => known.n.saturating_sub(head.n),
            _ => 0,
        };
        if self.is_spoiled() {
            let cause = if self.lines > 0 { GapCause::Altered } else { GapCause::Torn };
            let lost = (self.lines + u64::from(self.unfinished > 0)).max(ahead);
            return gap(cause, Some(lost), format!("what was there is in {}", aside.display()));
        }
        match head_file {
            HeadFile::Known(known) if ahead > 0 => {
                gap(GapCause::Cut, Some(ahead), format!("the head file names record {}", known.n))
            }
            HeadFile::Known(known) if known.n == head.n && known.hash != head.hash => {
                gap(GapCause::Altered, None, format!("the head file names another record {}", known.n))
            }
            HeadFile::Missing if head.n > 0 => gap(GapCause::Cut, None, "there was no head file".to_owned()),
            HeadFile::Unreadable { why } => gap(GapCause::Cut, None, format!("the head file is unreadable: {why}")),
            _ => Vec::new(),
        }
    }
}

/// Finds the end. The ordinary case reads the last line only; where that is not good, the whole log is read.
pub(super) fn find(log: &mut File) -> io::Result<Result<Tail, OtherFormat>> {
    let length = log.seek(SeekFrom::End(0))?;
    let start = length.saturating_sub(LINE_MAX as u64 + 1);
    log.seek(SeekFrom::Start(start))?;
    let mut end = Vec::new();
    log.by_ref().take(length - start).read_to_end(&mut end)?;
    if end.pop_if(|byte| *byte == b'\n').is_some() {
        let line = end.iter().rposition(|byte| *byte == b'\n').map_or(&end[..], |newline| &end[newline + 1..]);
        match judge(line) {
            Ok(Some(last)) => return Ok(Ok(Tail { last: Some(last), length, ..Tail::default() })),
            Ok(None) => {}
            Err(other) => return Ok(Err(other)),
        }
    }
    walk(log)
}

fn walk(log: &mut File) -> io::Result<Result<Tail, OtherFormat>> {
    log.seek(SeekFrom::Start(0))?;
    let mut input = BufReader::new(log);
    let (mut line, mut offset, mut tail) = (Vec::new(), 0, Tail::default());
    loop {
        match next_line(&mut input, &mut line)? {
            Line::End => return Ok(Ok(tail)),
            Line::Unfinished => tail.unfinished = line.len() as u64,
            Line::TooLong { bytes } => {
                offset += bytes;
                tail.lines += 1;
            }
            Line::Complete => {
                offset += line.len() as u64 + 1;
                match judge(&line) {
                    Ok(Some(last)) => tail = Tail { last: Some(last), length: offset, ..Tail::default() },
                    Ok(None) => tail.lines += 1,
                    Err(other) => return Ok(Err(other)),
                }
            }
        }
    }
}

/// None: the line does not bear its hash, or is no record.
fn judge(line: &[u8]) -> Result<Option<Last>, OtherFormat> {
    #[derive(Deserialize)]
    struct Format {
        v: u32,
    }
    let Some(hash) = stated_hash(line).filter(|_| is_sealed(line)) else { return Ok(None) };
    match serde_json::from_slice(line) {
        Ok(Format { v }) if v != VERSION => return Err(OtherFormat(v)),
        _ => {}
    }
    let Ok(Envelope { n, time, boot_ns, boot, .. }) = serde_json::from_slice(line) else { return Ok(None) };
    Ok(Some(Last { head: Head { n, hash }, mark: Mark { time, boot_ns, boot } }))
}
