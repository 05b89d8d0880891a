//! The controls: what each is called, what the canary proved of it here, and which of them a policy asks for.

use tipstaff_common::{
    limits::DEPTH,
    rule,
    socket::{SOCKET_NETLINK, SOCKET_OTHER, SOCKET_PACKET, SOCKET_UNIX, SOCKET_VSOCK},
};

use super::resolve;
pub use crate::evidence::Control;
use crate::{
    enforce::{CALL, PRIVILEGES, Song},
    evidence::ControlState,
    kernel::Tier,
    policy::{Access, Effect, ExecTarget, Policy, ProgramClass},
};

/// The control on privileges, which in tier no-lsm the launcher lays down.
pub(super) const TAKEN_AWAY: &str = "privileges";
/// The control on sockets that were made outside their session.
const CROSSED: &str = "crossed-sockets";
/// Classes of sockets that no program on a cgroup is asked about.
const OTHER_FAMILIES: u32 = SOCKET_PACKET | SOCKET_NETLINK | SOCKET_VSOCK | SOCKET_UNIX | SOCKET_OTHER;
/// What the canary tries of it there that it cannot do without capabilities, or with its calls refused.
const TAKEN: [&str; 3] = ["ptrace", "bpf", "mount"];

/// What the canary's song says about every control; `without_lsm` is why LSM programs decide nothing here,
/// `without_hooks` names hooks on privileges that the kernel does not have.
#[must_use]
pub fn from_song(tier: Tier, without_lsm: &str, without_hooks: &[&str], song: &Song) -> Vec<Control> {
    let exec = execs(tier, without_lsm, song);
    let membership = match tier {
        Tier::Full => control("membership", ControlState::Enforced, "every task is labelled before it exists"),
        Tier::NoLsm => {
            let why = "a tracepoint that some kernels skip under load labels new tasks; it is attached twice, and `status` counts what is skipped";
            control("membership", ControlState::BestEffort, why)
        }
    };
    let script = match tier {
        Tier::Full => control("exec-script", exec.state, "script and interpreter are judged by the same hook as exec"),
        Tier::NoLsm => unavailable("exec-script", "tracepoints see the interpreter's file only; its rule decides"),
    };
    let mut all = vec![
        membership,
        exec,
        script,
        attempts("connect-deny", song, &[("connect4", "ipv4"), ("connect6", "ipv6")]),
        attempts("send-deny", song, &[("send4", "ipv4"), ("send6", "ipv6")]),
        packets(song),
        crossed(song),
        listening(tier, song),
        raw_sockets(song),
        other_sockets(song),
        unix_sockets(tier, song),
        attempts("budgets", song, &[("budget", "a connect over its budget")]),
        privileges(tier, without_hooks, song),
        clock(song),
    ];
    if tier == Tier::NoLsm {
        all.extend([seccomp(song), landlock(song)]);
    }
    all
}

/// Enforced where LSM programs refused the canary's exec. A tracepoint that kills it can be skipped by some kernels, as that
/// of `membership` can.
fn execs(tier: Tier, without_lsm: &str, song: &Song) -> Control {
    let name = "exec-deny";
    match tier {
        _ if !song.exec_stopped(tier) => {
            unavailable(name, &format!("the canary's exec came out as {}", song.of("exec")))
        }
        Tier::Full => control(name, ControlState::Enforced, "the canary's exec failed with EPERM"),
        Tier::NoLsm => {
            let why = format!(
                "the canary was killed before its first instruction, by a tracepoint that some kernels skip under load; \
                 it is attached twice, and `status` counts what is skipped; not by BPF LSM programs: {without_lsm}"
            );
            control(name, ControlState::BestEffort, &why)
        }
    }
}

/// Says of `crossed-sockets` what holds where the programs on cgroups see every socket that a member uses.
pub fn see_others(controls: &mut [Control], tier: Tier, song: &Song) {
    let Some(own) = controls.iter_mut().find(|own| own.control == CROSSED).filter(|_| song.denied("crossed")) else {
        return;
    };
    *own = match tier {
        Tier::Full => {
            let why = "the canary could not use a socket from before; attached to the root, so that what such a socket has \
                       queued is dropped";
            control(CROSSED, ControlState::Enforced, why)
        }
        Tier::NoLsm => {
            let why = "the canary could not send with a socket from before: attached to the root, each address that a \
                       member gives is judged by who gives it. One that was connected before gives none: it is known \
                       from `run` or `attach` on, or, where it was passed in, from the next look at what members hold, \
                       which comes every two seconds";
            control(CROSSED, ControlState::BestEffort, why)
        }
    };
}

