//! The compiled tables in the cases that matter most, each denial beside what stays allowed.

use std::net::IpAddr;

use tipstaff_common::{
    limits::PORT_RULES,
    rule::{ALLOW, DENY, ExecKey, FileId, KIND_DIRECTORY, KIND_FILE, REASON_DEFAULT, REASON_UNRESOLVED},
    session::HAS_DIRECTORIES,
};

use super::policy;
use crate::policy::{CompileProblem, Effect, NetKey, Policy, Resolved, compile, decide_exec, decide_net};

const TCP: u8 = 6;
const UDP: u8 = 17;

fn id(inode: u64) -> FileId {
    FileId { inode, device: 1, generation: 0 }
}

/// What both say of a destination: the verdict, and the name of what decided.
fn net(policy: &Policy, to: &str, port: u16, protocol: u8) -> (Effect, String) {
    let to: IpAddr = to.parse().expect(to);
    let plan = compile(policy, &Resolved::default()).expect("a plan");
    let judged = plan.judge_net(to, port, protocol);
    assert_eq!(judged.verdict, decide_net(policy, to, port, protocol).verdict, "{to}");
    (judged.verdict, plan.rule_name(judged.rule).to_owned())
}

fn denied(by: &str) -> (Effect, String) {
    (Effect::Deny, by.to_owned())
}

fn allowed(by: &str) -> (Effect, String) {
    (Effect::Allow, by.to_owned())
}

#[test]
fn deny_beats_a_longer_allow() {
    let policy =
        policy("agent", "{net: {deny: [{to: 10.0.0.0/8, ports: [22]}], allow: [{to: 10.1.0.0/16, proto: tcp}]}}");
    assert_eq!(net(&policy, "10.1.0.1", 22, TCP), denied("net.deny[0]"));
    assert_eq!(net(&policy, "10.1.0.1", 23, TCP), allowed("net.allow[0]"));
    assert_eq!(net(&policy, "10.1.0.1", 23, UDP), denied("default"));
    assert_eq!(net(&policy, "::ffff:10.1.0.1", 22, TCP), denied("net.deny[0]"));
    assert_eq!(net(&policy, "::ffff:10.1.0.1", 23, TCP), allowed("net.allow[0]"));
    assert_eq!(net(&policy, "10.2.0.1", 23, TCP), denied("default"));
}

#[test]
fn ipv6_rules_never_hold_for_mapped_ipv4() {
    let all = policy("ci", "{net: {allow: [{to: '::/0'}]}}");
    assert_eq!(net(&all, "2001:db8::1", 1, TCP), allowed("net.allow[0]"));
    assert_eq!(net(&all, "192.0.2.1", 1, TCP), denied("default"));
    assert_eq!(net(&all, "::ffff:192.0.2.1", 1, TCP), denied("default"));
    let none = policy("operator", "{net: {deny: [{to: '::/0'}]}}");
    assert_eq!(net(&none, "2001:db8::1", 1, TCP), denied("net.deny[0]"));
    assert_eq!(net(&none, "::ffff:192.0.2.1", 1, TCP), allowed("default"));
    let plan = compile(&none, &Resolved::default()).expect("a plan");
    let mut address = [0; 16];
    address[10..12].copy_from_slice(&[0xff, 0xff]);
    assert_eq!(plan.net[&NetKey { prefix_len: 96, address }].count, 0);
    let four = policy("ci", "{net: {allow: [{to: 0.0.0.0/0}]}}");
    assert_eq!(net(&four, "192.0.2.1", 1, TCP), allowed("net.allow[0]"));
    assert_eq!(net(&four, "::1", 1, TCP), denied("default"));
    let plan = compile(&four, &Resolved::default()).expect("a plan");
    assert_eq!(plan.net.keys().collect::<Vec<_>>(), [&NetKey { prefix_len: 96, address }]);
}

