//! What a session's first process lays down before its first program, where no kernel program judges privileges later.
//!
//! | class | capabilities that it takes | system calls that are refused without it |
//! |---|---|---|
//! | `setuid` | `SETUID`, `SETGID` | none: `no_new_privs` |
//! | `capabilities` | all, but those of other classes | none: `no_new_privs` |
//! | `ptrace` | `SYS_PTRACE` | ptrace, process_vm_readv, process_vm_writev, pidfd_getfd |
//! | `signal` | `KILL` | none: Landlock |
//! | `bpf` | `BPF`, `PERFMON` | bpf |
//! | `modules` | `SYS_MODULE` | init_module, finit_module, delete_module |
//! | `kexec` | `SYS_BOOT` | kexec_load, kexec_file_load |
//! | `mount` | `SYS_ADMIN` | mount, umount2, move_mount and the others of their kind |
//! | `chroot` | `SYS_CHROOT` | chroot |
//! | `namespaces` | none: who makes a user namespace has them all in it | unshare and clone with `CLONE_NEWUSER`, setns, clone3 |
//! | `keyring` | none | add_key, request_key, keyctl |
//! | `perf-event` | `PERFMON` | perf_event_open |
//! | `userfaultfd` | none | userfaultfd |
//! | `io-uring` | none | io_uring_setup, io_uring_enter, io_uring_register |
//! | `kernel-settings` | none | none |
//! | `delegation` | none | ioctl with `TIOCSTI` and `TIOCLINUX` |
//! | `raw-devices` | `SYS_RAWIO` | none |
//! | sockets `raw`, `packet` | `NET_RAW` | none |

use serde::{Deserialize, Serialize};
use tipstaff_common::{
    privilege::{self, PRIVILEGE_ALL},
    socket::{SOCKET_PACKET, SOCKET_RAW},
};

use super::{Mode, Policy, scope::PRIVILEGE_CLASSES};

/// Names of the capabilities by their numbers (`include/uapi/linux/capability.h`).
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

const KILL: u64 = 1 << 5;
const SETGID: u64 = 1 << 6;
const SETUID: u64 = 1 << 7;
const NET_RAW: u64 = 1 << 13;
const SYS_MODULE: u64 = 1 << 16;
const SYS_RAWIO: u64 = 1 << 17;
const SYS_CHROOT: u64 = 1 << 18;
const SYS_PTRACE: u64 = 1 << 19;
/// `CAP_SYS_ADMIN`
pub const SYS_ADMIN: u64 = 1 << 21;
const SYS_BOOT: u64 = 1 << 22;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

/// What each class of privileges takes.
const OF_CLASSES: [(u32, u64); 10] = [
    (privilege::PRIVILEGE_SETUID, SETUID | SETGID),
    (privilege::PRIVILEGE_PTRACE, SYS_PTRACE),
    (privilege::PRIVILEGE_SIGNAL, KILL),
    (privilege::PRIVILEGE_BPF, BPF | PERFMON),
    (privilege::PRIVILEGE_MODULES, SYS_MODULE),
    (privilege::PRIVILEGE_KEXEC, SYS_BOOT),
    (privilege::PRIVILEGE_MOUNT, SYS_ADMIN),
    (privilege::PRIVILEGE_CHROOT, SYS_CHROOT),
    (privilege::PRIVILEGE_PERF_EVENT, PERFMON),
    (privilege::PRIVILEGE_RAW_DEVICES, SYS_RAWIO),
];
/// Those that are for nothing but their classes: who may have capabilities has them no more than these classes do.
const OF_ONE_CLASS: u64 = SYS_PTRACE | KILL | BPF | PERFMON | SYS_MODULE | SYS_CHROOT | SYS_RAWIO | NET_RAW;

/// Those that no system call is for.
const WITHOUT_CALLS: u32 = privilege::PRIVILEGE_SETUID
    | privilege::PRIVILEGE_CAPABILITIES
    | privilege::PRIVILEGE_SIGNAL
    | privilege::PRIVILEGE_KERNEL_SETTINGS
    | privilege::PRIVILEGE_RAW_DEVICES;

/// What is laid down. All of it is inherited by whatever the process starts, and nothing gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shed {
    /// No program gives its caller more than the caller has.
    pub no_new_privs: bool,
    /// Capabilities that stay in every set, the bounding set too: bit n is capability n.
    pub keep: u64,
    /// Classes whose system calls are refused (seccomp): `privilege::PRIVILEGE_*`.
    pub refuse: u32,
    /// No signal to what was not started from here, nor a look at it (Landlock).
    pub apart: bool,
}

