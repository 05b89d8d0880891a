//! A file's memory that outlives the descriptor it was made with.

use std::{
    fs::File,
    io,
    os::fd::AsRawFd,
    path::Path,
    ptr::{self, NonNull},
};

use anyhow::{Context, Result};
use nix::errno::Errno;

/// The first page of a file, mapped to be written and shared. Nobody has a descriptor of it.
#[derive(Debug)]
pub(crate) struct Mapped {
    place: NonNull<u8>,
}

impl Mapped {
    /// Bytes of it.
    pub(crate) const LENGTH: usize = 4096;

    /// Maps the file, which has at least a page. Waits as open(2) does while somebody holds a lease on it.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, at a place that the kernel chooses; nothing that there is is touched.
        let place = unsafe { libc::mmap(ptr::null_mut(), Self::LENGTH, access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if place == libc::MAP_FAILED {
            return Err(io::Error::from(Errno::last())).with_context(|| format!("{} is not mapped", path.display()));
        }
        Ok(Self { place: NonNull::new(place.cast()).context("a mapping at 0")? })
    }

    /// Writes one of its bytes and says what it was.
    pub(crate) fn write(&mut self, at: usize, byte: u8) -> u8 {
        assert!(at < Self::LENGTH, "{at} is not in the first page");
        // SAFETY: the place lies in the mapping, which lives as long as this does, and nothing else here refers to it.
        unsafe { ptr::replace(self.place.as_ptr().add(at), byte) }
    }

    /// Where it is.
    pub(crate) fn address(&self) -> u64 {
        self.place.as_ptr() as u64
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and nothing refers to it any more.
        unsafe { libc::munmap(self.place.as_ptr().cast(), Self::LENGTH) };
    }
}
