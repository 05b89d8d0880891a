//! Which file it is, as the kernel's hooks will see it: asked of the kernel through an iterator over the agent's own
//! descriptors, because stat(2) gives other numbers on overlayfs and btrfs.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::Path,
};

use tipstaff_common::rule::FileId;

use super::{Kernel, KernelError};

/// Bytes of one row of the `files` iterator: descriptor, inode, device, generation.
const ROW: usize = 24;

impl Kernel {
    /// Identities of open files, in their order; `None` for a file that the kernel did not list.
    pub fn identities(&mut self, files: &[File]) -> Result<Vec<Option<FileId>>, KernelError> {
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.iterate("files")?;
        let listed: HashMap<u64, FileId> = rows
            .chunks_exact(ROW)
            .map(|row| {
                let long = |at: usize| row[at..].first_chunk().map_or(0, |b| u64::from_ne_bytes(*b));
                let word = |at: usize| row[at..].first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
                (long(0), FileId { inode: long(8), device: word(16), generation: word(20) })
            })
            .collect();
        Ok(files.iter().map(|f| listed.get(&u64::from(f.as_raw_fd().cast_unsigned())).copied()).collect())
    }
}

/// Opens a file or directory only to name it: no permission to read is needed, nothing is triggered (a FIFO or device
/// is not opened). Links are followed.
pub fn open_path(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)
}
