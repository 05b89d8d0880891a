//! Who carries a label, read from the task iterator: the measure of "the end is zero".

use std::io::Read as _;

use aya::programs::Iter;
use tipstaff_common::label::MemberRow;

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

impl Kernel {
    /// Every labelled thread of the host, of any session.
    pub fn members(&mut self) -> Result<Vec<Member>, KernelError> {
        Ok(decode_rows(&self.iterate("members")?))
    }

    /// What an iterator program writes, read to its end.
    pub(super) fn iterate(&mut self, name: &'static str) -> Result<Vec<u8>, KernelError> {
        let refused = |error: &dyn std::error::Error| KernelError::refused(format!("iterator {name}"), error);
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
