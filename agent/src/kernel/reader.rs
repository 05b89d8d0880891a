//! Who is a member by what it carries, asked from other threads than the engine's.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use tipstaff_common::label::{Label, Mirrored, SessionRef};

use super::sys;

/// Answers whether a process is a member, without access to anything else.
#[derive(Debug)]
pub struct LabelReader {
    labels: OwnedFd,
    mirror: OwnedFd,
}

impl LabelReader {
    /// `labels` is `TASK_LABELS`, `mirror` is `MIRROR`.
    pub(super) const fn new(labels: OwnedFd, mirror: OwnedFd) -> Self {
        Self { labels, mirror }
    }

    /// The session that the process's main thread carries a label of.
    pub fn label_of(&self, task: BorrowedFd<'_>) -> io::Result<Option<SessionRef>> {
        let label = sys::label_of(self.labels.as_fd(), task)?;
        Ok(label.map(|Label { slot, generation, .. }| SessionRef { slot, generation }))
    }

    /// The session that one of these threads has an entry in the mirror of: it is a member, also where its label found no
    /// memory.
    pub fn mirrored(&self, threads: &HashSet<u32>) -> io::Result<Option<SessionRef>> {
        let entry = sys::find_value(self.mirror.as_fd(), |entry: &Mirrored| threads.contains(&entry.tid))?;
        Ok(entry.map(|Mirrored { slot, generation, .. }| SessionRef { slot, generation }))
    }
}