impl Shed {
    /// For a session with these classes of privileges and of sockets.
    #[must_use]
    pub fn of(privileges: u32, sockets: u32) -> Self {
        let may = |class: u32| privileges & class != 0;
        let rows = OF_CLASSES.iter().filter(|(class, _)| may(*class));
        let mut named = rows.fold(0, |kept, (_, capabilities)| kept | capabilities);
        if sockets & (SOCKET_RAW | SOCKET_PACKET) != 0 {
            named |= NET_RAW;
        }
        let all = may(privilege::PRIVILEGE_CAPABILITIES);
        Self {
            no_new_privs: !may(privilege::PRIVILEGE_SETUID | privilege::PRIVILEGE_CAPABILITIES),
            keep: if all { named | !OF_ONE_CLASS } else { named },
            refuse: PRIVILEGE_ALL & !WITHOUT_CALLS & !privileges,
            // the kernel has the two in one
            apart: !may(privilege::PRIVILEGE_SIGNAL | privilege::PRIVILEGE_PTRACE),
        }
    }
}

impl Policy {
    /// What its sessions lay down; a mode that refuses nothing takes nothing away.
    #[must_use]
    pub fn shed(&self) -> Option<Shed> {
        (self.mode == Mode::Enforce).then(|| Shed::of(self.privilege_classes(), self.socket_classes()))
    }
}

/// The words of classes of privileges.
#[must_use]
pub fn privilege_names(classes: u32) -> Vec<&'static str> {
    PRIVILEGE_CLASSES.iter().filter(|(_, class)| classes & class != 0).map(|(word, _)| *word).collect()
}

/// The names of capabilities: bit n is capability n.
#[must_use]
pub fn capability_names(set: u64) -> Vec<&'static str> {
    CAPABILITIES.iter().enumerate().filter(|(number, _)| set >> number & 1 != 0).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use tipstaff_common::socket::SOCKET_ALL;

    use super::*;
    use crate::policy::Kind;

    #[test]
    fn who_may_nothing_keeps_nothing_and_who_may_all_keeps_all() {
        let refuse = PRIVILEGE_ALL & !WITHOUT_CALLS;
        let none = Shed { no_new_privs: true, keep: 0, refuse, apart: true };
        assert_eq!(Shed::of(Kind::Agent.privileges(), Kind::Agent.socket_classes()), none);
        let all = Shed { no_new_privs: false, keep: u64::MAX, refuse: 0, apart: false };
        assert_eq!(Shed::of(PRIVILEGE_ALL, SOCKET_ALL), all);
        assert_eq!(Shed::of(Kind::Breakglass.privileges(), Kind::Breakglass.socket_classes()), all);
    }

    #[test]
    fn a_class_keeps_what_it_takes_and_no_more() {
        let mounts = Shed::of(privilege::PRIVILEGE_MOUNT, 0);
        assert_eq!((mounts.keep, mounts.no_new_privs), (SYS_ADMIN, true));
        assert_eq!(mounts.refuse, PRIVILEGE_ALL & !WITHOUT_CALLS & !privilege::PRIVILEGE_MOUNT);
        assert_eq!(Shed::of(0, SOCKET_RAW).keep, NET_RAW);
        let kept = Shed::of(privilege::PRIVILEGE_CAPABILITIES, 0);
        assert_eq!((kept.keep & OF_ONE_CLASS, kept.keep | OF_ONE_CLASS), (0, u64::MAX));
        assert!(!kept.no_new_privs && kept.apart);
        assert!(
            !Shed::of(privilege::PRIVILEGE_PTRACE, 0).apart && !Shed::of(privilege::PRIVILEGE_SETUID, 0).no_new_privs
        );
    }

    #[test]
    fn capabilities_have_their_names() {
        assert_eq!(capability_names(KILL | SYS_ADMIN | BPF), ["CAP_KILL", "CAP_SYS_ADMIN", "CAP_BPF"]);
        assert_eq!(capability_names(NET_RAW | PERFMON | SYS_BOOT), ["CAP_NET_RAW", "CAP_SYS_BOOT", "CAP_PERFMON"]);
    }
}
