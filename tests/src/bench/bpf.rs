//! The few calls of bpf(2) that the benchmarks make themselves, so that no loader is measured with them.

use std::{
    fs::File,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result, ensure};

use crate::harness::bpf::Map;

/// `enum bpf_cmd` (`include/uapi/linux/bpf.h`, 6.18).
const PROG_LOAD: libc::c_int = 5;
const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const LINK_CREATE: libc::c_int = 28;
/// `BPF_PROG_TYPE_CGROUP_SOCK`, `BPF_CGROUP_INET_SOCK_CREATE`.
const SOCK: u32 = 9;
pub(super) const SOCK_CREATE: u32 = 2;
/// `r0 = 1; exit`
const PASS: [u64; 2] = [0x0000_0001_0000_00b7, 0x0000_0000_0000_0095];
/// `r0 = 0; exit`
const NOTHING: [u64; 2] = [0x0000_0000_0000_00b7, 0x0000_0000_0000_0095];

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
    btf: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    /// The number of what it is attached to in the kernel's type information.
    target: u32,
}

/// As `BPF_RAW_TRACEPOINT_OPEN` reads it; without a name it is attached to what it was loaded for.
#[repr(C)]
struct Open {
    name: u64,
    program: u32,
    pad: u32,
}

/// As `BPF_LINK_CREATE` reads it.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
}

/// A program that lets everything pass, of a type and for a place.
pub(super) fn empty(kind: u32, attach: u32) -> Result<OwnedFd> {
    load(&PASS, ProgLoad { kind, attach, ..ProgLoad::default() })
}

/// A program on the making of sockets that gives each a value of a map of socket storage, and does nothing else.
pub(super) fn storing(map: &Map) -> Result<OwnedFd> {
    // r2 = r1; r3 = 0; r4 = BPF_SK_STORAGE_GET_F_CREATE; r1 = map; call bpf_sk_storage_get; r0 = 1; exit
    let map = u64::from(map.number()) << 32 | 0x1118;
    let text = [0x12bf, 0x03b7, 0x0000_0001_0000_04b7, map, 0, 0x0000_006b_0000_0085, PASS[0], PASS[1]];
    load(&text, ProgLoad { kind: SOCK, attach: SOCK_CREATE, ..ProgLoad::default() })
}

/// A program that does nothing, for `target` in the kernel's type information, and its attachment.
pub(super) fn empty_at(kind: u32, attach: u32, target: u32) -> Result<(OwnedFd, OwnedFd)> {
    let program = load(&NOTHING, ProgLoad { kind, attach, target, ..ProgLoad::default() })?;
    let link = bpf(RAW_TRACEPOINT_OPEN, &Open { name: 0, program: program.as_raw_fd().cast_unsigned(), pad: 0 })?;
    Ok((program, link))
}

fn load(text: &[u64], how: ProgLoad) -> Result<OwnedFd> {
    let instructions = u32::try_from(text.len())?;
    let licence = c"Dual MIT/GPL".as_ptr() as u64;
    bpf(PROG_LOAD, &ProgLoad { instructions, text: text.as_ptr() as u64, licence, ..how })
}

/// Attaches a program to a cgroup until the link is closed.
pub(super) fn link(program: &OwnedFd, cgroup: &File, attach: u32) -> Result<OwnedFd> {
    let program = program.as_raw_fd().cast_unsigned();
    bpf(LINK_CREATE, &LinkCreate { program, target: cgroup.as_raw_fd().cast_unsigned(), attach, flags: 0 })
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
