//! What a task carries: the label in its task-local storage and its copy in the mirror.

use crate::pod;

/// The task is to be killed at the next chance: a verdict of kill could not be delivered at once.
pub const DOOMED: u32 = 1;
/// The label was given to a task that was first seen below the confinement cgroup (`Settings::confine_cgroup`).
pub const CONFINED: u32 = 2;
/// The label was given to a tree that ran already: whatever descends from this task is a member, also what was born
/// before the label.
pub const TREE: u32 = 4;
/// The label was given to a process that was moved into the session's cgroup: the kernel tells of the move once, and its other
/// threads are members too.
pub const JOINED: u32 = 8;
/// In a row of the walk over such trees: the thread could not be labelled.
pub const UNLABELLED: u32 = 1 << 31;

/// The value in `TASK_LABELS`, one for each labelled thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// Index into the session arrays.
    pub slot: u32,
    /// The slot's generation that the label was given for; a label of another generation names an ended session.
    pub generation: u32,
    /// `DOOMED`, `CONFINED`, `TREE`, `JOINED`.
    pub flags: u32,
    /// `task_struct.self_exec_id` of the last exec that was judged. The kernel raises its own with each exec and copies it at
    /// each fork, so a task with another runs a program that was not.
    pub exec_id: u32,
}
const _: () = assert!(size_of::<Label>() == 16);

/// The value in `MIRROR`, keyed by the task's address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mirrored {
    /// As in [`Label`].
    pub slot: u32,
    /// As in [`Label`].
    pub generation: u32,
    /// As in [`Label`].
    pub flags: u32,
    /// As in [`Label`].
    pub exec_id: u32,
    /// The thread's id in the root pid namespace: an entry whose task is gone must not speak for another task at the
    /// same address.
    pub tid: u32,
}
const _: () = assert!(size_of::<Mirrored>() == 20);

/// The value in `CGROUP_SESSIONS`, keyed by cgroup id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionRef {
    /// As in [`Label`].
    pub slot: u32,
    /// As in [`Label`].
    pub generation: u32,
}
const _: () = assert!(size_of::<SessionRef>() == 8);

/// One row that the member iterator writes: a labelled thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberRow {
    /// The thread's label.
    pub label: Label,
    /// Process id in the root pid namespace.
    pub tgid: u32,
    /// Thread id in the root pid namespace.
    pub tid: u32,
}
const _: () = assert!(size_of::<MemberRow>() == 24);

pod!(Label, Mirrored, SessionRef, MemberRow);
