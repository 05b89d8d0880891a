//! The few system calls that neither aya nor nix has.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use nix::sys::signal::Signal;
use tipstaff_common::label::Label;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
/// `enum bpf_attach_type`
const BPF_TRACE_ITER: u32 = 28;

/// `union bpf_attr` for operations on one element (`include/uapi/linux/bpf.h`, 6.18).
#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// One element operation on task storage, whose key from user space is a pidfd.
fn element(command: libc::c_long, map: BorrowedFd<'_>, task: BorrowedFd<'_>, label: &mut Label) -> io::Result<()> {
    let key = task.as_raw_fd();
    let attribute = Element {
        map: map.as_raw_fd().cast_unsigned(),
        pad: 0,
        key: (&raw const key) as u64,
        value: (&raw mut *label) as u64,
        flags: 0,
    };
    // SAFETY: the attribute and what it points to live through the call; the kernel reads four bytes of key and reads or
    // writes one `Label`, which is the map's value size.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attribute, size_of::<Element>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The label of the process's main thread; `None` where it has none.
pub fn label_of(map: BorrowedFd<'_>, task: BorrowedFd<'_>) -> io::Result<Option<Label>> {
    let mut label = Label::default();
    match element(BPF_MAP_LOOKUP_ELEM, map, task, &mut label) {
        Ok(()) => Ok(Some(label)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Labels the process's main thread.
pub fn set_label(map: BorrowedFd<'_>, task: BorrowedFd<'_>, mut label: Label) -> io::Result<()> {
    element(BPF_MAP_UPDATE_ELEM, map, task, &mut label)
}

/// Takes the label off the process's main thread; one that has none is left as it is.
pub fn remove_label(map: BorrowedFd<'_>, task: BorrowedFd<'_>) -> io::Result<()> {
    match element(BPF_MAP_DELETE_ELEM, map, task, &mut Label::default()) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// Gives back what was allocated and is free again. The allocator keeps it for later otherwise, and the kernel's type
/// information, which only the start reads, takes several times what the agent ever needs again.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; only free memory is touched.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// A descriptor of a process, which cannot come to mean another one when the number is used again.
pub fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    new_descriptor(descriptor)
}

/// Nanoseconds of `CLOCK_BOOTTIME`, which suspend does not stop and no clock step moves.
#[must_use]
pub fn boot_now() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    time.map_or(0, |t| t.tv_sec().cast_unsigned() * 1_000_000_000 + t.tv_nsec().cast_unsigned())
}

/// Kills the process that a pidfd names, whatever its number means by now.
pub fn kill_pidfd(process: BorrowedFd<'_>) -> io::Result<()> {
    signal_pidfd(process, Signal::SIGKILL)
}

/// Sends a signal to the process that a pidfd names.
pub fn signal_pidfd(process: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let nothing = std::ptr::null::<libc::siginfo_t>();
    let (process, signal) = (process.as_raw_fd(), signal as libc::c_int);
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process, signal, nothing, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `union bpf_attr` of `BPF_LINK_CREATE` for an iterator (as `Element`).
#[repr(C)]
struct IteratorLink {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    information: u64,
    information_length: u32,
    pad: u32,
}

/// Links an iterator program to one map: whoever reads the link's iterators reads that map's elements (aya has iterators
/// without a map only).
pub fn link_iterator(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // `union bpf_iter_link_info`: the map's descriptor
    let information = map.as_raw_fd();
    let attribute = IteratorLink {
        program: program.as_raw_fd().cast_unsigned(),
        target: 0,
        attach_type: BPF_TRACE_ITER,
        flags: 0,
        information: (&raw const information) as u64,
        information_length: size_of_val(&information) as u32,
        pad: 0,
    };
    // SAFETY: the attribute and what it points to live through the call.
    new_descriptor(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const attribute, size_of_val(&attribute))
    })
}

/// A file that an iterator program writes about one map's elements as it is read.
pub fn iterate_map(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let link = link_iterator(program, map)?;
    let attribute = [link.as_raw_fd(), 0];
    // SAFETY: the kernel reads the link's descriptor and flags, four bytes each.
    new_descriptor(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_ITER_CREATE, &raw const attribute, size_of_val(&attribute))
    })
}

/// What a system call that makes a descriptor answered.
fn new_descriptor(answer: libc::c_long) -> io::Result<OwnedFd> {
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = i32::try_from(answer).map_err(io::Error::other)?;
    // SAFETY: the kernel just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// While it lives, this thread is scheduled before everything ordinary: what it ends may be a crowd that computes, and
/// would else be asked for its processors first. Its children are scheduled as ever.
#[derive(Debug)]
pub struct Urgent(());

impl Urgent {
    /// Begins; where the host refuses (`CAP_SYS_NICE`), everything goes on as it is.
    #[must_use]
    pub fn begin() -> Self {
        // the lowest real-time priority is above every ordinary one
        schedule(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1);
        Self(())
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        schedule(libc::SCHED_OTHER, 0);
    }
}

fn schedule(policy: libc::c_int, priority: libc::c_int) {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the kernel reads one sched_param, which outlives the call.
    let done = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    if done != 0 {
        tracing::debug!("the scheduling cannot be changed: {}", io::Error::last_os_error());
    }
}
