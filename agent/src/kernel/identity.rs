//! Which file it is, as the kernel's hooks will see it: asked of the kernel through an iterator over the agent's own
//! descriptors, because stat(2) gives other numbers on overlayfs and btrfs.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::Path,
};

use tipstaff_common::{
    place::{Place, Way},
    rule::{Content, FileId},
};

use super::{Kernel, KernelError};

/// Bytes of one row of the `files` iterator: descriptor, inode, device, generation, size, ctime, and the way to it.
const ROW: usize = 64;

/// An open file as the kernel's hooks see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which file it is.
    pub id: FileId,
    /// What moves with its content.
    pub content: Content,
    /// Where it stands; `None`: below more directories than the kernel programs walk, or in none.
    pub way: Option<Way>,
}

impl Kernel {
    /// Open files as the hooks see them, in their order; `None` for a file that the kernel did not list.
    pub fn see(&mut self, files: &[File]) -> Result<Vec<Option<Seen>>, KernelError> {
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self.iterate("files")?;
        let listed: HashMap<u64, Seen> = rows
            .chunks_exact(ROW)
            .map(|row| {
                let long = |at: usize| row[at..].first_chunk().map_or(0, |b| u64::from_ne_bytes(*b));
                let word = |at: usize| row[at..].first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
                let id = FileId { inode: long(8), device: word(16), generation: word(20) };
                let way = Way { place: Place { names: long(40), device: word(48), pad: 0 }, weight: long(56) };
                let way = Some(way).filter(|way| way.weight != 0);
                (long(0), Seen { id, content: Content { size: long(24), changed: long(32) }, way })
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
