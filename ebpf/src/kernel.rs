//! Thin safe wrappers around helpers and kernel memory. The only file that reads kernel structures.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_comm, bpf_get_current_task, bpf_get_current_task_btf,
    bpf_get_current_uid_gid, bpf_get_socket_cookie, bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns,
    bpf_probe_read_kernel, bpf_probe_read_kernel_buf, bpf_probe_read_kernel_str_bytes, bpf_probe_read_user_buf,
    bpf_send_signal,
};
use aya_ebpf::programs::PerfEventContext;
use tipstaff_common::{
    limits::{ARG_BYTES, PATH_BYTES},
    offsets::Offsets,
    rule::{Content, FileId},
    socket::SocketRow,
};

use crate::{
    maps::{CLOCK, GENERATION, OFFSETS, ROOT, SETTINGS},
    verdict::Fault,
};

/// One constant of this load: a field of [`SETTINGS`].
#[inline(always)]
fn setting<T: Copy>(field: &'static T) -> T {
    // SAFETY: a reference. VERIFIER: volatile, because the compiler would otherwise fold in the zeros of the source, which
    // the agent replaces.
    unsafe { core::ptr::read_volatile(field) }
}

/// Whether this agent may only touch what lies below a cgroup (`Settings::confine_cgroup`).
#[inline(always)]
pub fn is_confined() -> bool {
    setting(&SETTINGS.confine_cgroup) != 0
}

/// Depth in the cgroup tree at which session cgroups stand.
#[inline(always)]
pub fn session_level() -> u32 {
    setting(&SETTINGS.session_level)
}

/// Whether the programs on cgroups see sockets and tasks that are in no session (`Settings::sessions_cgroup`).
#[inline(always)]
pub fn sees_others() -> bool {
    setting(&SETTINGS.sessions_cgroup) != 0
}

/// Whether a cgroup lies below Tipstaff's own, told by `ancestor`, which gives the id of the cgroup above it at a depth; where
/// no other is seen, it does.
#[inline(always)]
pub fn is_beneath(ancestor: impl FnOnce(i32) -> u64) -> bool {
    let own = setting(&SETTINGS.sessions_cgroup);
    own == 0 || ancestor(session_level().cast_signed() - 1) == own
}

/// The agent's process id.
#[inline(always)]
pub fn agent() -> u32 {
    setting(&SETTINGS.agent)
}

/// One of the random numbers that only this load knows; `at` is below `SECRETS`.
#[inline(always)]
pub fn secret(at: usize) -> u64 {
    setting(&SETTINGS.secrets[at])
}

/// Whether this is the load that reports, counts and claims. While an agent replaces another, the programs of both are
/// attached; what only one may do, the one does that `GENERATION` names.
#[inline(always)]
pub fn speaks() -> bool {
    GENERATION.get(0).copied() == Some(setting(&SETTINGS.generation))
}

/// What an LSM program returns: `-EPERM`, or 0 to go on.
///
/// VERIFIER: two exits with constants, as in `bprm_check_security`. The empty instruction keeps the compiler from computing
/// the answer, which kernels from 6.12 on then take for any number.
#[inline(always)]
pub fn answer(refused: bool) -> i32 {
    if refused {
        // SAFETY: nothing happens.
        unsafe { core::arch::asm!("", options(nostack, nomem)) };
        return -1;
    }
    0
}

/// Reads one offset; see [`setting`] for why it is volatile. `field` is the `offset_of!` of a field of [`Offsets`].
#[inline(always)]
fn offset(field: usize) -> u64 {
    // SAFETY: every field is a `u32`, and this is one.
    let place = unsafe { (&raw const OFFSETS).cast::<u8>().add(field).cast::<u32>() };
    // SAFETY: as above.
    u64::from(unsafe { core::ptr::read_volatile(place) })
}

/// Reads a `T` at `base` + the offset of a field. A page that is not there is a fault, never zeros.
#[inline(always)]
fn read<T>(base: u64, field: usize) -> Result<T, Fault> {
    if base == 0 {
        return Err(Fault::Unreadable);
    }
    // SAFETY: the helper checks the address and copies; it never faults.
    let value = unsafe { bpf_probe_read_kernel((base + offset(field)) as *const T) };
    value.map_err(|_errno| Fault::Unreadable)
}

/// Nanoseconds of `CLOCK_BOOTTIME`.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Nanoseconds of `CLOCK_BOOTTIME` as of the last timer tick: the coarse monotonic clock and what the `clock` program last
/// saw of the difference. After a suspend it lags until the first tick.
#[inline(always)]
pub fn coarse_now() -> u64 {
    let ahead = CLOCK.get(0).copied().unwrap_or(0);
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_coarse_ns() }.wrapping_add(ahead)
}