/// Whether open flows are destroyed, and the other end told.
#[must_use]
pub fn flow_destroy(proven: &Result<(), String>) -> Control {
    match proven {
        Ok(()) => {
            let why = "a connection of the agent's own was destroyed, and both its ends were told";
            control("flow-destroy", ControlState::Enforced, why)
        }
        Err(problem) => {
            let why = format!("{problem}; flows of a session that is over are silenced, and end with their owner");
            unavailable("flow-destroy", &why)
        }
    }
}

fn control(name: &str, state: ControlState, why: &str) -> Control {
    Control { control: name.into(), state, why: Some(why.into()) }
}

pub(super) fn unavailable(name: &str, why: &str) -> Control {
    control(name, ControlState::Unavailable, why)
}

/// Enforced where a socket that was made before its user joined could not be used.
fn crossed(song: &Song) -> Control {
    if song.denied("crossed") {
        let why = "the canary could not use a socket from before; what such a socket has queued still leaves, and before \
                   Linux 6.5 what sendfile(2) sends by it: attached to the root both are dropped";
        return control(CROSSED, ControlState::Enforced, why);
    }
    let why = "a socket that was made outside its session is not judged by its user; `run` closes all but 0 to 2, \
               and of these what the policy says (`run: { sockets: … }`)";
    unavailable(CROSSED, why)
}

/// Enforced where binding a port out of scope was refused; where only cgroup programs see it, a listener without a port of
/// its own choice is not told so: who connects to it is dropped.
fn listening(tier: Tier, song: &Song) -> Control {
    let mut found = attempts("listen", song, &[("bind4", "ipv4"), ("bind6", "ipv6")]);
    if tier == Tier::NoLsm && found.state == ControlState::Enforced {
        let why = found.why.unwrap_or_default();
        found.why =
            Some(format!("{why}; a listener on a port that the kernel chose is not refused, but nobody reaches it"));
    }
    found
}

/// Of the Internet families.
fn raw_sockets(song: &Song) -> Control {
    let name = "raw-sockets";
    if song.denied("raw") {
        return control(name, ControlState::Enforced, "the canary was refused a raw socket");
    }
    unavailable(name, &format!("the canary's raw socket came out as {}", song.of("raw")))
}

/// Of every other family: only LSM programs see them.
fn other_sockets(song: &Song) -> Control {
    let name = "other-sockets";
    if song.denied("frames") {
        return control(name, ControlState::Enforced, "the canary was refused a packet socket");
    }
    let why = "without BPF LSM no program is asked when a socket of another family than the Internet's is made: packet, \
               netlink, vsock, unix and others";
    unavailable(name, why)
}

/// Where only cgroup programs are asked, they see names: an abstract one is the socket's own, a path is not.
fn unix_sockets(tier: Tier, song: &Song) -> Control {
    let name = "unix-sockets";
    match (song.denied("unix"), tier) {
        (true, Tier::Full) => {
            control(name, ControlState::Enforced, "the canary was refused a unix socket out of its scope")
        }
        (true, Tier::NoLsm) => {
            let why = "the canary was refused a unix socket out of its scope; only its name is seen here: a path is \
                       refused unless a rule allows just this one and nobody but root can change where it leads";
            control(name, ControlState::BestEffort, why)
        }
        _ => {
            let why = "without BPF LSM, no program is asked before Linux 6.7 when a unix socket is connected to";
            unavailable(name, why)
        }
    }
}

/// Enforced where the canary was refused in its session what it could do before. In tier no-lsm it laid down itself what the
/// launcher does, and there are ways that this does not close.
fn privileges(tier: Tier, without_hooks: &[&str], song: &Song) -> Control {
    let name = TAKEN_AWAY;
    let attempts = if tier == Tier::Full { &PRIVILEGES[..] } else { &TAKEN };
    if let Some(attempt) = attempts.iter().find(|attempt| !newly_denied(song, attempt)) {
        let (before, after) = (song.of(&format!("{attempt}-before")), song.of(attempt));
        let mut why =
            format!("the canary's attempt ({attempt}) came out as {after}, and before its session as {before}");
        if tier == Tier::NoLsm {
            why.push_str(&format!("; what `run` lays down: {}", song.of("shed")));
        }
        return unavailable(name, &why);
    }
    let tried = attempts.join(", ");
    if tier == Tier::NoLsm {
        let why = format!(
            "`run` takes capabilities, no_new_privs and calls away, with which the canary was refused: {tried}; not from \
             who is attached, and not root's own files (kernel-settings, raw-devices, the agent's, those of cgroups), nor \
             limits and priorities; signals only where control landlock is enforced; delegation only by the names of sockets, and what comes in a message is not looked at"
        );
        return control(name, ControlState::BestEffort, &why);
    }
    if without_hooks.is_empty() {
        return control(name, ControlState::Enforced, &format!("the canary was refused: {tried}"));
    }
    let why = format!("the canary was refused: {tried}; this kernel does not ask at {}", without_hooks.join(", "));
    control(name, ControlState::BestEffort, &why)
}

