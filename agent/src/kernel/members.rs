//! Who carries a label, read from the task iterator: the measure of "the end is zero".

use std::io::Read as _;

use aya::programs::Iter;
use tipstaff_common::label::{MemberRow, UNLABELLED};

use super::{Kernel, KernelError};

/// A labelled thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Slot of its session.
    pub slot: u32,
    /// Generation of its session.
    pub generation: u32,
    /// Process id in the root pid namespace.
    pub tgid: u32,
    /// Thread id in the root pid namespace.
    pub tid: u32,
}

/// What one walk over trees that became a session's found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Walk {
    /// Threads that were labelled, or whose label was taken off.
    pub changed: u64,
    /// Threads that could not be labelled.
    pub failed: u64,
}

impl Kernel {
    /// One walk over all tasks: labels who descends from a task that [`Kernel::label_tree`] labelled, and takes off the
    /// labels of what [`Kernel::mark_undone`] marked. A walk that changes nothing was the last that is needed: children
    /// of who carries a label are labelled at birth.
    pub fn label_heirs(&mut self) -> Result<Walk, KernelError> {
        let rows = self.iterate("heirs")?;
        let mut walk = Walk::default();
        for row in rows.chunks_exact(size_of::<MemberRow>()) {
            let flags = row[8..].first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
            let count = if flags & UNLABELLED == 0 { &mut walk.changed } else { &mut walk.failed };
            *count += 1;
        }
        Ok(walk)
    }

    /// Every labelled thread of the host, of any session.
    pub fn members(&mut self) -> Result<Vec<Member>, KernelError> {
        self.walks += 1;
        Ok(decode_rows(&self.iterate("members")?))
    }

    /// How often the tasks of the host were walked for them.
    #[must_use]
    pub const fn walks(&self) -> u64 {
        self.walks
    }

    /// What an iterator program writes, read to its end.
    pub(super) fn iterate(&mut self, name: &'static str) -> Result<Vec<u8>, KernelError> {
        let refused =
            |error: &(dyn std::error::Error + 'static)| KernelError::refused(format!("iterator {name}"), error);
        let program = self.program_mut(name)?;
        let program: &mut Iter = program.try_into().map_err(|e: aya::programs::ProgramError| refused(&e))?;
        let id = program.attach().map_err(|e| refused(&e))?;
        let link = program.take_link(id).map_err(|e| refused(&e))?;
        let mut file = link.into_file().map_err(|e| refused(&e))?;
        let mut rows = Vec::new();
        file.read_to_end(&mut rows).map_err(|e| refused(&e))?;
        Ok(rows)
    }
}

/// Rows of `MemberRow`, decoded by copy.
pub(super) fn decode_rows(rows: &[u8]) -> Vec<Member> {
    let word = |row: &[u8], at: usize| row[at..].first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
    rows.chunks_exact(size_of::<MemberRow>())
        .map(|row| Member { slot: word(row, 0), generation: word(row, 4), tgid: word(row, 16), tid: word(row, 20) })
        .collect()
}
