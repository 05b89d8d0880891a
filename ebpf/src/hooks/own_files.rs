//! The agent's own folders (tier full): what lies in them, the pins too, no member writes, makes, renames or removes,
//! whatever its policy and its mode.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use tipstaff_common::privilege::{AGENT_FILES, WHOLE};

use super::privilege::protect;
use crate::{
    kernel::{self, Dentry, File},
    maps::PROTECTED,
    session,
};

/// Folders above a file that are looked at: the agent's own are not deeper.
const LEVELS: u32 = 6;

/// HOOK: `file_open(struct file *file)`, LSM since 5.7; every open, of which those for writing by a member are judged.
#[lsm(hook = "file_open")]
pub fn file_open(context: LsmContext) -> i32 {
    kernel::answer(refuse_open(File(context.arg::<*const u8>(0) as u64)))
}

/// HOOK: `inode_unlink(struct inode *dir, struct dentry *dentry)`, LSM since 5.7.
#[lsm(hook = "inode_unlink")]
pub fn inode_unlink(context: LsmContext) -> i32 {
    kernel::answer(refuse(context.arg::<*const u8>(1) as u64))
}

/// HOOK: `inode_rmdir(struct inode *dir, struct dentry *dentry)`, LSM since 5.7.
#[lsm(hook = "inode_rmdir")]
pub fn inode_rmdir(context: LsmContext) -> i32 {
    kernel::answer(refuse(context.arg::<*const u8>(1) as u64))
}

/// HOOK: `inode_create(struct inode *dir, struct dentry *dentry, umode_t mode)`, LSM since 5.7.
#[lsm(hook = "inode_create")]
pub fn inode_create(context: LsmContext) -> i32 {
    kernel::answer(refuse(context.arg::<*const u8>(1) as u64))
}

/// HOOK: `inode_mkdir(struct inode *dir, struct dentry *dentry, umode_t mode)`, LSM since 5.7.
#[lsm(hook = "inode_mkdir")]
pub fn inode_mkdir(context: LsmContext) -> i32 {
    kernel::answer(refuse(context.arg::<*const u8>(1) as u64))
}

/// HOOK: `inode_symlink(struct inode *dir, struct dentry *dentry, const char *old_name)`, LSM since 5.7.
#[lsm(hook = "inode_symlink")]
pub fn inode_symlink(context: LsmContext) -> i32 {
    kernel::answer(refuse(context.arg::<*const u8>(1) as u64))
}

/// HOOK: `inode_link(struct dentry *old_dentry, struct inode *dir, struct dentry *new_dentry)`, LSM since 5.7.
#[lsm(hook = "inode_link")]
pub fn inode_link(context: LsmContext) -> i32 {
    let (from, to) = (context.arg::<*const u8>(0) as u64, context.arg::<*const u8>(2) as u64);
    kernel::answer(refuse(from) || refuse(to))
}

/// HOOK: `inode_rename(struct inode *old_dir, struct dentry *old_dentry, struct inode *new_dir, struct dentry *new_dentry)`,
/// LSM since 5.7.
#[lsm(hook = "inode_rename")]
pub fn inode_rename(context: LsmContext) -> i32 {
    let (from, to) = (context.arg::<*const u8>(1) as u64, context.arg::<*const u8>(3) as u64);
    kernel::answer(refuse(from) || refuse(to))
}

/// HOOK: `path_truncate(const struct path *path)`, LSM since 5.7, in kernels with `CONFIG_SECURITY_PATH`, as the two below.
#[lsm(hook = "path_truncate")]
pub fn path_truncate(context: LsmContext) -> i32 {
    kernel::answer(refuse_path(context.arg::<*const u8>(0) as u64))
}

/// HOOK: `path_chmod(const struct path *path, umode_t mode)`, LSM since 5.7.
#[lsm(hook = "path_chmod")]
pub fn path_chmod(context: LsmContext) -> i32 {
    kernel::answer(refuse_path(context.arg::<*const u8>(0) as u64))
}

/// HOOK: `path_chown(const struct path *path, kuid_t uid, kgid_t gid)`, LSM since 5.7.
#[lsm(hook = "path_chown")]
pub fn path_chown(context: LsmContext) -> i32 {
    kernel::answer(refuse_path(context.arg::<*const u8>(0) as u64))
}

#[inline(always)]
fn refuse_open(file: File) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    // what cannot be read is taken for one of the agent's
    let found = match (file.is_for_writing(), file.dentry()) {
        (Ok(false), _) => false,
        (Ok(true), Ok(entry)) => is_agents(entry),
        _ => true,
    };
    found && protect(&session, AGENT_FILES, (0, 0), false)
}

#[inline(always)]
fn refuse(entry: u64) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    is_agents(Dentry(entry)) && protect(&session, AGENT_FILES, (0, 0), false)
}

#[inline(always)]
fn refuse_path(path: u64) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    kernel::entry_of_path(path).map_or(true, is_agents) && protect(&session, AGENT_FILES, (0, 0), false)
}

/// Whether it is one of the agent's files and folders, or lies in one.
///
/// VERIFIER: the first step here: the function below is given numbers only, and what a hook is given is a pointer.
#[inline(always)]
fn is_agents(entry: Dentry) -> bool {
    is_whole(entry) || entry.parent().is_ok_and(|above| lies_in_agents(above.0) != 0)
}

/// What is about to be made has no file yet, and is nobody's.
#[inline(always)]
fn is_whole(entry: Dentry) -> bool {
    // SAFETY: copied out at once.
    entry.identity().is_ok_and(|file| unsafe { PROTECTED.get(file) }.copied() == Some(WHOLE))
}

/// 1: the folder is one of the agent's, or lies in one.
///
/// VERIFIER: as `session::session_of_current`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn lies_in_agents(folder: u64) -> u32 {
    let mut folder = Dentry(folder);
    for _ in 0..LEVELS {
        if is_whole(folder) {
            return 1;
        }
        match folder.parent() {
            Ok(above) if above != folder => folder = above,
            _ => return 0,
        }
    }
    0
}
