//! Tasks, their cgroups and credentials, and execs under way.

use core::mem::offset_of;

use aya_ebpf::helpers::{
    bpf_get_current_task, bpf_probe_read_kernel_buf, bpf_probe_read_kernel_str_bytes, bpf_probe_read_user_buf,
};
use tipstaff_common::{limits::ARG_BYTES, offsets::Offsets};

use super::{Dentry, File, offset, read};
use crate::{maps::ROOT, verdict::Fault};

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

    /// The thread's number in its own pid namespace.
    #[inline(always)]
    pub fn number_inside(self) -> Result<u32, Fault> {
        /// `sizeof(struct upid)`, whose first field is the number.
        const EACH: u64 = 16;
        let pid: u64 = read(self.0, offset_of!(Offsets, task_number))?;
        let level: u32 = read(pid, offset_of!(Offsets, pid_level))?;
        read(pid.wrapping_add(u64::from(level) * EACH), offset_of!(Offsets, pid_numbers))
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

    /// Whether it is of cgroup2: each hierarchy of version 1 has ids of its own, which begin with the same numbers. The kernel makes
    /// cgroup2 first, and gives it the number 0 (`cgroup_init`, `kernel/cgroup/cgroup.c`, 6.18).
    #[inline(always)]
    pub fn is_of_version_2(self) -> bool {
        let root: Result<u64, Fault> = read(self.0, offset_of!(Offsets, cgroup_root));
        let number: Result<u32, Fault> = root.and_then(|root| read(root, offset_of!(Offsets, root_hierarchy)));
        // what cannot be read is taken for what most hosts have alone
        number.unwrap_or(0) == 0
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

    /// The file is not what the kernel loads by itself: another comes next that runs it, which its first line names, or whoever
    /// registered its format (`binfmt_misc`); or the exec fails. So is one whose start cannot be read.
    #[inline(always)]
    pub fn is_script(self) -> bool {
        let place = self.0 + offset(offset_of!(Offsets, binprm_buffer));
        let mut start = [0u8; 4];
        // SAFETY: the helper checks the address and copies; it never faults. VERIFIER: into bytes that are there: in the
        // `Err` of a `Result` of few bytes the compiler leaves them unwritten and reads them all the same, which 6.1 refuses.
        let read = unsafe { bpf_probe_read_kernel_buf(place as *const u8, &mut start) };
        read.is_err() || start != *b"\x7fELF"
    }
}