fn newly_denied(song: &Song, attempt: &str) -> bool {
    song.denied(attempt) && !song.denied(&format!("{attempt}-before"))
}

/// Enforced where a call that takes no capability was refused the canary once it had its filter.
fn seccomp(song: &Song) -> Control {
    if newly_denied(song, CALL) {
        let why =
            format!("`run` has the kernel refuse the calls of classes that are not allowed: the canary's {CALL} was");
        return control("seccomp", ControlState::Enforced, &why);
    }
    let why = format!("the canary's {CALL} came out as {}; what `run` lays down: {}", song.of(CALL), song.of("shed"));
    unavailable("seccomp", &why)
}

/// Enforced where the canary's signal did not reach the agent.
fn landlock(song: &Song) -> Control {
    if newly_denied(song, "signal") {
        let why = "`run` keeps signals and looks in, where neither is allowed out: the canary's signal was refused";
        return control("landlock", ControlState::Enforced, why);
    }
    let why = format!(
        "the canary's signal came out as {}: Landlock keeps signals in from Linux 6.12 on, where it is among the active \
         security modules",
        song.of("signal")
    );
    unavailable("landlock", &why)
}

/// Enforced where a member that only computes was killed after its session's end.
fn clock(song: &Song) -> Control {
    match song.of("spin") {
        "killed" => control("clock", ControlState::Enforced, "the canary was killed while it only computed"),
        other => unavailable("clock", &format!("the canary only computed after its end and {other}")),
    }
}

/// Enforced where a flow that carried something before its session ended carries nothing after.
fn packets(song: &Song) -> Control {
    if song.of("flow") != "0" {
        return unavailable(
            "packet-drop",
            &format!("the canary could open no flow to be silenced: {}", song.of("flow")),
        );
    }
    attempts("packet-drop", song, &[("packet", "an open flow of an ended session")])
}

/// Enforced where every attempt failed with `EPERM`. A host without IPv6 refuses those attempts before any program is
/// asked, which proves nothing and is said.
fn attempts(name: &str, song: &Song, tried: &[(&str, &str)]) -> Control {
    let absent = [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL, libc::ENETUNREACH].map(|e| e.to_string());
    let mut proven = Vec::new();
    let mut missing = Vec::new();
    for (attempt, what) in tried {
        if song.denied(attempt) {
            proven.push(*what);
        } else if absent.iter().any(|e| e == song.of(attempt)) && *what == "ipv6" {
            missing.push(*what);
        } else {
            return unavailable(name, &format!("the canary's attempt ({what}) came out as {}", song.of(attempt)));
        }
    }
    if proven.is_empty() {
        return unavailable(name, "nothing could be tried here");
    }
    let mut why = format!("the canary was refused: {}", proven.join(", "));
    if !missing.is_empty() {
        why.push_str("; this host has no ipv6 to try");
    }
    control(name, ControlState::Enforced, &why)
}

/// The controls that a policy cannot do without. `script` says whether a path is a script.
pub(super) fn asked(policy: &Policy, script: impl Fn(&std::path::Path) -> bool) -> Vec<&'static str> {
    let mut names = vec!["membership"];
    let denies_exec = policy.exec.iter().any(|r| r.effect == Effect::Deny);
    if policy.kind.exec_default() == Effect::Deny || denies_exec {
        names.push("exec-deny");
    }
    let names_script = |target: &ExecTarget| match target {
        ExecTarget::Path(path) => script(path),
        ExecTarget::Glob(pattern) => resolve::matching(pattern).iter().any(|path| script(path)),
        ExecTarget::Dir(_) | ExecTarget::Class(_) => false,
    };
    if policy.exec.iter().any(|r| names_script(&r.target)) {
        names.push("exec-script");
    }
    let denies_net = policy.net.iter().any(|r| r.effect == Effect::Deny);
    if policy.kind.net_default() == Effect::Deny || denies_net {
        names.extend(["connect-deny", "send-deny", "packet-drop", "flow-destroy"]);
    }
    let limits = |access: &Access| access.default == Some(Effect::Deny);
    if limits(&policy.listen) || limits(&policy.inbound) {
        names.push("listen");
    }
    if policy.unix.is_some() {
        names.push("unix-sockets");
    }
    if policy.sockets.is_some() {
        names.push("raw-sockets");
        if OTHER_FAMILIES & !policy.socket_classes() != 0 {
            names.push("other-sockets");
        }
    }
    if policy.privileges.is_some() {
        names.push("privileges");
    }
    if !policy.budgets.is_empty() {
        names.push("budgets");
    }
    names
}