/// Notes how far `CLOCK_BOOTTIME` is ahead of the monotonic clock.
#[inline(always)]
pub fn set_coarse_clock() {
    // SAFETY: no arguments; the map's entry is one aligned word.
    unsafe {
        let ahead = now().wrapping_sub(bpf_ktime_get_ns());
        if let Some(place) = CLOCK.get_ptr_mut(0) {
            // the two clocks are read one after the other: what a suspend adds is more than a millisecond
            if ahead.abs_diff(*place) > 1_000_000 {
                *place = ahead;
            }
        }
    }
}

/// The caller's user id in the root user namespace.
#[inline(always)]
pub fn uid() -> u32 {
    bpf_get_current_uid_gid() as u32
}

/// Sends `SIGKILL` to the current process. False: the kernel did not take it (it has one slot a CPU, and refuses the
/// global init and kernel threads).
#[inline(always)]
pub fn kill_current() -> bool {
    // SAFETY: no pointers.
    unsafe { bpf_send_signal(9) == 0 }
}

/// The current task's name; empty where it cannot be read.
#[inline(always)]
pub fn name() -> [u8; 16] {
    bpf_get_current_comm().unwrap_or_default()
}

/// The current task as the verifier's trusted pointer, for task storage.
#[inline(always)]
pub fn current_pointer() -> *mut c_void {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_task_btf() }.cast()
}

/// Process and thread id of the current task, in the root pid namespace. Read through the verifier's pointer, which costs a
/// load each and not a helper that checks the address; `bpf_get_current_pid_tgid` is for cgroup programs since 6.10 only.
#[inline(always)]
pub fn current_ids() -> (u32, u32) {
    let task = current_pointer();
    // SAFETY: the verifier knows the task and the field's offset, and checks that an `int` is read there.
    let field = |at: usize| unsafe { *task.byte_add(offset(at) as usize).cast::<u32>() };
    (field(offset_of!(Offsets, task_tgid)), field(offset_of!(Offsets, task_pid)))
}

/// How many execs the current task has made, read as [`current_ids`].
#[inline(always)]
pub fn current_exec_id() -> u32 {
    // SAFETY: the verifier knows the task and the field's offset, and checks that an `int` is read there.
    unsafe { *current_pointer().byte_add(offset(offset_of!(Offsets, task_exec_id)) as usize).cast::<u32>() }
}

/// Whether a tick of the clock came while the task was in its own code, and not in the kernel's.
#[inline(always)]
pub fn was_in_user_mode(context: &PerfEventContext) -> bool {
    // SAFETY: the context is valid for the program's run. VERIFIER: volatile, one word of the registers.
    unsafe {
        #[cfg(bpf_target_arch = "x86_64")]
        let user = core::ptr::read_volatile(&raw const (*context.ctx).regs.cs) & 3 == 3;
        #[cfg(bpf_target_arch = "aarch64")]
        let user = core::ptr::read_volatile(&raw const (*context.ctx).regs.pstate) & 0xf == 0;
        user
    }
}

/// The current process's first thread.
#[inline(always)]
pub fn current_leader() -> Task {
    Task::current().leader().unwrap_or(Task(0))
}

/// Id of the current task's cgroup, or of the one above it, at the level at which session cgroups stand; 0: it stands
/// higher.
#[inline(always)]
pub fn current_ancestor() -> u64 {
    current_ancestor_at(session_level().cast_signed())
}

/// As [`current_ancestor`], at any depth.
#[inline(always)]
pub fn current_ancestor_at(level: i32) -> u64 {
    // SAFETY: no pointers.
    unsafe { bpf_get_current_ancestor_cgroup_id(level) }
}

/// A task by its address, for reading fields and for the mirror.
#[derive(Clone, Copy)]
pub struct Task(pub u64);

