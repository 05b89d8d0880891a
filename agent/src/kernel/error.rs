//! What can go wrong between the agent and the kernel.

use std::{io, path::PathBuf};

use super::release;

/// A failed operation on the kernel, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The process may not load programs.
    #[error("user id {uid} cannot load kernel programs: run the agent as root")]
    NotRoot {
        /// Effective user id.
        uid: u32,
    },
    /// The kernel is too old or was built without something.
    #[error("kernel {} lacks {what}: Tipstaff needs Linux 6.1 or newer{hint}", release())]
    Missing {
        /// What is not there.
        what: String,
        /// A remedy other than a newer kernel, with its separator; may be empty.
        hint: &'static str,
    },
    /// The kernel does not ask BPF programs as a security module.
    #[error("bpf is not among the active security modules ({modules}); boot with lsm={modules},bpf")]
    LsmNotActive {
        /// Those that are, as `/sys/kernel/security/lsm` has them.
        modules: String,
    },
    /// The kernel's own walk over the labels of sockets is not safe.
    #[error("this kernel's iterator over the labels of sockets oopses where one goes meanwhile")]
    WalkOverSockets,
    /// The binary was built without its kernel object.
    #[error("this binary holds no kernel object: build it with `cargo xtask build`")]
    NoObject,
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another agent holds the pins.
    #[error("another agent is running and holds {}: stop it, or give this one its own --pin-dir", path.display())]
    Held {
        /// The pin directory.
        path: PathBuf,
    },
    /// Another agent holds the cgroup.
    #[error("another agent is running and holds cgroup {}: stop it, or give this one its own --cgroup", path.display())]
    CgroupHeld {
        /// The cgroup.
        path: PathBuf,
    },
    /// The directory for pins is not in a BPF file system.
    #[error("{} is not in a bpf file system: mount -t bpf bpf /sys/fs/bpf, or name another --pin-dir", path.display())]
    NotBpffs {
        /// The pin directory.
        path: PathBuf,
    },
    /// Programs of another version are in force.
    #[error(
        "{} holds pins of another layout than {}: start the version that made them, or take its enforcement off with \
         tipstaff disarm", path.display(), tipstaff_common::LAYOUT
    )]
    OtherLayout {
        /// Their directory.
        path: PathBuf,
    },
    /// A map is not pinned that programs in force use.
    #[error(
        "{} is gone, and programs are in force that use it: take them off with tipstaff disarm and start again",
        path.display()
    )]
    PinGone {
        /// Where it belongs.
        path: PathBuf,
    },
    /// A pinned map is not what the programs of this version work on.
    #[error(
        "the pinned map {} has {what} {found}, and this version's has {expected}: start the version that made it, or take \
         its enforcement off with tipstaff disarm", path.display()
    )]
    OtherMap {
        /// Its pin.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// This version's.
        expected: u32,
        /// The pinned map's.
        found: u32,
    },
    /// The agent runs in a cgroup namespace of its own.
    #[error(
        "the agent is in a cgroup namespace of its own, where the depth of a cgroup cannot be told: run it in the host's"
    )]
    CgroupNamespace,
    /// The agent runs in a pid namespace of its own.
    #[error(
        "the agent is in a pid namespace of its own, where it would mistake one process for another: run it in the host's"
    )]
    PidNamespace,
    /// A cgroup is not where the agent needs it.
    #[error("cgroup {} is not below {}: {remedy}", path.display(), above.display())]
    NotBelow {
        /// The cgroup.
        path: PathBuf,
        /// Where it must lie.
        above: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// The kernel did not say which file it is.
    #[error("the kernel does not say which file {} is", path.display())]
    Unlisted {
        /// The file.
        path: PathBuf,
    },
    /// A program or map was refused.
    #[error("the kernel refused {what}: {reason}")]
    Refused {
        /// Program, map or link.
        what: String,
        /// The kernel's words.
        reason: String,
    },
    /// A program or map was refused because of who asked (`EPERM`).
    #[error("the kernel refused {what}: {reason}")]
    NotPermitted {
        /// Program, map or link.
        what: String,
        /// The kernel's words.
        reason: String,
    },
    /// A system call on a map failed.
    #[error("cannot {action} in map {map}: {reason}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// The map.
        map: &'static str,
        /// Why not.
        reason: String,
    },
    /// All slots are taken.
    #[error("all {limit} {what} are in use: end one first")]
    Full {
        /// Sessions or policies.
        what: &'static str,
        /// How many there are.
        limit: u32,
    },
}

impl KernelError {
    /// Names the path that an operation failed on.
    pub fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// Names what the kernel refused. Verifier logs keep their end, where the reason stands.
    pub fn refused(what: impl Into<String>, error: &(dyn std::error::Error + 'static)) -> Self {
        let (what, reason) = (what.into(), with_sources(error));
        if is_not_permitted(error) { Self::NotPermitted { what, reason } } else { Self::Refused { what, reason } }
    }

    /// The host or the user cannot do this, as opposed to a failure.
    #[must_use]
    pub const fn host_cannot(&self) -> bool {
        matches!(
            self,
            Self::NotRoot { .. }
                | Self::NotPermitted { .. }
                | Self::Missing { .. }
                | Self::NotBpffs { .. }
                | Self::OtherLayout { .. }
                | Self::OtherMap { .. }
                | Self::PinGone { .. }
                | Self::CgroupNamespace
                | Self::PidNamespace
        )
    }
}

fn is_not_permitted(error: &(dyn std::error::Error + 'static)) -> bool {
    let is_one = |io: &io::Error| io.raw_os_error() == Some(libc::EPERM);
    error.downcast_ref::<io::Error>().is_some_and(is_one) || error.source().is_some_and(is_not_permitted)
}

/// An error with what it came from, each once.
pub(super) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !reason.contains(&text) {
            reason = format!("{reason}: {text}");
        }
        source = inner.source();
    }
    reason
}
