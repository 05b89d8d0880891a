//! Read leases (fcntl(2), `F_SETLEASE`): who opens a leased file to write, or truncates it, waits until the lease is given
//! back or `/proc/sys/fs/lease-break-time` has passed. The holder is told by `SIGIO`.

use std::{fs::File, io, os::fd::AsRawFd as _};

/// Takes a read lease on a file that is open to read. Refused while somebody has it open to write; a writable mapping
/// counts, because it holds its file open.
///
/// # Errors
/// As fcntl(2): `EAGAIN` there is a writer, `EACCES` the file is another user's and there is no `CAP_LEASE`, `EINVAL` the
/// file system has no leases.
pub fn take_lease(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the command takes an integer.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the lease is held and nobody waits for it.
#[must_use]
pub fn has_lease(file: &File) -> bool {
    // SAFETY: the descriptor is open, and the command takes no argument.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) == libc::F_RDLCK }
}
