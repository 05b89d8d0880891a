//! Attempts to act beyond the session: on processes outside, on the kernel, by rights that are not the session's.

use super::{
    attempt::{Attempt, Effect, Must},
    known::{CGROUPS, MEMORY, PASSED, ROOTS_FILES, ROOTS_RIGHTS, SIGNALS, STANDING, TAKING_IN, UNSEEN},
};

pub(super) const ATTEMPTS: &[Attempt] = &[
    Attempt::privilege("signal", "a signal to a process outside", "privilege signal {victim}").open(&[SIGNALS]),
    Attempt::privilege("signal-group", "a signal to a process group outside", "act signal-group {victim}")
        .open(&[SIGNALS]),
    Attempt::privilege(
        "signal-by-descriptor",
        "a signal by a descriptor of the process",
        "act signal-by-pidfd {victim}",
    )
    .open(&[SIGNALS]),
    Attempt::privilege(
        "signal-by-owner",
        "SIGKILL as the news that a pipe can be read (F_SETOWN)",
        "act owner {victim} fcntl 9",
    )
    .effect(Effect::Victim)
    .must(Must::Denied, Must::Dropped)
    .open(&[SIGNALS]),
    Attempt::privilege("signal-by-owner-ex", "the same by F_SETOWN_EX", "act owner {victim} ex 9")
        .effect(Effect::Victim)
        .must(Must::Denied, Must::Dropped)
        .open(&[SIGNALS]),
    Attempt::privilege("signal-by-socket", "the same of a socket, by ioctl(2)", "act owner {victim} ioctl 9")
        .effect(Effect::Victim)
        .must(Must::Denied, Must::Dropped)
        .open(&[SIGNALS]),
    Attempt::privilege("limit", "a limit of a process outside, past which the kernel kills it", "act limit {victim}")
        .effect(Effect::Victim)
        .open(&[STANDING]),
    Attempt::privilege("schedule", "how a process outside is scheduled", "act schedule {victim}")
        .effect(Effect::Victim)
        .open(&[STANDING]),
    Attempt::privilege(
        "memory-first",
        "which process is killed where memory runs out",
        "act write /proc/{victim}/oom_score_adj 777",
    )
    .effect(Effect::Victim)
    .open(&[MEMORY]),
    Attempt::privilege("kill-cgroup", "to kill by the cgroup of a process outside", "act write {cell}/cgroup.kill 1")
        .effect(Effect::Victim)
        .open(&[CGROUPS]),
    Attempt::privilege(
        "freeze-cgroup",
        "to freeze the cgroup of a process outside",
        "act write {cell}/cgroup.freeze 1",
    )
    .effect(Effect::Victim)
    .open(&[CGROUPS]),
    Attempt::privilege("take-in", "to take a process outside into the session's cgroup", "act join {victim}")
        .effect(Effect::Victim)
        .open(&[TAKING_IN]),
    Attempt::privilege(
        "read-memory",
        "the memory of a process outside (process_vm_readv)",
        "privilege ptrace {victim}",
    )
    .done("errno 14"),
    Attempt::privilege("write-memory", "the memory of a process outside (/proc/PID/mem)", "act memory {victim}")
        .open(&[SIGNALS]),
    Attempt::privilege(
        "take-descriptor",
        "a descriptor of a process outside (pidfd_getfd)",
        "act take-descriptor {victim}",
    ),
    Attempt::privilege(
        "passed-setting",
        "a setting that somebody outside passed in, open to write",
        "act use-passed {gifts} setting",
    )
    .refused_by(&["none"])
    .open(&[PASSED]),
    Attempt::privilege(
        "passed-device",
        "a disk that somebody outside passed in, open to write",
        "act use-passed {gifts} device",
    )
    .refused_by(&["none"])
    .open(&[PASSED]),
    Attempt::privilege(
        "passed-event",
        "a performance event that somebody outside passed in",
        "act use-passed {gifts} event",
    )
    .refused_by(&["none"])
    .open(&[PASSED]),
    Attempt::privilege(
        "passed-faults",
        "a userfaultfd that somebody outside passed in",
        "act use-passed {gifts} faults",
    )
    .refused_by(&["none"])
    .open(&[PASSED]),
    Attempt::privilege("bpf", "bpf(2)", "privilege bpf 11"),
    Attempt::privilege("module", "a kernel module", "privilege modules").done("errno 8"),
    Attempt::privilege("kexec", "another kernel", "privilege kexec").done("errno 22"),
    Attempt::privilege("mount", "mount(2)", "privilege mount").done("errno 22"),
    Attempt::privilege("mount-apart", "a new file system that is mounted nowhere (fsmount)", "act mount-apart")
        .open(&[UNSEEN]),
    Attempt::privilege("tree-apart", "a copy of the mounts (open_tree)", "act tree-apart").open(&[UNSEEN]),
    Attempt::privilege("mount-attributes", "attributes of a mount (mount_setattr)", "act mount-attributes")
        .open(&[UNSEEN]),
    Attempt::privilege("chroot", "chroot(2)", "privilege chroot"),
    Attempt::privilege("keyring", "a key", "privilege keyring"),
    Attempt::privilege("perf-event", "perf_event_open(2)", "privilege perf-event"),
    Attempt::privilege("userfaultfd", "userfaultfd(2)", "privilege userfaultfd"),
    Attempt::privilege("userfaultfd-device", "the same by its device", "act faults-device")
        .may_lack()
        .open(&[ROOTS_FILES]),
    Attempt::privilege(
        "kernel-settings",
        "what the kernel runs as root (core_pattern)",
        "act write /proc/sys/kernel/core_pattern",
    )
    .open(&[ROOTS_FILES]),
    Attempt::privilege("raw-device", "a disk", "act open-for-writing /dev/loop0").open(&[ROOTS_FILES]),
    Attempt::privilege("ports", "the processor's ports (iopl)", "act ports").may_lack(),
    Attempt::privilege("unload", "to unload a kernel module", "act unload").done("errno 2").open(&[UNSEEN]),
    Attempt::privilege("clock", "to set the wall clock", "act clock").guests_only().open(&[UNSEEN, ROOTS_RIGHTS]),
    Attempt::privilege(
        "type-ahead",
        "keys typed at a terminal in the user's name (TIOCSTI)",
        "act type-ahead {terminal}",
    )
    .may_lack(),
];