impl Task {
    /// The task that runs.
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: no arguments.
        Self(unsafe { bpf_get_current_task() })
    }

    /// Process id in the root pid namespace.
    #[inline(always)]
    pub fn tgid(self) -> Result<u32, Fault> {
        read(self.0, offset_of!(Offsets, task_tgid))
    }

    /// Thread id in the root pid namespace.
    #[inline(always)]
    pub fn tid(self) -> Result<u32, Fault> {
        read(self.0, offset_of!(Offsets, task_pid))
    }

    /// The process's first thread.
    #[inline(always)]
    pub fn leader(self) -> Result<Self, Fault> {
        read(self.0, offset_of!(Offsets, task_leader)).map(Self)
    }

    /// The thread that made it, or who took it in since.
    #[inline(always)]
    pub fn parent(self) -> Result<Self, Fault> {
        read(self.0, offset_of!(Offsets, task_parent)).map(Self)
    }

    /// Counts the execs of this task; raised before `sched_process_exec` fires.
    #[inline(always)]
    pub fn exec_id(self) -> Result<u32, Fault> {
        read(self.0, offset_of!(Offsets, task_exec_id))
    }

    /// As wait(2) reports it; valid once the task exits.
    #[inline(always)]
    pub fn exit_code(self) -> Result<u32, Fault> {
        read(self.0, offset_of!(Offsets, task_exit_code))
    }

    /// Not 0 once the task has ended and only waits to be reaped: it holds nothing any more.
    #[inline(always)]
    pub fn exit_state(self) -> Result<u32, Fault> {
        read(self.0, offset_of!(Offsets, task_exit_state))
    }

    /// The task's cgroup in the unified hierarchy.
    #[inline(always)]
    pub fn cgroup(self) -> Result<Cgroup, Fault> {
        let set: u64 = read(self.0, offset_of!(Offsets, task_cgroups))?;
        read(set, offset_of!(Offsets, css_set_default)).map(Cgroup)
    }

    /// Whether a path means for it what it means for the agent: its root is the agent's, and the rights with which it could
    /// choose another are the host's.
    #[inline(always)]
    pub fn has_roots_view(self) -> Result<bool, Fault> {
        // SAFETY: a static of plain integers; volatile as in `setting`.
        let own = unsafe { core::ptr::read_volatile(&raw const ROOT) };
        let credentials: u64 = read(self.0, offset_of!(Offsets, task_credentials))?;
        let users: u64 = read(credentials, offset_of!(Offsets, credentials_users))?;
        let level: u32 = read(users, offset_of!(Offsets, users_level))?;
        let fs: u64 = read(self.0, offset_of!(Offsets, task_fs))?;
        let mount: u64 = read(fs, offset_of!(Offsets, fs_root_mount))?;
        let root: u64 = read(fs, offset_of!(Offsets, fs_root_dentry))?;
        let id: u32 = read(mount - offset(offset_of!(Offsets, mount_inner)), offset_of!(Offsets, mount_id))?;
        Ok(own.mount != 0 && id == own.mount && Dentry(root).identity()?.inode == own.inode && level == 0)
    }

    /// What it may do.
    #[inline(always)]
    pub fn rights(self) -> Result<Rights, Fault> {
        Rights::of(read(self.0, offset_of!(Offsets, task_credentials))?)
    }

    /// Whether the kernel acts in somebody else's name while this task runs.
    #[inline(always)]
    pub fn acts_for_another(self) -> Result<bool, Fault> {
        let acting: u64 = read(self.0, offset_of!(Offsets, task_credentials))?;
        let own: u64 = read(self.0, offset_of!(Offsets, task_real_credentials))?;
        Ok(acting != own)
    }

    /// The program that it runs.
    #[inline(always)]
    pub fn program(self) -> Result<File, Fault> {
        let mm: u64 = read(self.0, offset_of!(Offsets, task_mm))?;
        read(mm, offset_of!(Offsets, mm_program)).map(File)
    }

    /// Start and end of the argument vector in the task's own memory.
    #[inline(always)]
    pub fn arguments(self) -> Result<(u64, u64), Fault> {
        let mm: u64 = read(self.0, offset_of!(Offsets, task_mm))?;
        let start = read(mm, offset_of!(Offsets, mm_arg_start))?;
        let end = read(mm, offset_of!(Offsets, mm_arg_end))?;
        Ok((start, end))
    }

    /// Copies the first bytes of the argument vector of the task that runs; how many, of how many.
    #[inline(always)]
    pub fn copy_arguments(self, to: &mut [u8; ARG_BYTES]) -> (u32, u32) {
        let Ok((start, end)) = self.arguments() else { return (0, 0) };
        let total = end.saturating_sub(start).min(u64::from(u32::MAX)) as u32;
        let length = (total as usize).min(ARG_BYTES);
        if length == 0 {
            return (0, total);
        }
        // VERIFIER: the bound again, on the value that is used.
        let Some(part) = to.get_mut(..length) else { return (0, total) };
        // SAFETY: the helper copies from the current task's memory and never faults.
        match unsafe { bpf_probe_read_user_buf(start as *const u8, part) } {
            Ok(()) => (length as u32, total),
            Err(_) => (0, total),
        }
    }
}

/// What of a task's credentials a program can change for it.
#[derive(Clone, Copy)]
pub struct Rights {
    /// Effective user id, in the root user namespace.
    pub user: u32,
    /// Effective group id, as above.
    pub group: u32,
    /// Capabilities that it may use, a bit each.
    pub permitted: u64,
}

