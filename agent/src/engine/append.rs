//! Writes the evidence: appends to it, makes it durable, and sends it to who asks for it or follows it.

use std::{
    io::{BufRead as _, BufReader},
    time::Duration,
};

use tracing::error;

use super::{Engine, Note, now};
use crate::{
    api::{
        answer::Answer,
        wire::{self, ApiError, Reply},
    },
    evidence::Body,
    kernel::boot_now,
};

/// Appended records are made durable at the latest after this long.
const FLUSH: Duration = Duration::from_secs(1);
/// After a flush that the disk refused.
const FLUSH_AGAIN_NS: u64 = 1_000_000_000;

impl Engine {
    /// Appends to the evidence and tells followers.
    pub(super) fn append(&mut self, body: &Body) {
        match self.parts.log.append(body, now()) {
            Ok(written) => {
                if let Some(gap) = &written.gap {
                    self.tell(gap);
                }
                self.tell(&written.line);
                self.flush_due.get_or_insert_with(|| boot_now() + u64::try_from(FLUSH.as_nanos()).unwrap_or(0));
            }
            Err(problem) => error!("evidence is not written: {problem}"),
        }
    }

    /// Appends what must survive a loss of power before the agent goes on; of ends that are one, with the last of them.
    pub(super) fn append_durable(&mut self, body: &Body) {
        self.append(body);
        if self.together.is_empty() {
            self.flush();
        }
    }

    pub(super) fn flush(&mut self) {
        self.flush_due = None;
        let trouble = self.parts.log.flush().err().map(|problem| problem.to_string());
        if let Some(problem) = &trouble {
            self.flush_due = Some(boot_now().saturating_add(FLUSH_AGAIN_NS));
            if self.evidence_trouble.as_ref() != Some(problem) {
                error!("evidence is not on disk: {problem}");
            }
        }
        self.evidence_trouble = trouble;
    }

    fn tell(&mut self, line: &str) {
        if self.followers.is_empty() {
            return;
        }
        let Ok(raw) = serde_json::value::RawValue::from_string(line.to_owned()) else { return };
        self.followers.retain_mut(|f| f.try_item(Reply::Event(wire::Event { record: raw.clone() })).is_ok());
    }

    /// Sends the records after `sent` on a task of their own; a follower comes back for what was appended meanwhile.
    pub(super) fn send_records(&self, mut reply: Answer, sent: u64, follow: bool) {
        let (path, last) = (self.parts.log.path().to_owned(), self.parts.log.last());
        let notes = self.parts.notes.clone();
        tokio::spawn(async move {
            let lines = match std::fs::File::open(&path) {
                Ok(file) => BufReader::new(file).lines(),
                Err(problem) => {
                    let message = format!("cannot read {}: {problem}", path.display());
                    return reply.finish(Err(ApiError::Failed { message }));
                }
            };
            let place = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
            for line in lines.skip(place(sent)).take(place(last.saturating_sub(sent))) {
                let raw = line.ok().and_then(|l| serde_json::value::RawValue::from_string(l).ok());
                let Some(record) = raw else { continue };
                if reply.item(Reply::Event(wire::Event { record })).await.is_err() {
                    return;
                }
            }
            if follow {
                // the engine is gone only when the agent stops
                let _ = notes.send(Note::CaughtUp(reply, last));
            } else {
                reply.finish(Ok(Reply::EndOfEvents {}));
            }
        });
    }
}
