//! Files that are more than files (tier full). The agent's own: what lies in its folders, the pins too, no member writes,
//! makes, renames or removes, whatever its policy and its mode; nor does it change which folders the names of these lead to. And
//! what daemons start programs out of, what the kernel goes
//! by, and disks and memory: classes of privileges.

use aya_ebpf::{EbpfContext as _, macros::lsm, programs::LsmContext};
use tipstaff_common::{
    label::SessionRef,
    privilege::{
        ABOVE, AGENT_FILES, MOUNTED, PRIVILEGE_DELEGATION, PRIVILEGE_KERNEL_SETTINGS, PRIVILEGE_NAMESPACES,
        PRIVILEGE_RAW_DEVICES, PRIVILEGE_SIGNAL, SPOOLS, WHOLE,
    },
};

use super::privilege::{OWN, protect, refuse_in, refuse_on, whose_in};
use crate::{
    kernel::{self, Dentry, File, Inode},
    maps::PROTECTED,
    session::{self, Session},
    verdict::Fault,
};

/// Folders above a file that are looked at: the agent's own are not deeper (a link lies three below that of the pins).
const LEVELS: u32 = 4;
/// Folders above a setting below /proc/sys (`net/ipv4/conf/eth0`) with it and the root.
const SETTING_LEVELS: u32 = 8;

/// Folders above a file of a cgroup that are looked at for the session's own.
const CGROUP_LEVELS: u32 = 8;

/// `CGROUP2_SUPER_MAGIC` (`include/uapi/linux/magic.h`)
const CGROUP: u64 = 0x6367_7270;
/// `PROC_SUPER_MAGIC` (`include/uapi/linux/magic.h`)
const PROC: u64 = 0x9fa0;
/// `NSFS_MAGIC`: a namespace, for setns(2), whichever way it was come to.
const NAMESPACES: u64 = 0x6e73_6673;
/// File systems of which every file that is written tells the kernel what to do, root's processes and its own helpers
/// included: sysfs, debugfs, tracefs, securityfs, configfs, efivarfs, version 1 of cgroups (its `release_agent`)
/// (`include/uapi/linux/magic.h`), and binfmt_misc (`fs/binfmt_misc.c`).
const SETTINGS: [u64; 8] =
    [0x6265_6572, 0x6462_6720, 0x7472_6163, 0x7363_6673, 0x6265_6570, 0xde5e_81e4, 0x0027_e0eb, 0x4249_4e4d];

/// HOOK: `file_open(struct file *file)`, LSM since 5.7; every open, of which a member's are judged that are for writing, or
/// of a device or a namespace.
#[lsm(hook = "file_open")]
pub fn file_open(context: LsmContext) -> i32 {
    kernel::answer(refuse_open(File(context.arg::<*const u8>(0) as u64)))
}

/// HOOK: `inode_unlink(struct inode *dir, struct dentry *dentry)`, LSM since 5.7.
#[lsm(hook = "inode_unlink")]
pub fn inode_unlink(context: LsmContext) -> i32 {
    kernel::answer(refuse_change(context.arg::<*const u8>(1) as u64))
}

/// HOOK: `inode_rmdir(struct inode *dir, struct dentry *dentry)`, LSM since 5.7.
#[lsm(hook = "inode_rmdir")]
pub fn inode_rmdir(context: LsmContext) -> i32 {
    kernel::answer(refuse_removal(context.arg::<*const u8>(1) as u64))
}

/// HOOK: `inode_create(struct inode *dir, struct dentry *dentry, umode_t mode)`, LSM since 5.7.
#[lsm(hook = "inode_create")]
pub fn inode_create(context: LsmContext) -> i32 {
    kernel::answer(refuse_change(context.arg::<*const u8>(1) as u64))
}

/// HOOK: `inode_mkdir(struct inode *dir, struct dentry *dentry, umode_t mode)`, LSM since 5.7.
#[lsm(hook = "inode_mkdir")]
pub fn inode_mkdir(context: LsmContext) -> i32 {
    kernel::answer(refuse_change(context.arg::<*const u8>(1) as u64))
}