/// A rule code's reason in words that help the one who was refused.
pub(super) fn remedy(policy: &Policy, code: u32, what: &str) -> String {
    match code {
        rule::REASON_DEFAULT => {
            let kind = policy.kind;
            format!("kind {kind} denies what no rule names: add `- {{ path: {what} }}` to spec.scope.exec.allow")
        }
        rule::REASON_UNRESOLVED => {
            format!(
                "more than {DEPTH} directories stand above it and a rule names a directory: move it, or leave out every such \
                 rule; or it is a script, whose first argument is not seen: leave out the subcommands of its rules"
            )
        }
        rule::REASON_CHANGED => {
            format!("{what} is not the file that was looked at when the session began: start another session")
        }
        rule::REASON_DIGEST => {
            "put the file's SHA-256 into its rule: sha256sum(1) prints it, or, for a rule with verity, \
                                fsverity measure"
                .into()
        }
        rule::REASON_IDENTITY => {
            format!(
                "put {what} on a file system that tells whether a file is still the same, such as ext4 or XFS; for a rule \
                 with verity, ext4, F2FS or btrfs that has fs-verity"
            )
        }
        _ => match ProgramClass::ALL.iter().find(|class| code == rule::REASON_CLASSES + class.code()) {
            Some(class) => {
                let (kind, class) = (policy.kind, class.word());
                format!("kind {kind} denies the class {class}: add `- {{ class: {class} }}` to spec.scope.exec.allow")
            }
            None => format!("change rule {} of the policy", policy.rule_name(code)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of each control that both families prove: its state, and why.
    fn of_families(tier: Tier, four: i32, six: i32) -> [(ControlState, String); 3] {
        let (four, six) = (four.to_string(), six.to_string());
        let four = ["connect4", "send4", "bind4"].map(|attempt| (attempt, four.as_str()));
        let six = ["connect6", "send6", "bind6"].map(|attempt| (attempt, six.as_str()));
        let all = from_song(tier, "", &[], &Song::with(&[four, six].concat()));
        ["connect-deny", "send-deny", "listen"].map(|name| {
            let found = all.iter().find(|control| control.control == name).expect(name);
            (found.state, found.why.clone().expect(name))
        })
    }

    /// The kernel refuses IPv6 for reasons of its own there: that proves nothing, and is said beside what IPv4 proved.
    #[test]
    fn a_host_without_ipv6_is_told_so() {
        use ControlState::{Enforced, Unavailable};
        let mut cases = vec![
            (libc::EPERM, libc::EPERM, Enforced, "the canary was refused: ipv4, ipv6"),
            (libc::EPERM, 0, Unavailable, "(ipv6) came out as 0"),
            (libc::EPERM, libc::ECONNREFUSED, Unavailable, "(ipv6) came out as 111"),
        ];
        for absent in [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL, libc::ENETUNREACH] {
            cases.push((libc::EPERM, absent, Enforced, "the canary was refused: ipv4; this host has no ipv6 to try"));
            // that of IPv4 is no reason
            cases.push((absent, libc::EPERM, Unavailable, "(ipv4) came out as"));
            cases.push((absent, absent, Unavailable, "(ipv4) came out as"));
        }
        for (tier, (four, six, state, part)) in cases.iter().flat_map(|case| [(Tier::Full, case), (Tier::NoLsm, case)])
        {
            for (found, why) in of_families(tier, *four, *six) {
                assert!(found == *state && why.contains(part), "{four}, {six}: {found:?}, {why}");
            }
        }
        let none = attempts("listen", &Song::with(&[("bind6", "99")]), &[("bind6", "ipv6")]);
        assert_eq!((none.state, none.why.as_deref()), (Unavailable, Some("nothing could be tried here")));
    }

    #[test]
    fn each_reason_has_its_remedy() {
        let text = include_bytes!("../../../docs/examples/agent.yaml");
        let policy = crate::policy::parse("agent.yaml", text).unwrap();
        let of = |code: u32| remedy(&policy, code, "/x");
        assert!(of(rule::REASON_CHANGED).contains("start another session"));
        assert!(of(rule::REASON_UNRESOLVED).contains("more than 48 directories"));
        assert!(of(rule::REASON_DIGEST).contains("sha256sum(1)"));
        assert!(of(rule::REASON_IDENTITY).contains("such as ext4"));
        for class in ProgramClass::ALL {
            let found = of(rule::REASON_CLASSES + class.code());
            assert!(found.contains(&format!("class: {}", class.word())), "{found}");
        }
        assert!(of(0).starts_with("change rule "));
    }
}
