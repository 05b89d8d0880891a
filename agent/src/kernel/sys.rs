//! The few system calls that neither aya nor nix has.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use tipstaff_common::label::Label;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;

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

/// Raises the limit of locked memory, which kernels before 5.11 account maps to. A refusal is for a warning, no more:
/// the kernels that Tipstaff runs on account to the memory cgroup.
pub fn raise_memlock() -> io::Result<()> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    Ok(setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?)
}

/// A descriptor of a process, which cannot come to mean another one when the number is used again.
pub fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Nanoseconds of `CLOCK_BOOTTIME`, which suspend does not stop and no clock step moves.
#[must_use]
pub fn boot_now() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    time.map_or(0, |t| t.tv_sec().cast_unsigned() * 1_000_000_000 + t.tv_nsec().cast_unsigned())
}

/// Kills the process that a pidfd names, whatever its number means by now.
pub fn kill_pidfd(process: BorrowedFd<'_>) -> io::Result<()> {
    let nothing = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: no memory is passed.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, nothing, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