/// HOOK: `inode_mknod(struct inode *dir, struct dentry *dentry, umode_t mode, dev_t dev)`, LSM since 5.7; also the file of a
/// unix socket.
#[lsm(hook = "inode_mknod")]
pub fn inode_mknod(context: LsmContext) -> i32 {
    kernel::answer(refuse_change(context.arg::<*const u8>(1) as u64))
}

/// HOOK: `inode_symlink(struct inode *dir, struct dentry *dentry, const char *old_name)`, LSM since 5.7.
#[lsm(hook = "inode_symlink")]
pub fn inode_symlink(context: LsmContext) -> i32 {
    kernel::answer(refuse_change(context.arg::<*const u8>(1) as u64))
}

/// HOOK: `inode_link(struct dentry *old_dentry, struct inode *dir, struct dentry *new_dentry)`, LSM since 5.7.
#[lsm(hook = "inode_link")]
pub fn inode_link(context: LsmContext) -> i32 {
    let (from, to) = (context.arg::<*const u8>(0) as u64, context.arg::<*const u8>(2) as u64);
    kernel::answer(refuse_either(from, to))
}

/// HOOK: `inode_rename(struct inode *old_dir, struct dentry *old_dentry, struct inode *new_dir, struct dentry *new_dentry)`,
/// LSM since 5.7.
#[lsm(hook = "inode_rename")]
pub fn inode_rename(context: LsmContext) -> i32 {
    let (from, to) = (context.arg::<*const u8>(1) as u64, context.arg::<*const u8>(3) as u64);
    kernel::answer(refuse_rename(from, to))
}

/// HOOK: `inode_setattr(struct dentry *dentry, struct iattr *attr)`, LSM since 5.7, with the mount's user ids before them
/// since 6.9; owner, rights, times and size, whether by a path, a descriptor, or `O_TRUNC` of who only reads.
#[lsm(hook = "inode_setattr")]
pub fn inode_setattr(context: LsmContext) -> i32 {
    let arguments = context.as_ptr().cast::<u64>();
    // SAFETY: the hook has two arguments or three. VERIFIER: volatile, so that both are read, each where it is: else the
    // compiler computes a place among the arguments, which 6.12 refuses.
    let (first, second) = unsafe { (arguments.read_volatile(), arguments.add(1).read_volatile()) };
    kernel::answer(refuse_change(if kernel::setattr_says_ids() { second } else { first }))
}

/// HOOK: `inode_setxattr(struct mnt_idmap *idmap, struct dentry *dentry, const char *name, const void *value, size_t size, int
/// flags)`, LSM since 5.7 (with the mount's ids since 5.12); before 6.2 access control lists are set by it too.
#[lsm(hook = "inode_setxattr")]
pub fn inode_setxattr(context: LsmContext) -> i32 {
    kernel::answer(refuse_change(context.arg::<*const u8>(1) as u64))
}

/// HOOK: `inode_set_acl(struct mnt_idmap *idmap, struct dentry *dentry, const char *acl_name, struct posix_acl *kacl)`, LSM since 6.2;
/// an access control list changes who may read and write, and no other hook is asked.
#[lsm(hook = "inode_set_acl")]
pub fn inode_set_acl(context: LsmContext) -> i32 {
    kernel::answer(refuse_change(context.arg::<*const u8>(1) as u64))
}

/// HOOK: `inode_removexattr(struct mnt_idmap *idmap, struct dentry *dentry, const char *name)`, LSM since 5.7 (with the mount's
/// ids since 5.12); before 6.2 access control lists are removed by it too.
#[lsm(hook = "inode_removexattr")]
pub fn inode_removexattr(context: LsmContext) -> i32 {
    kernel::answer(refuse_change(context.arg::<*const u8>(1) as u64))
}

/// HOOK: `inode_remove_acl(struct mnt_idmap *idmap, struct dentry *dentry, const char *acl_name)`, LSM since 6.2; as
/// `inode_set_acl`.
#[lsm(hook = "inode_remove_acl")]
pub fn inode_remove_acl(context: LsmContext) -> i32 {
    kernel::answer(refuse_change(context.arg::<*const u8>(1) as u64))
}

