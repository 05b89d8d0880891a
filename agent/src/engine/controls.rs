//! The controls: what each is called, what the canary proved of it here, and which of them a policy asks for.

use tipstaff_common::rule;

pub use crate::evidence::Control;
use crate::{
    enforce::Song,
    evidence::ControlState,
    kernel::Tier,
    policy::{Access, Effect, ExecTarget, Policy},
};

/// What the canary's song says about every control.
#[must_use]
pub fn from_song(tier: Tier, song: &Song) -> Vec<Control> {
    let exec = if song.exec_stopped(tier) {
        let why = match tier {
            Tier::Full => "the canary's exec failed with EPERM",
            Tier::NoLsm => "the canary was killed before its first instruction: BPF LSM programs cannot be used here",
        };
        control("exec-deny", ControlState::Enforced, why)
    } else {
        control("exec-deny", ControlState::Unavailable, &format!("the canary's exec came out as {}", song.of("exec")))
    };
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
    vec![
        membership,
        exec,
        script,
        attempts("connect-deny", song, &[("connect4", "ipv4"), ("connect6", "ipv6")]),
        attempts("send-deny", song, &[("send4", "ipv4"), ("send6", "ipv6")]),
        packets(song),
        unavailable("crossed-sockets", "a socket made outside its session is not judged; `run` closes all but 0 to 2"),
        unavailable("listen", "this version has no rules for bind, listen and accept"),
        unavailable(
            "raw-sockets",
            "this version does not judge raw, packet, ping and other sockets when they are made",
        ),
        unavailable("unix-sockets", "this version has no rules for unix sockets"),
        unavailable("budgets", "this version counts no connects, destinations and bytes against budgets"),
        unavailable("privileges", "this version has no rules for capabilities, ptrace, mounts and the like"),
        clock(song),
    ]
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

fn unavailable(name: &str, why: &str) -> Control {
    control(name, ControlState::Unavailable, why)
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
    if policy.exec.iter().any(|r| matches!(&r.target, ExecTarget::Path(p) if script(p))) {
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
        rule::REASON_UNRESOLVED => "it lies too deep for its directories to be looked at: name it by path".into(),
        _ => format!("change rule {} of the policy", policy.rule_name(code)),
    }
}
