//! bpf(2) for programs, where aya does not have it: how they are loaded and linked by hand, run over one map,
//! and how often they were skipped.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use super::sys::new_descriptor;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_BTF_LOAD: libc::c_long = 18;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_ITER_CREATE: libc::c_long = 33;
/// `enum bpf_attach_type`
const BPF_TRACE_ITER: u32 = 28;

/// As `BPF_OBJ_GET_INFO_BY_FD` reads it.
#[repr(C)]
struct Information {
    descriptor: u32,
    length: u32,
    at: u64,
}

/// How often the kernel did not run a program because a run of it was under way on that processor
/// (`bpf_prog_info.recursion_misses`, the 27th word of 8 bytes, since 5.12). aya does not read it.
pub fn skipped_runs(program: BorrowedFd<'_>) -> io::Result<u64> {
    const WORD: usize = 26;
    let mut words = [0_u64; WORD + 1];
    let attribute = Information {
        descriptor: program.as_raw_fd().cast_unsigned(),
        length: size_of_val(&words) as u32,
        at: (&raw mut words) as u64,
    };
    // SAFETY: the attribute and what it points to live through the call; the kernel writes at most `length` bytes.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const attribute, size_of::<Information>()) };
    if result == 0 { Ok(words[WORD]) } else { Err(io::Error::last_os_error()) }
}

/// `union bpf_attr` of `BPF_LINK_CREATE` for an iterator (as `Element` in `sys.rs`).
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

/// A program to load, as `union bpf_attr` has it for `BPF_PROG_LOAD`; all pointers live through the call.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Load {
    /// `enum bpf_prog_type`
    pub kind: u32,
    /// How many instructions, of eight bytes each.
    pub instruction_count: u32,
    /// Where they are.
    pub instructions: u64,
    /// A C string.
    pub license: u64,
    /// What the verifier is to say: 0, nothing.
    pub log_level: u32,
    /// How many bytes there are for it.
    pub log_size: u32,
    /// Where.
    pub log: u64,
    /// Of no use since 5.0.
    pub kernel_version: u32,
    /// `BPF_F_*`
    pub flags: u32,
    /// A C string in place.
    pub name: [u8; 16],
    /// Of a device that runs it.
    pub interface: u32,
    /// `enum bpf_attach_type`
    pub attach_type: u32,
    /// The descriptor of its types.
    pub types: u32,
    /// Bytes of one entry of `functions`.
    pub function_size: u32,
    /// Where its functions are described.
    pub functions: u64,
    /// How many there are.
    pub function_count: u32,
    /// Bytes of one entry of `lines`.
    pub line_size: u32,
    /// Where its lines are described.
    pub lines: u64,
    /// How many there are.
    pub line_count: u32,
    /// Always 0.
    pub pad: u32,
}

/// Loads a program for an attach type that aya does not know. Where the verifier refuses it, what it said is logged.
pub fn load_program(mut load: Load) -> io::Result<OwnedFd> {
    // SAFETY: the caller's pointers live through the call, as it promises; the kernel reads as much as the counts say.
    let first =
        new_descriptor(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) });
    let Err(refused) = first else { return first };
    let mut said = vec![0u8; 1 << 20];
    (load.log, load.log_size, load.log_level) = (said.as_mut_ptr() as u64, 1 << 20, 1);
    // SAFETY: as above; the kernel writes into the log as much as its size says.
    let again =
        new_descriptor(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) });
    let end = said.iter().position(|byte| *byte == 0).unwrap_or(0);
    tracing::debug!("the verifier: {}", String::from_utf8_lossy(&said[end.saturating_sub(2000)..end]));
    again.map_err(|_again| refused)
}

/// Loads type information.
pub fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    // where, no log, how many bytes, no log
    let attribute = [types.as_ptr() as u64, 0, types.len() as u64, 0];
    // SAFETY: the attribute and what it points to live through the call.
    new_descriptor(unsafe { libc::syscall(libc::SYS_bpf, BPF_BTF_LOAD, &raw const attribute, size_of_val(&attribute)) })
}

/// Attaches a program to a cgroup.
pub fn link_to_cgroup(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let number = |descriptor: BorrowedFd<'_>| descriptor.as_raw_fd().cast_unsigned();
    let attribute = [number(program), number(cgroup), attach_type, 0];
    // SAFETY: the attribute lives through the call.
    new_descriptor(unsafe {
        libc::syscall(libc::SYS_bpf, BPF_LINK_CREATE, &raw const attribute, size_of_val(&attribute))
    })
}