#[inline(always)]
fn refuse_open(file: File) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    // what cannot be read is taken for one of the agent's
    let (Ok(inode), Ok(entry), Ok(mode)) = (file.inode(), file.dentry(), file.mode()) else {
        return protect(&session, AGENT_FILES, (0, 0), false);
    };
    if mode.writes() && refuse_written(&session, entry) {
        return true;
    }
    let class = class_of_file(inode.0, entry.0, u32::from(mode.writes()));
    refuse_class(&session, class, entry)
}

/// Whether a member is refused a file that takes this class; 0: none. The settings of its own cgroup take none.
#[inline(always)]
pub fn refuse_class(session: &Session, class: u32, entry: Dentry) -> bool {
    if class != PRIVILEGE_SIGNAL {
        return class != 0 && refuse_in(session, class, (0, 0));
    }
    let whose = whose_in(session, session_of_cgroup(entry));
    whose != OWN && refuse_on(session, class, (0, 0), whose)
}

/// Whether a member is refused to have a file open to write: the agent's own, and those out of which daemons start programs.
#[inline(always)]
pub fn refuse_written(session: &Session, entry: Dentry) -> bool {
    refuse_marked(session, mark(entry))
}

/// The class of privileges that opening this file takes; 0: none. What cannot be read takes the first that it could.
///
/// VERIFIER: as `session::session_of_current`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn class_of_file(inode: u64, entry: u64, writing: u32) -> u32 {
    let inode = Inode(inode);
    if inode.is_raw_device() != Ok(false) {
        return PRIVILEGE_RAW_DEVICES;
    }
    let magic = inode.magic();
    if magic == Ok(NAMESPACES) {
        return PRIVILEGE_NAMESPACES;
    }
    if writing == 0 {
        return 0;
    }
    match magic {
        Ok(PROC) if is_setting(Dentry(entry)) == Ok(false) => 0,
        Ok(CGROUP) if ends_others(Dentry(entry)) != Ok(false) => PRIVILEGE_SIGNAL,
        Ok(magic) if magic != PROC && !SETTINGS.contains(&magic) => 0,
        _ => PRIVILEGE_KERNEL_SETTINGS,
    }
}

/// Of cgroup2: what ends, stops or starves all that is in a cgroup: `cgroup.kill`, `cgroup.freeze`, and every setting of a
/// controller (a `memory.max` that is too small is a kill). All but `cgroup.procs`, `cgroup.threads`, `cgroup.type`,
/// `cgroup.subtree_control` and `cgroup.pressure`.
#[inline(always)]
fn ends_others(entry: Dentry) -> Result<bool, Fault> {
    let name = entry.name_start()?;
    Ok(!name.starts_with(b"cgroup.") || !matches!(name[7], b'p' | b't' | b's'))
}

/// The session in whose cgroup a file of cgroup2 is, or below it.
#[inline(always)]
fn session_of_cgroup(file: Dentry) -> Option<SessionRef> {
    let mut folder = file;
    for _ in 0..CGROUP_LEVELS {
        match folder.parent() {
            Ok(above) if above != folder => folder = above,
            _ => return None,
        }
        // a cgroup's id is the number of its folder's inode
        let found = folder.identity().ok().and_then(|folder| session::by_cgroup_id(folder.inode));
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Of a procfs: /proc/sys with what is below it, and /proc/sysrq-trigger. The rest is of processes, of drivers (/proc/irq,
/// /proc/bus/pci), or only read. What lies deeper than all of them counts as one.
#[inline(always)]
fn is_setting(entry: Dentry) -> Result<bool, Fault> {
    let mut entry = entry;
    for _ in 0..SETTING_LEVELS {
        let above = entry.parent()?;
        if above.parent()? == above {
            let name = entry.name_start()?;
            return Ok(name.starts_with(b"sys\0") || name.starts_with(b"sysrq-"));
        }
        entry = above;
    }
    Ok(true)
}

/// Whether the task that runs is a member that may not change this file.
#[inline(always)]
pub fn refuse_change(entry: u64) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    refuse_marked(&session, mark(Dentry(entry)))
}

#[inline(always)]
fn refuse_either(entry: u64, other: u64) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    let (one, other) = (mark(Dentry(entry)), mark(Dentry(other)));
    // the agent's own is the lower
    refuse_marked(&session, if one == 0 || (other != 0 && other < one) { other } else { one })
}

/// As [`refuse_change`], of a folder that goes: one above the agent's stays.
#[inline(always)]
fn refuse_removal(entry: u64) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    refuse_marked(&session, mark(Dentry(entry))) || refuse_above(&session, Dentry(entry))
}

