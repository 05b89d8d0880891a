//! A tree that ran before it was a session's: whoever descends from it is labelled, in walks over all tasks, until a walk
//! finds nobody. From its label on a task's children are labelled at birth; a walk is for those that were born before. And
//! the other threads of a process that was moved into a session's cgroup.

use tipstaff_common::label::{JOINED, Label, MemberRow, Mirrored, TREE, UNLABELLED};

use super::iterate::{TaskContext, write};
use crate::{
    kernel::Task,
    maps::{MIRROR, TASK_LABELS},
    session::{self, NEVER_JUDGED},
};

/// HOOK: `iter/task(struct bpf_iter__task *)`, since 5.8; in process context. Labels each thread whose process's first
/// thread carries a label with `TREE` or `JOINED`, or whose parent carries one with `TREE`, and takes off the labels of a session that is undone. Writes a
/// `MemberRow` for each thread that it changed, or (`UNLABELLED`) could not.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub extern "C" fn heirs(context: *const TaskContext) -> i32 {
    // SAFETY: the kernel hands over a valid context; the task is null at the end.
    let (meta, pointer) = unsafe { ((*context).meta, (*context).task) };
    if pointer.is_null() {
        return 0;
    }
    let task = Task(pointer as u64);
    if task.exit_state().is_ok_and(|state| state != 0) {
        return 0;
    }
    let own = TASK_LABELS.get(pointer, false);
    let mut label = if own.is_null() {
        let Some(entry) = of_tree(task) else { return 0 };
        // by another's entry: what this one runs was not judged
        Label { slot: entry.slot, generation: entry.generation, flags: entry.flags, exec_id: NEVER_JUDGED }
    } else {
        // SAFETY: points into the task's storage.
        unsafe { *own }
    };
    if !own.is_null() {
        if session::is_undone(label) {
            TASK_LABELS.remove(pointer);
            // an entry that is not there is as good as one that was deleted
            let _ = MIRROR.remove(task.0);
        } else if label.flags & TREE == 0 || session::mirrored(task).is_some() {
            return 0;
        } else if session::mirror(task, label).is_err() {
            label.flags |= UNLABELLED;
        }
    } else if session::is_undone(label) {
        // of one whose storage had no room
        let _ = MIRROR.remove(task.0);
        return 0;
    } else if session::give(pointer, task, label).is_err() {
        label.flags |= UNLABELLED;
    }
    let mut row = MemberRow { label, tgid: task.tgid().unwrap_or(0), tid: task.tid().unwrap_or(0) };
    write(meta, &mut row);
    0
}

/// What the mirror says of whom a task belongs to: its process's first thread, the thread that made it, or that one's
/// process. The mirror, because the storage of another task than the one at hand cannot be read by its address.
#[inline(always)]
fn of_tree(task: Task) -> Option<Mirrored> {
    let by = |other: Task, flags: u32| session::mirrored(other).filter(|entry| entry.flags & flags != 0);
    if let Some(entry) = by(task.leader().ok()?, TREE | JOINED) {
        return Some(entry);
    }
    let parent = task.parent().ok()?;
    if let Some(entry) = by(parent, TREE) {
        return Some(entry);
    }
    by(parent.leader().ok()?, TREE)
}