impl Rights {
    /// Reads them out of a `struct cred`.
    #[inline(always)]
    fn of(credentials: u64) -> Result<Self, Fault> {
        Ok(Self {
            user: read(credentials, offset_of!(Offsets, credentials_user))?,
            group: read(credentials, offset_of!(Offsets, credentials_group))?,
            permitted: read(credentials, offset_of!(Offsets, credentials_permitted))?,
        })
    }
}

/// What the kernel calls the reading of a module's file, and of one to be started in its own place.
#[inline(always)]
pub fn reading() -> (u32, u32) {
    (offset(offset_of!(Offsets, reading_module)) as u32, offset(offset_of!(Offsets, reading_kexec)) as u32)
}

/// As [`reading`], of what comes from a caller's memory.
#[inline(always)]
pub fn loading() -> (u32, u32) {
    (offset(offset_of!(Offsets, loading_module)) as u32, offset(offset_of!(Offsets, loading_kexec)) as u32)
}

/// Whether something can be read at an address.
#[inline(always)]
pub fn is_there(place: *const c_void) -> bool {
    // SAFETY: the helper checks the address and copies; it never faults.
    unsafe { bpf_probe_read_kernel(place.cast::<u32>()) }.is_ok()
}

/// The first eight bytes of a `struct qstr`, the first of them lowest.
#[inline(always)]
pub fn string_start(string: u64) -> Result<u64, Fault> {
    word_at(read(string, offset_of!(Offsets, string_name))?)
}

/// Eight bytes of kernel memory, the first of them lowest.
#[inline(always)]
pub fn word_at(place: u64) -> Result<u64, Fault> {
    // SAFETY: the helper checks the address and copies; it never faults.
    let word = unsafe { bpf_probe_read_kernel(place as *const u64) };
    word.map(u64::to_le).map_err(|_errno| Fault::Unreadable)
}

/// A cgroup by its address.
#[derive(Clone, Copy)]
pub struct Cgroup(pub u64);

impl Cgroup {
    /// Its id, which is the inode number of its directory.
    #[inline(always)]
    pub fn id(self) -> Result<u64, Fault> {
        let node: u64 = read(self.0, offset_of!(Offsets, cgroup_node))?;
        read(node, offset_of!(Offsets, node_id))
    }

    /// Id of its ancestor (or itself) at `level`; `None` where it stands higher than that.
    #[inline(always)]
    pub fn ancestor(self, level: u32) -> Result<Option<u64>, Fault> {
        let own: u32 = read(self.0, offset_of!(Offsets, cgroup_level))?;
        if own < level {
            return Ok(None);
        }
        let base = self.0 + u64::from(level) * 8;
        let ancestor: u64 = read(base, offset_of!(Offsets, cgroup_ancestors))?;
        Self(ancestor).id().map(Some)
    }
}

/// A directory entry by its address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Dentry(pub u64);

impl Dentry {
    /// The directory above, in the same file system; itself at the root.
    #[inline(always)]
    pub fn parent(self) -> Result<Self, Fault> {
        read(self.0, offset_of!(Offsets, dentry_parent)).map(Self)
    }

    /// Where its name lies and how many bytes that has.
    #[inline(always)]
    pub fn name(self) -> Result<(u64, u32), Fault> {
        Ok((read(self.0, offset_of!(Offsets, dentry_name))?, read(self.0, offset_of!(Offsets, dentry_name_length))?))
    }

    /// Its inode.
    #[inline(always)]
    pub fn inode(self) -> Result<Inode, Fault> {
        read(self.0, offset_of!(Offsets, dentry_inode)).map(Inode)
    }

    /// Which file it names.
    #[inline(always)]
    pub fn identity(self) -> Result<FileId, Fault> {
        self.inode()?.identity()
    }

    /// Copies its name; how many bytes.
    #[inline(always)]
    pub fn copy_name(self, to: &mut [u8; PATH_BYTES]) -> Result<usize, Fault> {
        let name: u64 = read(self.0, offset_of!(Offsets, dentry_name))?;
        // SAFETY: the helper checks the address and copies; it never faults.
        let read = unsafe { bpf_probe_read_kernel_str_bytes(name as *const u8, to) };
        read.map(<[u8]>::len).map_err(|_errno| Fault::Unreadable)
    }

    /// The first bytes of its name; what comes after the name's end is not defined.
    #[inline(always)]
    pub fn name_start(self) -> Result<[u8; 8], Fault> {
        let name: u64 = read(self.0, offset_of!(Offsets, dentry_name))?;
        // SAFETY: the helper checks the address and copies; it never faults. A short name lies inside the dentry.
        unsafe { bpf_probe_read_kernel(name as *const [u8; 8]) }.map_err(|_errno| Fault::Unreadable)
    }
}

