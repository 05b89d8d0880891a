//! The few calls of bpf(2) that the benchmarks make themselves, so that no loader is measured with them.

use std::{
    ffi::CString,
    fs::File,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result, ensure};

/// `enum bpf_cmd` (`include/uapi/linux/bpf.h`, 6.18).
const PROG_LOAD: libc::c_int = 5;
const OBJ_GET: libc::c_int = 7;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_CREATE: libc::c_int = 28;
const ENABLE_STATS: libc::c_int = 32;
/// `r0 = 1; exit`
const PASS: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];

/// The start of `union bpf_attr` as `BPF_PROG_LOAD` reads it; what follows is zero to the kernel.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    instructions: u32,
    text: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

/// As `BPF_LINK_CREATE` reads it.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
}

/// As `BPF_OBJ_GET` reads it.
#[repr(C)]
struct ObjGet {
    path: u64,
    fd: u32,
    flags: u32,
}

/// As `BPF_OBJ_GET_INFO_BY_FD` reads it.
#[repr(C)]
struct GetInfo {
    fd: u32,
    length: u32,
    info: u64,
}

/// `struct bpf_link_info`, its start.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
}

/// `struct bpf_prog_info`: its words of 8 bytes. Those that are read: `run_time_ns` 24, `run_cnt` 25, and the lower half
/// of 27, `verified_insns` (5.16).
const INFO: usize = 28;

/// What the kernel knows of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stats {
    pub(super) run_ns: u64,
    pub(super) runs: u64,
    pub(super) verified: u64,
}

/// A program that lets everything pass, of a type and for a place.
pub(super) fn empty(kind: u32, attach: u32) -> Result<OwnedFd> {
    let licence = c"MIT";
    let load = ProgLoad {
        kind,
        instructions: u32::try_from(PASS.len())?,
        text: PASS.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        attach,
        ..ProgLoad::default()
    };
    bpf(PROG_LOAD, &load)
}

/// Attaches a program to a cgroup until the link is closed.
pub(super) fn link(program: &OwnedFd, cgroup: &File, attach: u32) -> Result<OwnedFd> {
    let program = program.as_raw_fd().cast_unsigned();
    bpf(LINK_CREATE, &LinkCreate { program, target: cgroup.as_raw_fd().cast_unsigned(), attach, flags: 0 })
}

/// Makes the kernel count the runs and the time of every program until this is closed (`BPF_STATS_RUN_TIME`).
pub(super) fn count_time() -> Result<OwnedFd> {
    bpf(ENABLE_STATS, &0_u32)
}

/// The program that a pinned link holds.
pub(super) fn program_of(pin: &Path) -> Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_encoded_bytes())?;
    let link = bpf(OBJ_GET, &ObjGet { path: path.as_ptr() as u64, fd: 0, flags: 0 })?;
    let mut info = LinkInfo::default();
    info_of(&link, &mut info)?;
    // the structure begins with the number
    bpf(PROG_GET_FD_BY_ID, &[info.program, 0, 0])
}

/// What the kernel counted for a program.
pub(super) fn stats(program: &OwnedFd) -> Result<Stats> {
    let mut info = [0_u64; INFO];
    info_of(program, &mut info)?;
    Ok(Stats { run_ns: info[24], runs: info[25], verified: info[27] & 0xffff_ffff })
}

/// `T` is integers only, so that whatever the kernel writes is one.
fn info_of<T>(fd: &OwnedFd, info: &mut T) -> Result<()> {
    let request = GetInfo {
        fd: fd.as_raw_fd().cast_unsigned(),
        length: u32::try_from(size_of::<T>())?,
        info: std::ptr::from_mut(info) as u64,
    };
    // SAFETY: the kernel reads the request and writes at most `length` bytes to `info`, which outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, &raw const request, size_of::<GetInfo>()) };
    ensure!(done == 0, "bpf({OBJ_GET_INFO_BY_FD}): {}", std::io::Error::last_os_error());
    Ok(())
}

/// A command whose result is a descriptor. `T` is what that command reads; what it points to lives as long as the call.
fn bpf<T>(command: libc::c_int, attributes: &T) -> Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes, which are initialised integers without padding, and the
    // instructions, the licence or the path that they point to. It writes nothing: there is no log.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    ensure!(fd >= 0, "bpf({command}): {}", std::io::Error::last_os_error());
    let fd = libc::c_int::try_from(fd).context("a descriptor")?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
