//! What is mounted where (tier full): a class of privileges. And what no policy allows: to take the pins off, or to put
//! something else in the place of the agent's files, which the next agent would take for its own.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use tipstaff_common::privilege::{AGENT_FILES, MOUNTED, PRIVILEGE_MOUNT, WHOLE};

use super::{
    own_files::{refuse_over, refuse_within},
    privilege::{protect, refuse, refuse_in},
};
use crate::{kernel, maps::PROTECTED, session};

/// `MS_REMOUNT` and `MS_BIND` (`include/uapi/linux/mount.h`).
const REMOUNT: u64 = 1 << 5;
const BIND: u64 = 1 << 12;
/// `MS_UNBINDABLE`, `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`: which other trees learn of what is mounted there.
const PROPAGATION: u64 = 0b1111 << 17;

/// HOOK: `sb_mount(const char *dev_name, const struct path *path, const char *type, unsigned long flags, void *data)`, LSM
/// since 5.7; mount(2), whatever it does.
#[lsm(hook = "sb_mount")]
pub fn sb_mount(context: LsmContext) -> i32 {
    let (path, flags) = (context.arg::<*const u8>(1) as u64, context.arg::<u64>(3));
    kernel::answer(if puts_over(flags) { refuse_mount(path) } else { refuse(PRIVILEGE_MOUNT) })
}

/// HOOK: `sb_umount(struct vfsmount *mnt, int flags)`, LSM since 5.7.
#[lsm(hook = "sb_umount")]
pub fn sb_umount(context: LsmContext) -> i32 {
    kernel::answer(refuse_unmount(context.arg::<*const u8>(0) as u64))
}

/// HOOK: `sb_remount(struct super_block *sb, void *mnt_opts)`, LSM since 5.7; fsconfig(2) too.
#[lsm(hook = "sb_remount")]
pub fn sb_remount(_context: LsmContext) -> i32 {
    kernel::answer(refuse(PRIVILEGE_MOUNT))
}

/// HOOK: `sb_pivotroot(const struct path *old_path, const struct path *new_path)`, LSM since 5.7; where the old root is
/// mounted, and what is the new one, which nothing is put over. Sandboxes name one place as both, and unmount the old root.
#[lsm(hook = "sb_pivotroot")]
pub fn sb_pivotroot(context: LsmContext) -> i32 {
    let (old, new) = (context.arg::<*const u8>(0) as u64, context.arg::<*const u8>(1) as u64);
    kernel::answer(refuse_pivot(old, new))
}

/// HOOK: `move_mount(const struct path *from_path, const struct path *to_path)`, LSM since 5.7; move_mount(2), with which
/// what fsmount(2) and open_tree(2) made gets its place. Not called by mount(2).
#[lsm(hook = "move_mount")]
pub fn move_mount(context: LsmContext) -> i32 {
    kernel::answer(refuse_mount(context.arg::<*const u8>(1) as u64))
}

/// Whether mount(2) with these flags puts something over its path: not where it changes what is mounted there (in the order
/// in which `path_mount` asks, `fs/namespace.c`).
#[inline(always)]
const fn puts_over(flags: u64) -> bool {
    flags & REMOUNT == 0 && (flags & BIND != 0 || flags & PROPAGATION == 0)
}

#[inline(always)]
fn refuse_mount(over: u64) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    refuse_in(&session, PRIVILEGE_MOUNT, (0, 0)) || refuse_over(&session, over)
}

#[inline(always)]
fn refuse_pivot(old: u64, new: u64) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    refuse_in(&session, PRIVILEGE_MOUNT, (0, 0))
        || if are_one_place(old, new) { refuse_within(&session, old) } else { refuse_over(&session, old) }
}

#[inline(always)]
fn are_one_place(one: u64, other: u64) -> bool {
    matches!((kernel::entry_of_path(one), kernel::entry_of_path(other)), (Ok(one), Ok(other)) if one == other)
}

/// What the pins are in nobody of a session takes off, in its own mount namespace neither.
#[inline(always)]
fn refuse_unmount(mount: u64) -> bool {
    let Some(session) = session::of_current_often() else { return false };
    if refuse_in(&session, PRIVILEGE_MOUNT, (0, 0)) {
        return true;
    }
    let holds_pins = match kernel::root_of_mount(mount) {
        // SAFETY: read at once.
        Ok(root) => unsafe { PROTECTED.get(root) }.is_some_and(|mark| matches!(*mark, WHOLE | MOUNTED)),
        Err(_) => true,
    };
    holds_pins && protect(&session, AGENT_FILES, (0, 0), false)
}