/// An inode by its address.
#[derive(Clone, Copy)]
pub struct Inode(pub u64);

/// `S_IFMT`, `S_IFBLK` and `S_IFCHR` (`include/uapi/linux/stat.h`)
const KIND: u16 = 0o170_000;
const BLOCK_DEVICE: u16 = 0o060_000;
const CHARACTER_DEVICE: u16 = 0o020_000;
/// `MEM_MAJOR` above 20 bits of minor number (`include/linux/kdev_t.h`; the devices in `drivers/char/mem.c`).
const MEMORY: [u32; 3] = [1 << 20 | 1, 1 << 20 | 2, 1 << 20 | 4];
/// `SB_KERNMOUNT` (`include/linux/fs.h`): the kernel's own mount, which nothing has a path in.
const KERNEL_MOUNT: u64 = 1 << 22;
/// Above the nanoseconds of a ctime: `I_CTIME_QUERIED` (`include/linux/fs.h`, 6.13).
const NANOS: u32 = (1 << 30) - 1;

impl Inode {
    /// Which file it is.
    #[inline(always)]
    pub fn identity(self) -> Result<FileId, Fault> {
        let superblock: u64 = read(self.0, offset_of!(Offsets, inode_super))?;
        Ok(FileId {
            inode: read(self.0, offset_of!(Offsets, inode_number))?,
            device: read(superblock, offset_of!(Offsets, super_device))?,
            generation: read(self.0, offset_of!(Offsets, inode_generation))?,
        })
    }

    /// The device number of its file system.
    #[inline(always)]
    pub fn device(self) -> Result<u32, Fault> {
        let superblock: u64 = read(self.0, offset_of!(Offsets, inode_super))?;
        read(superblock, offset_of!(Offsets, super_device))
    }

    /// Size and ctime.
    #[inline(always)]
    pub fn content(self) -> Result<Content, Fault> {
        let seconds: u64 = read(self.0, offset_of!(Offsets, inode_changed))?;
        let nanos: u32 = read(self.0, offset_of!(Offsets, inode_changed_nanos))?;
        let changed = seconds.wrapping_mul(1_000_000_000).wrapping_add(u64::from(nanos & NANOS));
        Ok(Content { size: read(self.0, offset_of!(Offsets, inode_size))?, changed })
    }

    /// Names that it has.
    #[inline(always)]
    pub fn links(self) -> Result<u32, Fault> {
        read(self.0, offset_of!(Offsets, inode_links))
    }

    /// Whether nobody but root can write it, as its mode says.
    #[inline(always)]
    pub fn is_roots_alone(self) -> Result<bool, Fault> {
        let owner: u32 = read(self.0, offset_of!(Offsets, inode_owner))?;
        let mode: u16 = read(self.0, offset_of!(Offsets, inode_mode))?;
        Ok(owner == 0 && mode & 0o022 == 0)
    }

    /// Whether somebody has it open to write; a writable mapping counts as long as it stands.
    #[inline(always)]
    pub fn has_writers(self) -> Result<bool, Fault> {
        Ok(read::<i32>(self.0, offset_of!(Offsets, inode_writers))? > 0)
    }

    /// A block device, or the machine's memory or ports (`/dev/mem`, `/dev/kmem`, `/dev/port`).
    #[inline(always)]
    pub fn is_raw_device(self) -> Result<bool, Fault> {
        let mode: u16 = read(self.0, offset_of!(Offsets, inode_mode))?;
        match mode & KIND {
            BLOCK_DEVICE => Ok(true),
            CHARACTER_DEVICE => {
                let number: u32 = read(self.0, offset_of!(Offsets, inode_device))?;
                Ok(MEMORY.contains(&number))
            }
            _ => Ok(false),
        }
    }

    /// Which kind of file system it is in: `*_MAGIC` (`include/uapi/linux/magic.h`).
    #[inline(always)]
    pub fn magic(self) -> Result<u64, Fault> {
        let superblock: u64 = read(self.0, offset_of!(Offsets, inode_super))?;
        read(superblock, offset_of!(Offsets, super_magic))
    }

    /// Whether it lies where no path leads: memfd_create(2).
    #[inline(always)]
    pub fn is_nowhere(self) -> Result<bool, Fault> {
        let superblock: u64 = read(self.0, offset_of!(Offsets, inode_super))?;
        Ok(read::<u64>(superblock, offset_of!(Offsets, super_flags))? & KERNEL_MOUNT != 0)
    }
}

/// Whether the hook on a file's attributes is told first by which ids of users its mount goes.
#[inline(always)]
pub fn setattr_says_ids() -> bool {
    offset(offset_of!(Offsets, setattr_says_ids)) != 0
}

