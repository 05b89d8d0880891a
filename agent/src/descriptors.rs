//! Open files that a program inherits across an exec.

use std::io;

/// Marks every descriptor from `first` on as closed by the next exec.
///
/// # Errors
/// What close_range(2) gives: `EINVAL` on a kernel before 5.11.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: takes integers only, and closes nothing now: every descriptor stays valid for its owner.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsRawFd};

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    #[test]
    fn what_was_open_across_an_exec_no_longer_is() {
        let file = File::open("/dev/null").unwrap();
        fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        close_on_exec_from(u32::try_from(file.as_raw_fd()).unwrap()).unwrap();
        assert_eq!(fcntl(&file, FcntlArg::F_GETFD).unwrap(), FdFlag::FD_CLOEXEC.bits());
    }
}
