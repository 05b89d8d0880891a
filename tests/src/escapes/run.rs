//! Attempts to run a program that is out of scope, whatever it is called and wherever its bytes lie.

use super::{
    attempt::{Attempt, Effect, Must, Silent},
    known::{GIVEN, MAPPED, SCRIPT},
};

pub(super) const ATTEMPTS: &[Attempt] = &[
    Attempt::run("plain", "its path", "spawn {program} --work mark {mark}"),
    Attempt::run("symbolic-link", "a symbolic link to it", "act file symlink {program} {tmp} --work mark {mark}"),
    Attempt::run("hard-link", "another name of the file", "act file link {program} {tmp} --work mark {mark}").outside(),
    Attempt::run(
        "hard-link-in-scope",
        "another name of the file in a folder that is in scope, and the user's own",
        "act file link {program} {own}.linked --work mark {mark}",
    )
    .outside(),
    Attempt::run("copy", "a copy of it", "act file copy {program} {tmp} --work mark {mark}").outside(),
    Attempt::run(
        "overwrite",
        "its bytes in a file that is in scope",
        "act file overwrite {program} {own} --work mark {mark}",
    )
    .twin("spawn {own} --work mark {mark}"),
    Attempt::run(
        "overwrite-mapped",
        "its bytes in a file that is in scope, through a mapping",
        "act file overwrite-mapped {program} {own} --work mark {mark}",
    )
    .twin("spawn {own} --work mark {mark}")
    .open(&[MAPPED]),
    Attempt::run(
        "replace",
        "a copy moved over a file that is in scope",
        "act file move {program} {own} --work mark {mark}",
    )
    .twin("spawn {own} --work mark {mark}"),
    Attempt::run("root-link", "its path below /proc/self/root", "act file root {program} - --work mark {mark}"),
    Attempt::run(
        "folder-descriptor",
        "its name below a descriptor of its folder",
        "act file folder {program} - --work mark {mark}",
    ),
    Attempt::run(
        "place-descriptor",
        "a descriptor that is a place only (O_PATH)",
        "act file place {program} - --work mark {mark}",
    ),
    Attempt::run("descriptor", "a descriptor of it (fexecve)", "spawn-by-descriptor {program} --work mark {mark}")
        .outside(),
    Attempt::run("memory", "a file in memory (memfd)", "made memfd {program} {tmp} --work mark {mark}").outside(),
    Attempt::run("removed", "a file that was removed", "made deleted {program} {tmp} --work mark {mark}").outside(),
    Attempt::run("script", "a script out of scope, by an interpreter in scope", "spawn {script}").open(&[SCRIPT]),
    Attempt::run("script-of-it", "a script in scope, by an interpreter out of scope", "spawn {wrapper} {mark}")
        .outside(),
    Attempt::run(
        "first-argument",
        "a program in scope with a first argument that is not",
        "spawn {choosy} no mark {mark}",
    )
    .twin("spawn {choosy} yes mark {mark}")
    .must(Must::Killed, Must::Killed),
    Attempt::run("after-setsid", "an orphan's exec", "act orphan act file copy {program} {tmp} --work mark {mark}")
        .outside(),
    Attempt::run(
        "bind-mount",
        "a bind mount of it over a program in scope",
        "apart {program}={good} / spawn {good} --work mark {mark}",
    )
    .outside()
    .must(Must::Denied, Must::Denied)
    .refused_by(&[
        "a mount namespace cannot be made: EPERM: Operation not permitted",
        "/ cannot be made private: EPERM: Operation not permitted",
    ])
    .silent(Silent::NoLsm),
    Attempt::run("mapped-code", "code of a file out of scope, mapped by a program in scope", "act map {code}")
        .effect(Effect::Said)
        .outside()
        .open(&[GIVEN]),
    Attempt::run("own-code", "code that a program in scope wrote into its memory", "act map -")
        .effect(Effect::Said)
        .outside()
        .open(&[GIVEN]),
];