/// What the root of a `struct vfsmount` is.
#[inline(always)]
pub fn root_of_mount(mount: u64) -> Result<FileId, Fault> {
    read(mount, offset_of!(Offsets, mount_root)).map(Dentry)?.identity()
}

/// How a file is open: `FMODE_*` (`include/linux/fs.h`; the same bits in 6.1, 6.12 and 7.2).
#[derive(Clone, Copy)]
pub struct Mode(pub u32);

impl Mode {
    /// It can be written through (`FMODE_WRITE`).
    #[inline(always)]
    pub const fn writes(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// It names the file and no more: `O_PATH` (`FMODE_PATH`).
    #[inline(always)]
    pub const fn only_names(self) -> bool {
        self.0 & 1 << 14 != 0
    }

    /// It holds a mount that is in no tree: of fsmount(2), or a copy by open_tree(2) (`FMODE_NEED_UNMOUNT`).
    #[inline(always)]
    pub const fn is_mount(self) -> bool {
        self.0 & 1 << 28 != 0
    }
}

/// An open file by its address.
#[derive(Clone, Copy)]
pub struct File(pub u64);

impl File {
    /// Which file it is.
    #[inline(always)]
    pub fn identity(self) -> Result<FileId, Fault> {
        self.inode()?.identity()
    }

    /// Its inode, of the file system that it was opened in.
    #[inline(always)]
    pub fn inode(self) -> Result<Inode, Fault> {
        read(self.0, offset_of!(Offsets, file_inode)).map(Inode)
    }

    /// How it is open.
    #[inline(always)]
    pub fn mode(self) -> Result<Mode, Fault> {
        read(self.0, offset_of!(Offsets, file_mode)).map(Mode)
    }

    /// Where it was opened.
    #[inline(always)]
    pub fn dentry(self) -> Result<Dentry, Fault> {
        read(self.0, offset_of!(Offsets, file_dentry)).map(Dentry)
    }
}

/// A socket of the network layer (`struct sock`) by its address.
#[derive(Clone, Copy)]
pub struct Sock(pub u64);

/// `AF_INET`
pub const INET: u16 = 2;
/// `AF_INET6`
pub const INET6: u16 = 10;

impl Sock {
    /// What a program on addresses was asked about (`struct bpf_sock_addr_kern`).
    #[inline(always)]
    pub fn of_context(context: u64) -> Result<Self, Fault> {
        read(context, offset_of!(Offsets, asked_socket)).map(Self)
    }

    /// It is the kernel's own: a network file system's, a tunnel's.
    #[inline(always)]
    pub fn is_kernels(self) -> Result<bool, Fault> {
        let bit = offset(offset_of!(Offsets, sock_kernel_bit));
        // SAFETY: the helper checks the address and copies; it never faults.
        let byte = unsafe { bpf_probe_read_kernel((self.0 + bit / 8) as *const u8) };
        byte.map(|byte| byte >> (bit % 8) & 1 == 1).map_err(|_errno| Fault::Unreadable)
    }

    /// The kernel reads or writes a disk with it (NBD, NVMe over TCP, iSCSI): it may use the memory that is kept for that.
    /// No program can ask for the mark; root has it set where it hands a socket to such a driver.
    #[inline(always)]
    pub fn is_for_storage(self) -> Result<bool, Fault> {
        let flags: u64 = read(self.0, offset_of!(Offsets, sock_flags))?;
        Ok(flags >> (offset(offset_of!(Offsets, sock_storage_bit)) & 63) & 1 == 1)
    }

    /// The cgroup that it was made in.
    #[inline(always)]
    pub fn cgroup(self) -> Result<Cgroup, Fault> {
        read(self.0, offset_of!(Offsets, sock_cgroup)).map(Cgroup)
    }

    /// `AF_*`
    #[inline(always)]
    pub fn family(self) -> Result<u16, Fault> {
        read(self.0, offset_of!(Offsets, sock_family))
    }

    /// `SOCK_*`
    #[inline(always)]
    pub fn kind(self) -> Result<u16, Fault> {
        read(self.0, offset_of!(Offsets, sock_type))
    }

    /// `IPPROTO_*`
    #[inline(always)]
    pub fn protocol(self) -> Result<u16, Fault> {
        read(self.0, offset_of!(Offsets, sock_protocol))
    }

    /// `TCP_*`, whatever the protocol.
    #[inline(always)]
    pub fn state(self) -> Result<u8, Fault> {
        read(self.0, offset_of!(Offsets, sock_state))
    }

    /// The port that it is bound to, host order; 0: none.
    #[inline(always)]
    pub fn local_port(self) -> Result<u16, Fault> {
        read(self.0, offset_of!(Offsets, sock_local_port))
    }

