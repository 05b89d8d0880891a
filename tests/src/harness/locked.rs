//! A file that whoever writes to it waits for in the kernel, where no signal reaches: uninterruptible sleep, made at will.

use std::{
    fs::{File, write},
    io::{Error, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use anyhow::{Result, anyhow, ensure};

const PAGE: usize = 4096;

/// Memory whose first touch waits until it is dropped: in the kernel, for whoever hands it to a system call.
struct Unready {
    address: usize,
    descriptor: Option<OwnedFd>,
}

impl Unready {
    /// userfaultfd(2).
    fn new() -> Result<Self> {
        // `UFFDIO_API` and `UFFDIO_REGISTER`, include/uapi/linux/userfaultfd.h
        const API: libc::c_ulong = 0xc018_aa3f;
        const REGISTER: libc::c_ulong = 0xc020_aa00;
        const MISSING: u64 = 1;
        // SAFETY: no pointers.
        let raw = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        ensure!(raw >= 0, "userfaultfd: {}", Error::last_os_error());
        // SAFETY: the kernel just made it, and nobody else has it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(i32::try_from(raw)?) };
        let mut api = [0xaa_u64, 0, 0];
        // SAFETY: the call reads and writes three words, which outlive it.
        let agreed = unsafe { libc::ioctl(descriptor.as_raw_fd(), API, &raw mut api) };
        ensure!(agreed == 0, "UFFDIO_API: {}", Error::last_os_error());
        let (flags, access) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new private mapping; it is left to the process's end.
        let place = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, access, flags, -1, 0) };
        ensure!(place != libc::MAP_FAILED, "mmap: {}", Error::last_os_error());
        let address = place as usize;
        let mut register = [address as u64, PAGE as u64, MISSING, 0];
        // SAFETY: as above, four words.
        let registered = unsafe { libc::ioctl(descriptor.as_raw_fd(), REGISTER, &raw mut register) };
        ensure!(registered == 0, "UFFDIO_REGISTER: {}", Error::last_os_error());
        Ok(Self { address, descriptor: Some(descriptor) })
    }

    /// Who waits for it goes on.
    fn ready(&mut self) {
        self.descriptor = None;
    }
}

impl Drop for Unready {
    fn drop(&mut self) {
        self.ready();
    }
}

/// A file in the midst of a write: whoever writes to it as well waits for the lock that this process holds in the kernel.
pub(crate) struct LockedFile {
    memory: Unready,
    writer: JoinHandle<Result<()>>,
}

impl LockedFile {
    /// Makes the file, and begins the write.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        write(path, "")?;
        let memory = Unready::new()?;
        let (address, path) = (memory.address, PathBuf::from(path));
        let writer = std::thread::spawn(move || -> Result<()> {
            let mut file = File::options().append(true).open(path)?;
            // SAFETY: the page is mapped until the process ends; its bytes are zeros whenever they come to be.
            let bytes = unsafe { std::slice::from_raw_parts(address as *const u8, PAGE) };
            file.write_all(bytes)?;
            Ok(())
        });
        Ok(Self { memory, writer })
    }

    /// Lets the write end, and with it whoever waits go on.
    pub(crate) fn release(mut self) -> Result<()> {
        self.memory.ready();
        self.writer.join().map_err(|_panic| anyhow!("the write broke down"))?
    }
}
