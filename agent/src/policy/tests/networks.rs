//! The compiled tables of rules on addresses in the cases that matter most, each denial beside what stays allowed.

use std::net::IpAddr;

use tipstaff_common::{
    limits::PORT_RULES,
    socket::{SOCKET_DCCP, SOCKET_SCTP},
};

use super::{TCP, UDP, allowed, denied, policy};
use crate::policy::{
    CompileProblem, Effect, NetKey, Note, Policy, Resolved, compile, decide_inbound, decide_listen, decide_net,
    metadata,
};

/// Loopback and the unspecified addresses, which have entries where nobody logs in on this host.
const OF_THIS_HOST: usize = 4;

/// What both say of a destination: the verdict, and the name of what decided.
fn net(policy: &Policy, to: &str, port: u16, protocol: u8) -> (Effect, String) {
    on_host(policy, &Resolved::default(), to, port, protocol)
}

fn on_host(policy: &Policy, host: &Resolved, to: &str, port: u16, protocol: u8) -> (Effect, String) {
    let to: IpAddr = to.parse().expect(to);
    let plan = compile(policy, host).expect("a plan");
    let judged = plan.judge_net(to, port, protocol);
    assert_eq!(judged.verdict, decide_net(policy, host, to, port, protocol).verdict, "{to}");
    (judged.verdict, plan.rule_name(judged.rule).to_owned())
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
    assert_eq!(plan.net[&NetKey { prefix_len: 96, address }], []);
    let four = policy("ci", "{net: {allow: [{to: 0.0.0.0/0}]}}");
    assert_eq!(net(&four, "192.0.2.1", 1, TCP), allowed("net.allow[0]"));
    assert_eq!(net(&four, "::1", 1, TCP), denied("default"));
    let plan = compile(&four, &Resolved::default()).expect("a plan");
    assert_eq!(plan.net.len(), 1 + metadata::ADDRESSES.len() + OF_THIS_HOST);
    assert!(plan.net.contains_key(&NetKey { prefix_len: 96, address }));
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
    let counts: Vec<_> = plan.net.values().map(Vec::len).filter(|count| *count > 1).collect();
    assert_eq!(counts, [31, 32]);
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
fn the_largest_policy_compiles() {
    let rules: String = (0..16_384).map(|n| format!("{{to: {}.{}.{}.0/24}},", n % 256, n / 256, n % 7)).collect();
    let policy = policy("ci", &format!("{{net: {{allow: [{rules}]}}}}"));
    let plan = compile(&policy, &Resolved::default()).expect("a plan");
    assert_eq!((plan.rules.len(), plan.net.len()), (16_384, 16_384 + metadata::ADDRESSES.len() + OF_THIS_HOST));
    assert_eq!(net(&policy, "255.63.3.9", 1, TCP), allowed("net.allow[16383]"));
    assert_eq!(net(&policy, "255.63.4.9", 1, TCP), denied("default"));
}

#[test]
fn metadata_is_allowed_only_by_name() {
    let class = || metadata::ADDRESSES.iter().map(ToString::to_string);
    for kind in ["service", "ci", "agent", "operator", "breakglass"] {
        let wide = policy(kind, "{net: {allow: [{to: 0.0.0.0/0}, {to: '::/0'}, {to: 169.254.0.0/16}]}}");
        for address in class() {
            assert_eq!(net(&wide, &address, 80, TCP), denied("metadata"), "{kind} {address}");
        }
        assert_eq!(net(&wide, "::ffff:169.254.169.254", 80, TCP), denied("metadata"), "{kind}");
        assert_eq!(net(&wide, "169.254.169.253", 80, TCP).0, Effect::Allow, "{kind}");
        let named = policy(kind, "{net: {allow: [{to: metadata, ports: [80], proto: tcp, id: cloud}]}}");
        for address in class() {
            assert_eq!(net(&named, &address, 80, TCP), allowed("cloud"), "{kind} {address}");
            assert_eq!(net(&named, &address, 81, TCP), denied("metadata"), "{kind} {address}");
            assert_eq!(net(&named, &address, 80, UDP), denied("metadata"), "{kind} {address}");
        }
        let one = policy(kind, "{net: {allow: [{to: 169.254.169.254}], deny: [{to: 169.254.169.254, ports: [1]}]}}");
        assert_eq!(net(&one, "169.254.169.254", 80, TCP), allowed("net.allow[0]"), "{kind}");
        assert_eq!(net(&one, "169.254.169.254", 1, TCP), denied("net.deny[0]"), "{kind}");
        assert_eq!(net(&one, "fd00:ec2::254", 80, TCP), denied("metadata"), "{kind}");
    }
    let both = policy("operator", "{net: {allow: [{to: metadata}], deny: [{to: 169.254.0.0/16, id: no-link}]}}");
    assert_eq!(net(&both, "169.254.169.254", 80, TCP), denied("no-link"));
    assert_eq!(net(&both, "100.100.100.200", 80, TCP), allowed("net.allow[0]"));
}

#[test]
fn nobody_logs_in_on_this_host_without_the_class() {
    let own = ["10.0.0.3", "2001:db8::3"].map(|a| a.parse().expect("an address")).to_vec();
    let host = Resolved { own, ..Resolved::default() };
    let to = |policy: &Policy, to: &str, port: u16, protocol: u8| {
        let plan = compile(policy, &host).expect("a plan");
        let found = plan.judge_net(to.parse().expect(to), port, protocol);
        assert_eq!(found.verdict, decide_net(policy, &host, to.parse().expect(to), port, protocol).verdict);
        (found.verdict, plan.rule_name(found.rule).to_owned())
    };
    let net = "net: {allow: [{to: 0.0.0.0/0}, {to: '::/0'}, {to: 127.0.0.1, ports: [22], id: here}]";
    let closed = policy("ci", &format!("{{{net}}}}}"));
    let open = policy("ci", &format!("{{{net}}}, privileges: {{allow: [delegation]}}}}"));
    for address in ["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "10.0.0.3", "2001:db8::3"] {
        assert_eq!(to(&closed, address, 22, TCP), denied("delegation"), "{address}");
        assert_eq!(to(&closed, address, 23, TCP).0, Effect::Allow, "{address}");
        assert_eq!(to(&closed, address, 22, UDP).0, Effect::Allow, "{address}");
        assert_eq!(to(&open, address, 22, TCP).0, Effect::Allow, "{address}");
    }
    assert_eq!(to(&closed, "10.0.0.4", 22, TCP).0, Effect::Allow);
    // a rule that denies is named
    let both = policy("ci", "{net: {allow: [{to: 127.0.0.0/8}], deny: [{to: 127.0.0.0/8, ports: [22], id: no}]}}");
    assert_eq!(to(&both, "127.0.0.1", 22, TCP), denied("no"));
    let wide = policy("ci", "{net: {allow: [{to: 127.0.0.0/8}], deny: [{to: 0.0.0.0/0, ports: [22], id: no}]}}");
    assert_eq!(to(&wide, "127.0.0.1", 22, TCP), denied("no"));
    let notes = |policy: &Policy| compile(policy, &host).expect("a plan").notes;
    assert_eq!(notes(&closed).iter().filter(|note| note.to_string().contains("rule here does not allow")).count(), 1);
    assert!(notes(&open).iter().all(|note| !note.to_string().contains("does not allow")));
}

#[test]
fn the_resolver_is_the_hosts_at_port_53() {
    let resolvers = ["127.0.0.53", "169.254.169.254"].map(|a| a.parse().expect("an address")).to_vec();
    let host = Resolved { resolvers, ..Resolved::default() };
    let policy_of = |net: &str| policy("ci", &format!("{{net: {net}}}"));
    let open = policy_of("{resolver: allow}");
    for address in ["127.0.0.53", "169.254.169.254"] {
        for protocol in [TCP, UDP] {
            assert_eq!(on_host(&open, &host, address, 53, protocol), allowed("net.resolver"), "{address}");
            assert_eq!(on_host(&open, &host, address, 80, protocol).0, Effect::Deny, "{address}");
        }
        assert_eq!(on_host(&open, &host, address, 53, 132).0, Effect::Deny, "{address}");
    }
    assert_eq!(on_host(&open, &host, "127.0.0.1", 53, UDP), denied("default"));
    assert_eq!(on_host(&policy_of("{}"), &host, "127.0.0.53", 53, UDP), denied("default"));
    let shut = policy_of("{allow: [{to: 127.0.0.0/8}], resolver: deny}");
    assert_eq!(on_host(&shut, &host, "127.0.0.53", 53, UDP), denied("net.resolver"));
    assert_eq!(on_host(&shut, &host, "127.0.0.53", 80, UDP), allowed("net.allow[0]"));
}

#[test]
fn icmp_is_the_familys_own() {
    let policy =
        policy("ci", "{net: {allow: [{to: 10.0.0.0/8, proto: icmp}, {to: '2001:db8::/32', proto: [icmp, tcp]}]}}");
    assert_eq!(net(&policy, "10.0.0.1", 0, 1), allowed("net.allow[0]"));
    assert_eq!(net(&policy, "10.0.0.1", 0, 58), denied("default"));
    assert_eq!(net(&policy, "10.0.0.1", 0, TCP), denied("default"));
    assert_eq!(net(&policy, "2001:db8::1", 0, 58), allowed("net.allow[1]"));
    assert_eq!(net(&policy, "2001:db8::1", 1, TCP), allowed("net.allow[1]"));
    assert_eq!(net(&policy, "2001:db8::1", 0, 1), denied("default"));
}

#[test]
fn listen_and_inbound_have_defaults_words_and_rules() {
    let judged = |policy: &Policy, address: &str, port: u16| {
        let (address, host): (IpAddr, _) = (address.parse().expect(address), Resolved::default());
        let plan = compile(policy, &host).expect("a plan");
        let (listen, inbound) = (plan.judge_listen(address, port, TCP), plan.judge_inbound(address, port, TCP));
        assert_eq!(listen.verdict, decide_listen(policy, &host, address, port, TCP).verdict);
        assert_eq!(inbound.verdict, decide_inbound(policy, &host, address, port, TCP).verdict);
        [listen, inbound].map(|d| format!("{} {}", d.verdict, plan.rule_name(d.rule)))
    };
    for (kind, listen) in [("ci", "deny default"), ("service", "deny default"), ("operator", "allow default")] {
        assert_eq!(judged(&policy(kind, "{}"), "127.0.0.1", 80), [listen, "allow default"], "{kind}");
    }
    let words = policy("agent", "{net: {listen: allow, inbound: deny}}");
    assert_eq!(judged(&words, "::1", 80), ["allow default", "deny default"]);
    let nothing = policy("operator", "{net: {listen: [], inbound: []}}");
    assert_eq!(judged(&nothing, "::1", 80), ["deny default", "deny default"]);
    let rules = policy(
        "operator",
        "{net: {listen: [{ports: [80]}, {on: 127.0.0.1, id: lo}], inbound: [{from: 10.0.0.0/8, ports: [80], id: lan}]}}",
    );
    assert_eq!(judged(&rules, "0.0.0.0", 80), ["allow net.listen[0]", "deny default"]);
    assert_eq!(judged(&rules, "::", 80), ["allow net.listen[0]", "deny default"]);
    assert_eq!(judged(&rules, "::", 81), ["deny default", "deny default"]);
    assert_eq!(judged(&rules, "127.0.0.1", 81), ["allow lo", "deny default"]);
    assert_eq!(judged(&rules, "::ffff:10.0.0.1", 80), ["allow net.listen[0]", "allow lan"]);
    assert_eq!(judged(&rules, "10.0.0.1", 81), ["deny default", "deny default"]);
    // no class of addresses is more than its bits here
    assert_eq!(judged(&rules, "169.254.169.254", 80)[0], "allow net.listen[0]");
}

/// What rules say of it adds up, whatever their order; a denial of a part leaves the rest.
#[test]
fn one_network_in_several_rules() {
    for (net_of, there) in [("10.4.0.0/16", "10.4.0.1"), ("'2001:db8:4::/48'", "2001:db8:4::1")] {
        let rule = |rest: &str| format!("{{to: {net_of}, {rest}}}");
        let scope = format!(
            "{{net: {{allow: [{}, {}, {}, {}], deny: [{}]}}}}",
            rule("ports: [80], id: web"),
            rule("ports: [443], id: tls"),
            rule("ports: [80], id: again"),
            rule("ports: [53], proto: udp, id: names"),
            rule("ports: [443], proto: udp, id: quic"),
        );
        let policy = policy("ci", &scope);
        let notes: Vec<_> = compile(&policy, &Resolved::default()).expect("a plan").notes;
        let notes: Vec<_> = notes.iter().map(ToString::to_string).collect();
        assert_eq!(notes, ["rule again says what rule web says: keep one"]);
        for (port, protocol, said) in [
            (80, TCP, allowed("web")),
            (443, TCP, allowed("tls")),
            (443, UDP, denied("quic")),
            (53, UDP, allowed("names")),
            (53, TCP, denied("default")),
            (81, TCP, denied("default")),
        ] {
            assert_eq!(net(&policy, there, port, protocol), said, "{there} {port}");
        }
    }
}

/// A class of connections that no rule lets go anywhere, or be listened on, is not made; said to who wrote it.
#[test]
fn a_class_of_no_use_is_not_made() {
    let made = |kind: &str, scope: &str| {
        let plan = compile(&policy(kind, scope), &Resolved::default()).expect("a plan");
        let told = plan.notes.iter().filter(|note| matches!(note, Note::Useless { .. })).count();
        (plan.sockets & (SOCKET_SCTP | SOCKET_DCCP), told)
    };
    let classes = "sockets: {allow: [sctp, dccp]}";
    let with = |rules: &str| format!("{{{classes}, net: {{{rules}}}}}");
    assert_eq!(made("ci", &with("allow: [{to: 10.0.0.0/8, proto: [tcp, udp]}]")), (0, 2));
    assert_eq!(made("ci", &with("allow: [{to: 10.0.0.0/8, proto: sctp}]")), (SOCKET_SCTP, 1));
    assert_eq!(made("ci", &with("deny: [{to: 10.0.0.0/8, proto: sctp}]")), (0, 2));
    assert_eq!(made("ci", &with("allow: [{to: 10.0.0.0/8}]")), (SOCKET_SCTP | SOCKET_DCCP, 0));
    assert_eq!(made("ci", &with("listen: [{on: 10.0.0.0/8, proto: dccp}]")), (SOCKET_DCCP, 1));
    assert_eq!(made("ci", &with("listen: allow")), (SOCKET_SCTP | SOCKET_DCCP, 0));
    assert_eq!(made("operator", "{}"), (SOCKET_SCTP | SOCKET_DCCP, 0));
    assert_eq!(made("ci", "{}"), (0, 0), "nobody asked for them");
}