#[test]
fn what_denies_loopback_denies_the_unspecified_address() {
    let policy =
        policy("ci", "{net: {allow: [{to: 0.0.0.0/0}, {to: '::/0'}], deny: [{to: 127.0.0.0/8, ports: [80], id: lo}]}}");
    for to in ["127.0.0.1", "0.0.0.0", "::", "::ffff:0.0.0.0"] {
        assert_eq!(net(&policy, to, 80, TCP), denied("lo"), "{to}");
        assert_eq!(net(&policy, to, 81, TCP).0, Effect::Allow, "{to}");
    }
    assert_eq!(net(&policy, "::1", 80, TCP).0, Effect::Allow);
    assert_eq!(net(&policy, "0.0.0.1", 80, TCP).0, Effect::Allow);
}

#[test]
fn too_many_port_rules_are_refused_by_prefix() {
    let list = |count: usize| (1..=count).map(|n| (n * 2).to_string()).collect::<Vec<_>>().join(",");
    let two = |wide: usize, narrow: usize| {
        let allow = format!(
            "[{{to: 10.0.0.0/8, ports: [{}]}}, {{to: 10.1.0.0/16, proto: tcp, ports: [{}]}}]",
            list(wide),
            list(narrow)
        );
        compile(
            &policy("ci", &format!("{{net: {{allow: {allow}, deny: [{{to: 10.1.0.0/16, ports: [9999]}}]}}}}")),
            &Resolved::default(),
        )
    };
    // ten of the narrow rule are hidden by nothing: they are looked at first, but the wide ones decide no differently
    let plan = two(PORT_RULES - 1, 10).expect("32 in all");
    assert_eq!(plan.net.values().map(|entry| entry.count).collect::<Vec<_>>(), [31, 32]);
    let problems = two(PORT_RULES, 10).expect_err("33 in all");
    let prefix = "10.1.0.0/16".parse().expect("a network");
    assert_eq!(problems, [CompileProblem::PortRules { prefix, count: 33, limit: 32 }]);
    assert!(problems[0].to_string().contains("33 or more port rules hold for 10.1.0.0/16, the limit is 32"));
}

#[test]
fn a_long_list_never_loses_a_denial() {
    let rules =
        |ports: &[String]| ports.iter().map(|p| format!("{{to: 10.0.0.0/8, ports: [{p}]}},")).collect::<String>();
    let narrow = |from: u32, count: u32| (0..count).map(|n| (from + 2 * n).to_string()).collect::<Vec<_>>();
    let compiled = |deny: &[String], allow: &[String]| {
        let policy = policy("ci", &format!("{{net: {{deny: [{}], allow: [{}]}}}}", rules(deny), rules(allow)));
        compile(&policy, &Resolved::default()).map(|_| policy)
    };
    let wide = ["1-1000".to_owned()];
    // the wide rule decides as the narrow ones do, which therefore need no room
    let all = compiled(&[&narrow(2, 200)[..], &wide, &narrow(2000, 20)].concat(), &[]).expect("21 rules are left");
    assert_eq!(net(&all, "10.0.0.1", 3, TCP), denied("net.deny[200]"));
    assert_eq!(net(&all, "10.0.0.1", 2038, TCP), denied("net.deny[220]"));
    assert_eq!(net(&all, "10.0.0.1", 2039, TCP), denied("default"));
    // where folding stops early, nothing is made of what it has
    assert!(compiled(&[&narrow(2, 250)[..], &wide, &narrow(2000, 20)].concat(), &[]).is_err());
    // a wide rule that allows makes no denial superfluous
    let both = compiled(&narrow(2, 20), &[&narrow(3, 20)[..], &wide].concat()).expect("21 rules are left");
    assert_eq!(net(&both, "10.0.0.1", 2, TCP), denied("net.deny[0]"));
    assert_eq!(net(&both, "10.0.0.1", 3, TCP), allowed("net.allow[20]"));
}

