//! The classes of privileges that a policy speaks of: what a member can do beyond its own session.

/// A program that runs as another user or group than its caller: set-user-ID, set-group-ID.
pub const PRIVILEGE_SETUID: u32 = 1;
/// A program whose file gives its caller capabilities, or gives back what the caller had laid down.
pub const PRIVILEGE_CAPABILITIES: u32 = 1 << 1;
/// To trace, read or write the memory of, or take descriptors from a process that is no member of the session.
pub const PRIVILEGE_PTRACE: u32 = 1 << 2;
/// A signal to a process that is no member of the session.
pub const PRIVILEGE_SIGNAL: u32 = 1 << 3;
/// bpf(2)
pub const PRIVILEGE_BPF: u32 = 1 << 4;
/// init_module(2), finit_module(2)
pub const PRIVILEGE_MODULES: u32 = 1 << 5;
/// kexec_load(2), kexec_file_load(2)
pub const PRIVILEGE_KEXEC: u32 = 1 << 6;
/// To change what is mounted where: mount(2), umount(2), move_mount(2), pivot_root(2), a new superblock configuration.
pub const PRIVILEGE_MOUNT: u32 = 1 << 7;
/// chroot(2)
pub const PRIVILEGE_CHROOT: u32 = 1 << 8;
/// A new user namespace, in which its maker has all capabilities.
pub const PRIVILEGE_NAMESPACES: u32 = 1 << 9;
/// To make, find, read or change keys: add_key(2), request_key(2), keyctl(2).
pub const PRIVILEGE_KEYRING: u32 = 1 << 10;
/// perf_event_open(2)
pub const PRIVILEGE_PERF_EVENT: u32 = 1 << 11;
/// userfaultfd(2)
pub const PRIVILEGE_USERFAULTFD: u32 = 1 << 12;
/// io_uring_setup(2)
pub const PRIVILEGE_IO_URING: u32 = 1 << 13;
/// To write what the kernel goes by: /proc/sys, sysfs, debugfs, tracefs and the like.
pub const PRIVILEGE_KERNEL_SETTINGS: u32 = 1 << 14;
/// To open a disk past its file system, or the machine's memory.
pub const PRIVILEGE_RAW_DEVICES: u32 = 1 << 15;
/// To have a daemon start a program, outside of every session: by its socket, or by what lies in the folders that it reads.
pub const PRIVILEGE_DELEGATION: u32 = 1 << 16;
/// Every class.
pub const PRIVILEGE_ALL: u32 = (1 << 17) - 1;

/// The classes of what is done to a process, which can be a member of another session.
pub const PRIVILEGE_ON_OTHERS: u32 = PRIVILEGE_PTRACE | PRIVILEGE_SIGNAL;

/// No class, and in no policy: in a record, that a member would have changed the agent's own files or pins.
pub const AGENT_FILES: u32 = 1 << 31;
/// In `PROTECTED`: the folder with all that is in it, or the file.
pub const WHOLE: u32 = 1;
/// In `PROTECTED`: the root of the file system that the pins are in, which is not unmounted.
pub const MOUNTED: u32 = 2;
/// In `PROTECTED`: a folder above one of the agent's, which is not renamed or removed, and nothing is mounted over it. What else
/// is done with it or in it is nobody's.
pub const ABOVE: u32 = 3;
/// In `PROTECTED`, from here on: a folder or file out of which a daemon starts programs; above this, the `detail` that records
/// have.
pub const SPOOLS: u32 = 16;
/// Places of sockets in `DELEGATES`, at most.
pub const DELEGATES: u32 = 128;