/// As [`refuse_removal`], of what gets another name and of what has that name, which may be exchanged.
#[inline(always)]
fn refuse_rename(from: u64, to: u64) -> bool {
    if refuse_either(from, to) {
        return true;
    }
    let Some(session) = session::of_current_often() else { return false };
    refuse_above(&session, Dentry(from)) || refuse_above(&session, Dentry(to))
}

/// Whether a member is refused to mount something over what a `struct path` leads to.
#[inline(always)]
pub fn refuse_over(session: &Session, path: u64) -> bool {
    // what cannot be read is taken for one of the agent's
    let Ok(entry) = kernel::entry_of_path(path) else { return protect(session, AGENT_FILES, (0, 0), false) };
    refuse_marked(session, mark(entry)) || refuse_above(session, entry)
}

/// As [`refuse_over`], not over what is above the agent's own.
#[inline(always)]
pub fn refuse_within(session: &Session, path: u64) -> bool {
    let Ok(entry) = kernel::entry_of_path(path) else { return protect(session, AGENT_FILES, (0, 0), false) };
    refuse_marked(session, mark(entry))
        || (mark_itself(entry) == MOUNTED && protect(session, AGENT_FILES, (0, 0), false))
}

/// Whether the agent's own is found by way of this folder, which nothing takes the place of.
#[inline(always)]
fn refuse_above(session: &Session, entry: Dentry) -> bool {
    matches!(mark_itself(entry), MOUNTED | ABOVE) && protect(session, AGENT_FILES, (0, 0), false)
}

/// What becomes of a change to a file with such a mark: the agent's own, or one out of which a daemon starts programs.
#[inline(always)]
fn refuse_marked(session: &Session, mark: u32) -> bool {
    match mark {
        WHOLE => protect(session, AGENT_FILES, (0, 0), false),
        SPOOLS.. => refuse_in(session, PRIVILEGE_DELEGATION, (0, mark - SPOOLS)),
        _ => false,
    }
}

/// The mark of a file or folder, or of one that it lies in; 0: none.
///
/// VERIFIER: the first step here: the function below is given numbers only, and what a hook is given is a pointer.
#[inline(always)]
fn mark(entry: Dentry) -> u32 {
    match own_mark(entry) {
        0 => entry.parent().map_or(0, |above| mark_of_folder(above.0)),
        own => own,
    }
}

/// A file system's root is nobody's for the pins that are in it, and neither is a folder above the agent's.
#[inline(always)]
fn own_mark(entry: Dentry) -> u32 {
    match mark_itself(entry) {
        MOUNTED | ABOVE => 0,
        mark => mark,
    }
}

/// What stands in `PROTECTED` of a file or folder. What is about to be made has no file yet, and is nobody's.
#[inline(always)]
fn mark_itself(entry: Dentry) -> u32 {
    let Ok(file) = entry.identity() else { return 0 };
    // SAFETY: copied out at once.
    unsafe { PROTECTED.get(file) }.copied().unwrap_or(0)
}

/// The mark of a folder, or of one that it lies in; 0: none.
///
/// VERIFIER: as `session::session_of_current`. By a loop of its own: with `bpf_loop`, whose body is followed again for each
/// way into it, 6.12 and 7.2 follow half as much again.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn mark_of_folder(folder: u64) -> u32 {
    let mut folder = Dentry(folder);
    for _ in 0..LEVELS {
        let own = own_mark(folder);
        if own != 0 {
            return own;
        }
        match folder.parent() {
            Ok(above) if above != folder => folder = above,
            _ => return 0,
        }
    }
    0
}
