//! Attempts on the agent, and on what holds its sessions.

use super::{
    attempt::{Attempt, Silent},
    known::{CGROUPS, MEMORY, ROOTS_FILES, ROOTS_SIGNALS, STANDING},
};

pub(super) const ATTEMPTS: &[Attempt] = &[
    Attempt::govern("ask", "to ask the agent for its state", "act ask {read} dev.tipstaff.Status")
        .silent(Silent::Everywhere),
    Attempt::govern("order", "to tell the agent to end a session", "act ask {operate} dev.tipstaff.End")
        .silent(Silent::Everywhere),
    Attempt::govern("signal", "a signal to the agent", "privilege signal {agent}").open(&[ROOTS_SIGNALS]),
    Attempt::govern("memory", "the agent's memory", "act memory {agent}"),
    Attempt::govern("trace", "the agent's memory, by a look (process_vm_readv)", "privilege ptrace {agent}")
        .done("errno 14"),
    Attempt::govern("take-descriptor", "a descriptor of the agent's", "act take-descriptor {agent}"),
    Attempt::govern("limit", "a limit of the agent's, past which the kernel kills it", "act limit {agent} same")
        .open(&[STANDING]),
    Attempt::govern("schedule", "how the agent is scheduled", "act schedule {agent} same").open(&[STANDING]),
    Attempt::govern(
        "memory-first",
        "that the agent is killed where memory runs out",
        "act write /proc/{agent}/oom_score_adj same",
    )
    .open(&[MEMORY]),
    Attempt::govern("kill-cgroup", "to kill by the agent's cgroup", "act write {agents-cell}/cgroup.kill")
        .open(&[CGROUPS]),
    Attempt::govern("evidence", "the evidence", "act open-for-writing {evidence}").open(&[ROOTS_FILES]),
    Attempt::govern("configuration", "the configuration", "act open-for-writing {configuration}").open(&[ROOTS_FILES]),
    Attempt::govern("make", "a file in the agent's folder", "act make-beside {evidence}").open(&[ROOTS_FILES]),
    Attempt::govern("flags", "that a file of the agent's cannot be changed (chattr)", "act flags {configuration}")
        .may_lack()
        .open(&[ROOTS_FILES]),
    Attempt::govern("pin", "a pinned map, by bpf(2)", "act pin {pin}"),
    Attempt::govern("pin-file", "the right to a pinned map's file", "own-file chmod {pin}").open(&[ROOTS_FILES]),
];
