//! Lays down what [`Shed`] says: for the calling thread and all that it starts from then on, and for good.
//!
//! Decides nothing. For a process with one thread, just before its exec.

mod filter;

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr,
};

use crate::policy::Shed;

/// The first version of Landlock that keeps signals in (Linux 6.12).
const LANDLOCK_SIGNALS: libc::c_long = 6;
/// `LANDLOCK_CREATE_RULESET_VERSION`
const LANDLOCK_VERSION: u32 = 1;
/// `LANDLOCK_SCOPE_SIGNAL`
const SCOPE_SIGNAL: u64 = 1 << 1;
/// `_LINUX_CAPABILITY_VERSION_3`
const CAPABILITIES: u32 = 0x2008_0522;
/// `CAP_SETPCAP`
const SETPCAP: u64 = 1 << 8;

/// What could not be laid down.
#[derive(Debug, thiserror::Error)]
pub enum ShedError {
    /// prctl(2)
    #[error("no_new_privs cannot be set: {0}")]
    NoNewPrivs(#[source] io::Error),
    /// landlock_create_ruleset(2) or landlock_restrict_self(2)
    #[error("landlock cannot be had: {0}")]
    Landlock(#[source] io::Error),
    /// prctl(2)
    #[error("a seccomp filter cannot be had: {0}")]
    Seccomp(#[source] io::Error),
    /// capget(2), capset(2) or prctl(2)
    #[error("capabilities cannot be given up: {0}")]
    Capabilities(#[source] io::Error),
}

/// Lays down what is to be laid down.
///
/// # Errors
/// Something of it cannot be; what came before it is.
pub fn lay_down(shed: &Shed) -> Result<(), ShedError> {
    if shed.no_new_privs {
        control(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(ShedError::NoNewPrivs)?;
    }
    // these two want no_new_privs or CAP_SYS_ADMIN, which may be among what goes
    if shed.apart {
        stand_apart().map_err(ShedError::Landlock)?;
    }
    if let Some(program) = filter::filter(shed.refuse) {
        refuse_calls(&program).map_err(ShedError::Seccomp)?;
    }
    keep_only(shed).map_err(ShedError::Capabilities)
}

/// Whether this kernel's Landlock keeps signals in.
#[must_use]
pub fn landlock_keeps_signals() -> bool {
    // SAFETY: asks for the version; no ruleset is given.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<libc::c_void>(), 0_usize, LANDLOCK_VERSION)
    };
    version >= LANDLOCK_SIGNALS
}

/// prctl(2) with one argument.
fn control(what: i32, argument: u64) -> io::Result<i32> {
    let none: libc::c_ulong = 0;
    // SAFETY: the operations that are used here take integers only.
    let result = unsafe { libc::prctl(what, argument, none, none, none) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// From now on a signal, a trace or a look reaches what descends from this process, and nothing else.
fn stand_apart() -> io::Result<()> {
    // access to files, access to the network, scope
    let attributes = [0, 0, SCOPE_SIGNAL];
    // SAFETY: as many bytes as are said, which outlive the call.
    let made = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, attributes.as_ptr(), size_of_val(&attributes), 0_u32)
    };
    let made = i32::try_from(made).map_err(io::Error::other)?;
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    let ruleset = unsafe { OwnedFd::from_raw_fd(made) };
    // SAFETY: integers only.
    let done = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn refuse_calls(program: &[libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    let none: libc::c_ulong = 0;
    // SAFETY: the program and what names it outlive the call, which only reads them.
    let done = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::c_ulong::from(libc::SECCOMP_MODE_FILTER), &raw const filter, none, none)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Empties every set of capabilities but for what is kept. The bounding set is left as it is by who may not change it and
/// gains nothing from it: under `no_new_privs`, and an ordinary user by the programs that the policy lets give it more.
fn keep_only(shed: &Shed) -> io::Result<()> {
    let keep = shed.keep;
    let header = [CAPABILITIES, 0];
    // effective, permitted, inheritable of the capabilities 0 to 31, then of the others
    let mut sets = [0_u32; 6];
    // SAFETY: a header of version 3 and room for its two halves, which outlive the call.
    if unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let gains = !shed.no_new_privs && nix::unistd::geteuid().is_root();
    if gains || u64::from(sets[0]) & SETPCAP != 0 {
        for capability in 0..64 {
            // an error: there are no more
            let Ok(held) = control(libc::PR_CAPBSET_READ, capability) else { break };
            if held == 1 && keep >> capability & 1 == 0 {
                control(libc::PR_CAPBSET_DROP, capability)?;
            }
        }
    }
    for (half, shift) in [(0, 0), (3, 32)] {
        let kept = (keep >> shift & u64::from(u32::MAX)) as u32;
        sets[half..half + 3].iter_mut().for_each(|set| *set &= kept);
    }
    // what is not inheritable is not ambient either: the kernel takes it from there
    // SAFETY: as above; only read.
    if unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