#[test]
fn the_largest_policy_compiles_soon() {
    let rules: String = (0..4096).map(|n| format!("{{to: {}.{}.{}.0/24}},", n % 256, n / 256, n % 7)).collect();
    let policy = policy("ci", &format!("{{net: {{allow: [{rules}]}}}}"));
    let plan = compile(&policy, &Resolved::default()).expect("a plan");
    assert_eq!(plan.rules.len(), 4096);
    assert_eq!(net(&policy, "255.15.0.9", 1, TCP), allowed("net.allow[4095]"));
}

#[test]
fn deny_beats_allow_for_programs() {
    let scope = concat!(
        "{exec: {allow: [{path: /a}, {dir: /bin}, {path: /gone}], ",
        "deny: [{path: /b, id: no-b}, {dir: /bin/sub, id: sub}]}}",
    );
    let policy = policy("ci", scope);
    let files =
        Resolved { files: vec![vec![id(1)], vec![id(20), id(21), id(30)], vec![], vec![id(1), id(2)], vec![id(30)]] };
    let plan = compile(&policy, &files).expect("a plan");
    let judge = |file: u64, above: &[u64]| {
        let above: Vec<_> = above.iter().copied().map(id).collect();
        let judged = plan.judge_exec(id(file), &above);
        assert_eq!(judged.verdict, decide_exec(&policy, &files, id(file), &above).verdict);
        (judged.verdict, plan.rule_name(judged.rule).to_owned())
    };
    assert_eq!(judge(1, &[20]), denied("no-b"));
    assert_eq!(judge(5, &[20, 10]), allowed("exec.allow[1]"));
    assert_eq!(judge(5, &[21]), allowed("exec.allow[1]"));
    assert_eq!(judge(5, &[30, 20, 10]), denied("sub"));
    assert_eq!(judge(5, &[20, 30]), denied("sub"));
    assert_eq!(judge(5, &[10]), denied("default"));
    assert_eq!(judge(20, &[10]), denied("default"));
    let notes: Vec<_> = plan.notes.iter().map(ToString::to_string).collect();
    let missing =
        "rule exec.allow[2] allows nothing: path /gone does not exist here; what is made later is not covered";
    assert_eq!(notes, ["rule exec.allow[0] has no effect: rule no-b denies the same file as /a", missing]);
    assert_eq!(plan.exec[&ExecKey { file: id(1), kind: KIND_FILE, pad: 0 }].verdict, DENY);
    assert_eq!(plan.exec[&ExecKey { file: id(21), kind: KIND_DIRECTORY, pad: 0 }].verdict, ALLOW);
    let entry = plan.entry(7);
    assert_eq!((entry.revision, entry.exec_default, entry.flags), (7, DENY, HAS_DIRECTORIES));
}

#[test]
fn a_program_below_too_many_directories_is_denied() {
    let files = |dir: u64| Resolved { files: vec![vec![id(dir)]] };
    let above: Vec<_> = (100..149).map(id).collect();
    let policy_of = |kind, rule| policy(kind, &format!("{{exec: {rule}}}"));
    let with = policy_of("operator", "{allow: [{dir: /d}]}");
    let plan = compile(&with, &files(7)).expect("a plan");
    assert_eq!(plan.judge_exec(id(1), &above).rule, REASON_UNRESOLVED);
    assert_eq!(decide_exec(&with, &files(7), id(1), &above).rule, REASON_UNRESOLVED);
    assert_eq!(plan.judge_exec(id(1), &above[..48]).rule, REASON_DEFAULT);
    let without = policy_of("operator", "{allow: [{path: /p}]}");
    let plan = compile(&without, &files(7)).expect("a plan");
    assert_eq!((plan.flags, plan.judge_exec(id(1), &above).rule), (0, REASON_DEFAULT));
    assert_eq!(decide_exec(&without, &files(7), id(1), &above).rule, REASON_DEFAULT);
}