    /// The port that it is connected to, host order; 0: none.
    #[inline(always)]
    pub fn remote_port(self) -> Result<u16, Fault> {
        read::<u16>(self.0, offset_of!(Offsets, sock_remote_port)).map(u16::from_be)
    }

    /// The address that it is bound to, as the rules know addresses.
    #[inline(always)]
    pub fn local(self) -> Result<[u8; 16], Fault> {
        self.address(offset_of!(Offsets, sock_local4), offset_of!(Offsets, sock_local6))
    }

    /// The address that it is connected to, as above.
    #[inline(always)]
    pub fn remote(self) -> Result<[u8; 16], Fault> {
        self.address(offset_of!(Offsets, sock_remote4), offset_of!(Offsets, sock_remote6))
    }

    #[inline(always)]
    fn address(self, v4: usize, v6: usize) -> Result<[u8; 16], Fault> {
        match self.family()? {
            INET => Ok(mapped(read(self.0, v4)?)),
            INET6 => read(self.0, v6),
            _ => Ok([0; 16]),
        }
    }

    /// Inode number of its network namespace.
    #[inline(always)]
    pub fn namespace(self) -> Result<u32, Fault> {
        let namespace: u64 = read(self.0, offset_of!(Offsets, sock_namespace))?;
        read(namespace, offset_of!(Offsets, namespace_number))
    }

    /// Writes what it is and what it is connected to into a row.
    #[inline(always)]
    pub fn describe(self, row: &mut SocketRow) -> Result<(), Fault> {
        row.family = self.family()?;
        row.kind = self.kind()?;
        row.protocol = self.protocol()?;
        row.state = u16::from(self.state()?);
        row.namespace = self.namespace()?;
        if row.family == INET || row.family == INET6 {
            row.local = self.local()?;
            row.remote = self.remote()?;
            row.local_port = self.local_port()?;
            row.remote_port = self.remote_port()?;
        }
        Ok(())
    }
}

/// An IPv4 address in the form that the rules know: `::ffff:a.b.c.d`.
#[inline(always)]
pub fn mapped(v4: [u8; 4]) -> [u8; 16] {
    // by words: byte by byte it is sixteen stores
    words([0, u64::from(u32::from_le_bytes(v4)) << 32 | 0xffff_0000])
}

/// Sixteen bytes of two words, as they lie in memory.
#[inline(always)]
pub fn words(words: [u64; 2]) -> [u8; 16] {
    // SAFETY: as many bytes, integers only.
    unsafe { core::mem::transmute::<[u64; 2], [u8; 16]>(words) }
}

/// The socket of the network layer in a `struct socket`, as the verifier's pointer; null: it has none.
#[inline(always)]
pub fn sock_of(socket: *mut c_void) -> *mut c_void {
    // SAFETY: the verifier knows what `socket` points to, and checks that a pointer to a `struct sock` is read there.
    unsafe { *socket.byte_add(offset(offset_of!(Offsets, socket_sock)) as usize).cast::<*mut c_void>() }
}

/// An address that a program gave, in kernel memory by now (`struct sockaddr`).
#[derive(Clone, Copy)]
pub struct Address {
    place: u64,
    length: u32,
}

impl Address {
    /// At `place`, of so many bytes.
    #[inline(always)]
    pub const fn at(place: u64, length: u32) -> Self {
        Self { place, length }
    }

    /// The address that a `struct bpf_sock_addr_kern` is about, which is what a program's context really is. The kernel
    /// lets programs read it in the words of `struct bpf_sock_addr` only, which has none for names.
    #[inline(always)]
    pub fn of_context(context: u64) -> Result<Self, Fault> {
        let place: u64 = read(context, offset_of!(Offsets, asked_address))?;
        let length: u32 = read(context, offset_of!(Offsets, asked_length))?;
        if place == 0 { Err(Fault::Unreadable) } else { Ok(Self { place, length }) }
    }

    /// What follows the family: where, and how many bytes.
    #[inline(always)]
    pub const fn name(self) -> (u64, u32) {
        (self.place + 2, self.length.saturating_sub(2))
    }

    /// The address in a message (`struct msghdr`); `None`: none.
    #[inline(always)]
    pub fn of_message(message: u64) -> Result<Option<Self>, Fault> {
        let place: u64 = read(message, offset_of!(Offsets, message_name))?;
        let length: u32 = read(message, offset_of!(Offsets, message_name_length))?;
        Ok(if place == 0 || length == 0 { None } else { Some(Self { place, length }) })
    }

