//! Attempts to leave the session: each then runs a program that is out of scope, which shows whether it got out.

use super::attempt::{Attempt, Effect, Must, Silent};

pub(super) const ATTEMPTS: &[Attempt] = &[
    Attempt::leave("fork", "a child", "fork spawn {program} --work mark {mark}"),
    Attempt::leave("vfork", "a child by vfork(2)", "vspawn {program} --work mark {mark}"),
    Attempt::leave("clone", "a child by clone(2) itself", "cloned clone spawn {program} --work mark {mark}"),
    Attempt::leave("thread", "another thread", "thread spawn {program} --work mark {mark}"),
    Attempt::leave(
        "exec-from-thread",
        "an exec by another thread than the first, to a program in scope",
        "fork thread exec {member} --work spawn {program} --work mark {mark}",
    ),
    Attempt::leave(
        "orphan",
        "a daemon: forked twice, its parent gone, in a session of its own",
        "act orphan spawn {program} --work mark {mark}",
    ),
    Attempt::leave(
        "leaderless",
        "a thread that goes on when the first thread of its process is gone",
        "act leaderless spawn {program} --work mark {mark}",
    ),
    Attempt::leave("own-cgroup", "a cgroup below the session's", "nest spawn {program} --work mark {mark}"),
    Attempt::leave(
        "other-cgroup",
        "another cgroup, by its own write",
        "cgroup {elsewhere} spawn {program} --work mark {mark}",
    ),
    Attempt::leave(
        "born-elsewhere",
        "a child in another cgroup (CLONE_INTO_CGROUP)",
        "clone-into {elsewhere} spawn {program} --work mark {mark}",
    )
    .outside()
    .must(Must::Denied, Must::Denied)
    .refused_by(&["errno 38"])
    .silent(Silent::NoLsm),
    Attempt::leave(
        "namespaces",
        "new network, mount, process and cgroup namespaces",
        "unshare pid,net,mount,cgroup spawn {program} --work mark {mark}",
    ),
    Attempt::leave(
        "user-namespace",
        "a new user namespace, in which it has every capability",
        "unshare user,net spawn {program} --work mark {mark}",
    )
    .outside()
    .must(Must::Denied, Must::Denied)
    .silent(Silent::NoLsm),
    Attempt::leave(
        "other-namespace",
        "the network namespace of a process outside",
        "act enter {outsider} net spawn {program} --work mark {mark}",
    )
    .outside()
    .must(Must::Attributed, Must::Denied)
    .silent(Silent::NoLsm),
    Attempt::leave("other-user", "another user id", "act another-user 64097 spawn {program} --work mark {mark}"),
    Attempt::leave(
        "ring-worker",
        "a worker of the kernel's for io_uring, which connects in its place",
        "by ringworker-tcp {text} {ip} {port}",
    )
    .effect(Effect::Wire)
    .must(Must::Denied, Must::Denied),
];
