//! The floor: programs of two instructions on a cgroup, by bpf(2) alone. What these cost, no program here can undercut.

use std::{
    fs::File,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result, ensure};

use crate::harness::cgroup::Cgroup;

/// `enum bpf_cmd` (`include/uapi/linux/bpf.h`, 6.18).
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
/// `enum bpf_prog_type`: `CGROUP_SKB`, `CGROUP_SOCK_ADDR`.
const SKB: u32 = 8;
const SOCK_ADDR: u32 = 18;
/// Program type and `enum bpf_attach_type`: ingress, egress, connect4, connect6, sendmsg4, sendmsg6.
const HOOKS: [(u32, u32); 6] = [(SKB, 0), (SKB, 1), (SOCK_ADDR, 10), (SOCK_ADDR, 11), (SOCK_ADDR, 14), (SOCK_ADDR, 15)];
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

/// The start of `union bpf_attr` as `BPF_LINK_CREATE` reads it.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
}

/// Empty programs on a cgroup, on every hook of the traffic that the agent uses; off when dropped.
#[derive(Debug)]
pub(super) struct Floor {
    _links: Vec<OwnedFd>,
}

impl Floor {
    pub(super) fn attach(cgroup: &Cgroup) -> Result<Self> {
        let target = File::open(cgroup.path()).with_context(|| format!("{}", cgroup.path().display()))?;
        let links = HOOKS.iter().map(|hook| empty(*hook, &target)).collect::<Result<Vec<_>>>();
        Ok(Self { _links: links.context("the empty programs cannot be attached")? })
    }
}

fn empty((kind, attach): (u32, u32), cgroup: &File) -> Result<OwnedFd> {
    let licence = c"MIT";
    let load = ProgLoad {
        kind,
        instructions: u32::try_from(PASS.len())?,
        text: PASS.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        attach,
        ..ProgLoad::default()
    };
    let program = bpf(PROG_LOAD, &load)?;
    let link = LinkCreate {
        program: program.as_raw_fd().cast_unsigned(),
        target: cgroup.as_raw_fd().cast_unsigned(),
        attach,
        flags: 0,
    };
    bpf(LINK_CREATE, &link)
}

/// A command whose result is a descriptor. `T` is one of the structures above: what it points to lives as long as the call.
fn bpf<T>(command: libc::c_int, attributes: &T) -> Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes, which are initialised integers without padding, and the
    // instructions and the licence that they point to, which are statics. It writes nothing: there is no log.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    ensure!(fd >= 0, "bpf({command}): {}", std::io::Error::last_os_error());
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(libc::c_int::try_from(fd)?) })
}