    /// `AF_*`; too short for one is `AF_UNSPEC`.
    #[inline(always)]
    pub fn family(self) -> Result<u16, Fault> {
        if self.length < 2 { Ok(0) } else { self.field(0) }
    }

    /// Port in host order and address, of a family of the Internet. False: too short for one, which the kernel refuses.
    /// VERIFIER: written to a place, here and by who calls this: an `Option` in a `Result` leaves a register unwritten.
    #[inline(always)]
    pub fn internet(self, family: u16, port: &mut u16, address: &mut [u8; 16]) -> Result<bool, Fault> {
        // `struct sockaddr_in` has 16 bytes, 8 of which count; the kernel takes `struct sockaddr_in6` without its last
        // field (`SIN6_LEN_RFC2133`)
        if self.length < if family == INET { 8 } else { 24 } {
            return Ok(false);
        }
        *port = u16::from_be(self.field(2)?);
        *address = if family == INET { mapped(self.field(4)?) } else { self.field(8)? };
        Ok(true)
    }

    #[inline(always)]
    fn field<T>(self, at: u64) -> Result<T, Fault> {
        // SAFETY: the helper checks the address and copies; it never faults.
        unsafe { bpf_probe_read_kernel((self.place + at) as *const T) }.map_err(|_errno| Fault::Unreadable)
    }
}

/// What a unix socket is bound to (`struct unix_sock`).
#[derive(Clone, Copy)]
pub struct UnixSock(pub u64);

impl UnixSock {
    /// Where its name lies and how many bytes that has; `None`: it has no name.
    #[inline(always)]
    pub fn name(self) -> Result<Option<(u64, u32)>, Fault> {
        let address: u64 = read(self.0, offset_of!(Offsets, unix_address))?;
        if address == 0 {
            return Ok(None);
        }
        // the length counts the family before the name
        let length: u32 = read(address, offset_of!(Offsets, unix_address_length))?;
        let place = address + offset(offset_of!(Offsets, unix_address_name)) + 2;
        Ok(if length <= 2 { None } else { Some((place, length - 2)) })
    }

    /// The directory entry of its file.
    #[inline(always)]
    pub fn dentry(self) -> Result<Dentry, Fault> {
        read(self.0, offset_of!(Offsets, unix_dentry)).map(Dentry)
    }
}

/// A socket's cookie; made now where it has none.
#[inline(always)]
pub fn cookie(socket: *mut c_void) -> u64 {
    // SAFETY: the helper takes what the verifier knows as a socket or a context.
    unsafe { bpf_get_socket_cookie(socket) }
}

/// An exec under way (`struct linux_binprm`).
#[derive(Clone, Copy)]
pub struct Binprm(pub u64);

impl Binprm {
    /// The file to run: the script, then its interpreter.
    #[inline(always)]
    pub fn file(self) -> Result<File, Fault> {
        read(self.0, offset_of!(Offsets, binprm_file)).map(File)
    }

    /// What the new program will have.
    #[inline(always)]
    pub fn rights(self) -> Result<Rights, Fault> {
        Rights::of(read(self.0, offset_of!(Offsets, binprm_credentials))?)
    }

    /// Address of what was asked for, a string in kernel memory.
    #[inline(always)]
    pub fn filename(self) -> Result<u64, Fault> {
        read(self.0, offset_of!(Offsets, binprm_filename))
    }

    /// Whether the program was named by a descriptor and an empty path. The kernel then names it `/dev/fd/N`, and
    /// `/dev/fd/N/path` where there was a path.
    #[inline(always)]
    pub fn is_by_descriptor(self) -> Result<bool, Fault> {
        let name: u64 = read(self.0, offset_of!(Offsets, binprm_descriptor))?;
        if name == 0 {
            return Ok(false);
        }
        let mut bytes = [0u8; 24];
        // SAFETY: the helper checks the address and copies; it never faults.
        let read = unsafe { bpf_probe_read_kernel_str_bytes(name as *const u8, &mut bytes) };
        read.map_err(|_errno| Fault::Unreadable)?;
        // behind "/dev/fd/"; a number has at most ten digits
        Ok(!bytes[8..20].contains(&b'/'))
    }

    /// The file begins as a script does: its interpreter comes next.
    #[inline(always)]
    pub fn is_script(self) -> bool {
        let place = self.0 + offset(offset_of!(Offsets, binprm_buffer));
        let mut start = [0u8; 2];
        // SAFETY: the helper checks the address and copies; it never faults. VERIFIER: into bytes that are there: in the
        // `Err` of a `Result` of two bytes the compiler leaves them unwritten and reads them all the same, which 6.1 refuses.
        let read = unsafe { bpf_probe_read_kernel_buf(place as *const u8, &mut start) };
        read.is_ok() && start == *b"#!"
    }
}
