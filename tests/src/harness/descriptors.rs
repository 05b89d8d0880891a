//! Descriptors on their way from one process to another, and files of every kind to send there.

use std::{
    fs::{File, OpenOptions},
    io::{IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{fs::OpenOptionsExt as _, net::UnixStream},
    },
};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
};

/// Room for the descriptors of one message, and its header.
const ROOM: usize = 256;

/// Sends `bytes` and what is open, in one message.
pub(crate) fn pass(stream: &UnixStream, bytes: &[u8], files: &[RawFd]) -> Result<()> {
    let parts = [IoSlice::new(bytes)];
    let rights = [ControlMessage::ScmRights(files)];
    let rights = if files.is_empty() { &[][..] } else { &rights };
    sendmsg::<()>(stream.as_raw_fd(), &parts, rights, MsgFlags::empty(), None)?;
    Ok(())
}

/// What came in one message: bytes, descriptors, and whether some of those did not arrive (`MSG_CTRUNC`).
#[derive(Debug)]
pub(crate) struct Passed {
    pub(crate) bytes: Vec<u8>,
    pub(crate) files: Vec<OwnedFd>,
    pub(crate) cut: bool,
}

/// Waits for one message. By the system call: what the kernel cut is an error elsewhere, with what did arrive lost.
pub(crate) fn receive(stream: &UnixStream) -> Result<Passed> {
    let (mut bytes, mut space) = ([0; 64], [0u64; ROOM / 8]);
    let mut part = IoSliceMut::new(&mut bytes);
    // SAFETY: all zeros are an empty message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = (&raw mut part).cast();
    message.msg_iovlen = 1;
    message.msg_control = space.as_mut_ptr().cast();
    message.msg_controllen = ROOM;
    // SAFETY: an `IoSliceMut` is a `struct iovec`; it and the space outlive the call.
    let length = unsafe { libc::recvmsg(stream.as_raw_fd(), &raw mut message, 0) };
    let length = usize::try_from(Errno::result(length)?)?;
    let mut files = Vec::new();
    // SAFETY: the kernel wrote whole headers into the space, and `msg_controllen` says how far; what follows one of
    // `SCM_RIGHTS` are descriptors that it made for this process.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS {
            let count = ((*header).cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
            let first = libc::CMSG_DATA(header).cast::<RawFd>();
            files.extend((0..count).map(|at| OwnedFd::from_raw_fd(first.add(at).read_unaligned())));
        }
    }
    Ok(Passed { bytes: bytes[..length].to_vec(), files, cut: message.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// Takes a descriptor out of a process: pidfd_getfd(2).
pub(crate) fn take_from(process: &OwnedFd, number: RawFd) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    made(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
}

/// What a system call made.
fn made(descriptor: libc::c_long) -> Result<OwnedFd, Errno> {
    let number = Errno::result(descriptor)?;
    // SAFETY: the kernel just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number as RawFd) })
}

/// io_uring_setup(2)
pub(crate) fn ring() -> Result<OwnedFd, Errno> {
    let mut parameters = [0u32; 30];
    // SAFETY: as many bytes as `struct io_uring_params` has, which outlive the call.
    made(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) })
}

/// userfaultfd(2)
pub(crate) fn user_fault() -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    made(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) })
}

/// perf_event_open(2): counts nothing but the time of this process.
pub(crate) fn perf_event() -> Result<OwnedFd, Errno> {
    let mut attributes = [0u32; 16];
    // type software, size; the event 0 is the clock of a processor
    (attributes[0], attributes[1]) = (1, 64);
    // SAFETY: the attributes outlive the call.
    made(unsafe { libc::syscall(libc::SYS_perf_event_open, attributes.as_ptr(), 0, -1, -1, 0) })
}

/// A file system that is being made, one that is made and mounted nowhere, and a copy of the root: fsopen(2), fsmount(2),
/// open_tree(2).
pub(crate) fn mounts() -> Result<[OwnedFd; 3]> {
    const CREATE: libc::c_int = 6;
    const CLONE: libc::c_int = 1;
    // SAFETY: a constant string.
    let making = made(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), 0) }).context("fsopen")?;
    // SAFETY: null where nothing is meant.
    let done = unsafe { libc::syscall(libc::SYS_fsconfig, making.as_raw_fd(), CREATE, 0, 0, 0) };
    Errno::result(done).context("fsconfig")?;
    // SAFETY: no pointers.
    let mounted = made(unsafe { libc::syscall(libc::SYS_fsmount, making.as_raw_fd(), 0, 0) }).context("fsmount")?;
    // SAFETY: a constant string.
    let copied = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), CLONE) };
    Ok([making, mounted, made(copied).context("open_tree")?])
}

/// eventfd(2)
pub(crate) fn event() -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    made(unsafe { libc::eventfd(0, 0) }.into())
}

/// An existing file, open in some way, with further flags of open(2).
pub(crate) fn opened(path: &str, write: bool, flags: i32) -> Result<OwnedFd> {
    let file = OpenOptions::new().read(!write).append(write).custom_flags(flags).open(path);
    let file: File = file.with_context(|| format!("{path} cannot be opened"))?;
    ensure!(file.as_raw_fd() > 2, "{path} became a standard stream");
    Ok(file.into())
}
