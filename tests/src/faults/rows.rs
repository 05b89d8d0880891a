//! The rows, by what they attack.

use super::{By, Fault, crowd, folders, soak, stages};

/// Every row, in the order of the table.
pub(super) const ALL: &[&[Fault]] = &[TESTS, crowd::ROWS, folders::ROWS, stages::ROWS, soak::ROWS];

const fn test(
    promise: &'static str,
    name: &'static str,
    what: &'static str,
    holds: &'static str,
    test: &'static str,
) -> Fault {
    Fault { promise, name, what, holds, by: By::Test(test) }
}

/// Faults that tests bring about in every boot.
#[rustfmt::skip]
const TESTS: &[Fault] = &[
    test("refused", "label-gone", "a member's label is taken away, then what stands in for it too", "it is a member still", "faults::label-not-found"),
    test("refused", "mirror-full", "the map of tasks has no room (65,536 entries)", "a child without a place does not live", "faults::mirror-without-room"),
    test("refused", "birth-skipped", "the kernel skips one, then both programs that see births", "the child is judged", "faults::birth-not-seen"),
    test("refused", "exec-skipped", "the kernel skips both programs that see execs", "what is out of scope reaches nobody", "faults::exec-not-seen"),
    test("refused", "exec-storm", "a thousand execs, one after the other", "each is decided, and recorded or counted", "evidence::thousand-execs"),
    test("refused", "rules-flip", "ten thousand rules are narrowed while a member connects", "no moment is wider than the earlier scope", "narrow::ten-thousand-rules-flip-under-load"),
    test("time", "agent-stopped", "SIGSTOP before a deadline", "nothing starts or is sent after it", "deadline::holds-with-the-agent-stopped"),
    test("time", "agent-dead", "SIGKILL before a deadline", "nothing starts or is sent after it", "deadline::holds-with-the-agent-killed"),
    test("time", "agent-replaced", "agents follow each other around a deadline", "nothing starts or is sent after it", "deadline::holds-while-an-agent-replaces-another"),
    test("time", "deadline-unseen", "the deadline passes while no agent runs", "what computes dies; the next agent ends the rest", "restart::deadline-of-an-earlier-agent"),
    test("time", "clock-set", "the wall clock is set forwards and backwards", "windows and credentials follow it, deadlines do not", "limits::stepped-clock-moves-windows-and-credentials"),
    test("time", "suspend", "the machine sleeps past a deadline", "time asleep counts", "suspend::time-asleep-counts"),
    test("time", "processor-off", "a processor goes off and comes back", "its clock kills what computes past the deadline", "end::clock-comes-back-with-its-processor"),
    test("end", "fork-bomb", "members fork as fast as they can while their session ends", "none is left", "end::fork-bomb"),
    test("end", "undying", "a member sleeps uninterruptibly as its session ends", "it is named, and everything is refused", "end::uninterruptible-sleep-is-reported"),
    test("end", "agent-dead-in-it", "SIGKILL between the record of an end and the deed", "the next agent does it, once", "faults::killed-at-the-end"),
    test("end", "pins-gone", "every pin is removed while no agent runs", "the next agent ends what nobody held, and says so", "faults::pins-are-gone"),
    test("restart", "killed-and-stopped", "SIGKILL, then SIGTERM", "what was refused is refused, the session goes on", "restart::sessions-go-on"),
    test("restart", "killed-twice", "SIGKILL of an agent that is taking over", "the same", "faults::killed-twice"),
    test("restart", "killed-in-a-start", "SIGKILL while a session starts", "the session is whole, or its command never ran", "faults::killed-while-a-session-starts"),
    test("restart", "kill-loop", "SIGKILL at any moment, for a minute, while a member tries all the time", "nothing out of scope gets through, nothing in scope is refused", "restart::kill-loop-is-no-hole"),
    test("restart", "revoke-cut-short", "SIGKILL while sessions are revoked", "the next agent goes on with it", "control::revoked-though-the-agent-dies"),
    test("restart", "narrowing-cut-short", "SIGKILL while a scope is narrowed", "the scope before, or the narrower one", "adopt::narrowing-is-whole-or-not-at-all"),
    test("restart", "every-state", "SIGKILL with sessions frozen, in their grace, warned, told to end", "each stands as it was said to", "adopt::every-state-goes-on"),
    test("restart", "flows", "SIGKILL while flows are open", "the next agent destroys them at the end", "flows::agent-killed-and-back"),
    test("restart", "not-loaded", "an agent that may not load programs follows", "it does not start, the earlier programs decide", "faults::programs-cannot-be-loaded"),
    test("restart", "other-version", "pins of another version; one pin gone", "the agent does not start and changes nothing", "restart::pins-of-another-version-are-refused"),
    test("restart", "older-agent", "an agent that is older than the store; another cgroup", "it does not start and changes nothing", "adopt::newer-store-and-other-cgroup-are-refused"),
    test("restart", "two-agents", "a second agent on one store", "it does not start", "restart::two-agents-on-one-store"),
    test("restart", "reboot", "the host was rebooted", "sessions end, stays hold on", "adopt::reboot-ends-sessions-and-keeps-stays"),
    test("restart", "store-spoiled", "the store is spoiled, older, gone", "nothing becomes wider; what nobody can answer for ends", "restart::spoiled-store"),
    test("recorded", "ring-full", "20,000 refusals with the agent there, stopped, dead", "produced is written and counted as lost, exactly", "losses::flood-adds-up"),
    test("recorded", "disk-full", "no room for evidence", "the session is held; what is missing is counted", "losses::full-disk"),
    test("recorded", "store-disk-full", "no room for what the next agent must know", "nothing new starts, what runs is held", "losses::full-store"),
    test("recorded", "narrow-on-full-disk", "a narrowing finds no room", "it fails, and nothing becomes wider", "adopt::full-disk-never-widens"),
    test("recorded", "tampering", "records changed, removed, swapped, cut", "verify says where", "evidence::tampering-is-found"),
    test("recorded", "tracepoints-skipped", "the kernel skips tracepoint programs", "it is counted, and shown", "faults::what-is-skipped-is-counted"),
    test("shown", "lsm-refused", "LSM programs are refused, or attach and never run", "a canary tells: tier no-lsm", "cli::refused-lsm-is-tier-no-lsm"),
    test("shown", "modules-unlisted", "the list of security modules cannot be read", "the canary tells", "badinput::no-list-of-security-modules"),
    test("shown", "needs-not-there", "no root, no BTF, no cgroup2", "it does not start, and names what is missing", "badinput::what-an-agent-needs-is-not-there"),
    test("shown", "memory-locked", "RLIMIT_MEMLOCK cannot be raised", "it starts", "badinput::locked-memory-cannot-be-raised"),
    test("shown", "nothing-to-watch-with", "no inotify instance is left", "it starts, says so, and judges as ever", "programs::nothing-left-to-watch-with"),
    test("input", "second-agent", "an agent beside one that holds the places", "it does not start, and changes nothing", "badinput::refused-agents-change-nothing"),
    test("input", "nonsense", "bytes that are no request", "they are refused, the agent goes on", "badinput::nonsense-on-the-socket"),
];
