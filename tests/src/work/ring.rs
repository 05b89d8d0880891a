//! io_uring by its system calls: one request at a time, by the caller, by a worker of the kernel, or by a thread of the
//! kernel that polls.

use std::{
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Result, bail};
use nix::errno::Errno;

/// `IORING_OP_*`
const READ_FIXED: u8 = 4;
pub(super) const SENDMSG: u8 = 9;
pub(super) const CONNECT: u8 = 16;
pub(super) const SEND: u8 = 26;
pub(super) const SOCKET: u8 = 45;
pub(super) const SEND_ZC: u8 = 47;
pub(super) const SENDMSG_ZC: u8 = 48;
/// Since 6.11.
pub(super) const BIND: u8 = 56;
pub(super) const LISTEN: u8 = 57;

/// `IORING_REGISTER_BUFFERS`
const REGISTER_BUFFERS: u32 = 0;
/// `IORING_SETUP_SQPOLL`
const POLL: u32 = 1 << 1;
/// `IOSQE_ASYNC`
const ASYNC: u8 = 1 << 4;
/// `IORING_ENTER_*`
const GETEVENTS: u32 = 1;
const WAKEUP: u32 = 1 << 1;
/// Where the queue of requests is mapped; the queues share the mapping at 0 (`IORING_FEAT_SINGLE_MMAP`, since 5.4).
const REQUESTS: i64 = 0x1000_0000;
/// Requests that the queue has room for.
const ENTRIES: u32 = 4;
/// `struct io_uring_cqe`
const ANSWER: u32 = 16;

/// Who does what is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doer {
    Caller,
    Worker,
    Poller,
}

/// `struct io_sqring_offsets` and `struct io_cqring_offsets`: for both, `head`, `tail` and `mask` come first.
#[repr(C)]
#[derive(Default)]
struct Offsets {
    head: u32,
    tail: u32,
    mask: u32,
    entries: u32,
    flags_or_overflow: u32,
    dropped_or_answers: u32,
    array_or_flags: u32,
    pad: u32,
    address: u64,
}

/// `struct io_uring_params`
#[repr(C)]
#[derive(Default)]
struct Parameters {
    requests: u32,
    answers: u32,
    flags: u32,
    cpu: u32,
    idle: u32,
    features: u32,
    workers: u32,
    pad: [u32; 3],
    asked: Offsets,
    answered: Offsets,
}
const _: () = assert!(size_of::<Parameters>() == 120);

/// `struct io_uring_sqe`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct Request {
    pub(super) what: u8,
    pub(super) flags: u8,
    pub(super) priority: u16,
    pub(super) fd: i32,
    pub(super) offset: u64,
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) options: u32,
    pub(super) data: u64,
    pub(super) rest: [u64; 3],
}
const _: () = assert!(size_of::<Request>() == 64);

/// A ring; its mappings end with the process.
pub(crate) struct Ring {
    fd: OwnedFd,
    doer: Doer,
    queues: *mut u8,
    requests: *mut Request,
    parameters: Parameters,
}

impl Ring {
    pub(crate) fn new(doer: Doer) -> Result<Self> {
        let flags = if doer == Doer::Poller { POLL } else { 0 };
        let mut parameters = Parameters { flags, idle: 1000, ..Parameters::default() };
        // SAFETY: the call reads and writes one such structure, which outlives it.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, &raw mut parameters) };
        let fd = i32::try_from(Errno::result(fd)?)?;
        // SAFETY: the kernel just made it, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let asked = parameters.asked.array_or_flags + parameters.requests * 4;
        let answered = parameters.answered.dropped_or_answers + parameters.answers * ANSWER;
        let queues = map(&fd, asked.max(answered) as usize, 0)?;
        let requests = map(&fd, parameters.requests as usize * size_of::<Request>(), REQUESTS)?.cast();
        Ok(Self { fd, doer, queues, requests, parameters })
    }

    /// A number of the queues that kernel and process share.
    fn shared(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: the kernel says that an aligned number of 32 bits is there, in a mapping that ends with the process.
        unsafe { &*self.queues.add(offset as usize).cast::<AtomicU32>() }
    }

    /// Keeps so many bytes of memory at an address, whatever becomes of the mapping that they are in.
    pub(crate) fn keep(&self, address: u64, length: usize) -> Result<(), Errno> {
        let buffer = [address, length as u64];
        // SAFETY: an iovec as the kernel has it, which outlives the call.
        let done = unsafe {
            libc::syscall(libc::SYS_io_uring_register, self.fd.as_raw_fd(), REGISTER_BUFFERS, buffer.as_ptr(), 1)
        };
        Errno::result(done).map(drop)
    }

    /// Reads so many bytes of a pipe to an address in the memory that it keeps.
    pub(crate) fn read_into_kept(&self, from: &impl AsRawFd, address: u64, length: u32) -> Result<Result<i32, Errno>> {
        self.ask(Request {
            what: READ_FIXED,
            fd: from.as_raw_fd(),
            // where the pipe is
            offset: u64::MAX,
            address,
            length,
            ..Request::default()
        })
    }

    /// Asks for one thing and waits until it is done.
    pub(super) fn ask(&self, mut request: Request) -> Result<Result<i32, Errno>> {
        let (asked, answered) = (&self.parameters.asked, &self.parameters.answered);
        if self.doer == Doer::Worker {
            request.flags |= ASYNC;
        }
        let tail = self.shared(asked.tail).load(Ordering::Acquire);
        let place = tail & self.shared(asked.mask).load(Ordering::Relaxed);
        // SAFETY: the mask keeps it within the mapping, and the kernel has taken what was asked before.
        unsafe { self.requests.add(place as usize).write(request) };
        self.shared(asked.array_or_flags + place * 4).store(place, Ordering::Relaxed);
        self.shared(asked.tail).store(tail.wrapping_add(1), Ordering::Release);
        let flags = if self.doer == Doer::Poller { GETEVENTS | WAKEUP } else { GETEVENTS };
        // SAFETY: no pointers but a null one.
        let done =
            unsafe { libc::syscall(libc::SYS_io_uring_enter, self.fd.as_raw_fd(), 1, 1, flags, ptr::null::<u8>(), 0) };
        Errno::result(done)?;
        let head = self.shared(answered.head).load(Ordering::Acquire);
        if head == self.shared(answered.tail).load(Ordering::Acquire) {
            bail!("the ring was entered and has no answer");
        }
        let at = head & self.shared(answered.mask).load(Ordering::Relaxed);
        // the result is the second part of an answer, after eight bytes
        let result = self.shared(answered.dropped_or_answers + at * ANSWER + 8).load(Ordering::Acquire).cast_signed();
        self.shared(answered.head).store(head.wrapping_add(1), Ordering::Release);
        Ok(if result < 0 { Err(Errno::from_raw(-result)) } else { Ok(result) })
    }
}

fn map(fd: &OwnedFd, length: usize, offset: i64) -> Result<*mut u8> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping of a file that the kernel made for it; nothing that there is is touched.
    let place = unsafe { libc::mmap(ptr::null_mut(), length, access, libc::MAP_SHARED, fd.as_raw_fd(), offset) };
    if place == libc::MAP_FAILED {
        return Err(Errno::last().into());
    }
    Ok(place.cast())
}
