//! The compiled tables in the cases that matter most, each denial beside what stays allowed.

use std::net::IpAddr;

use tipstaff_common::{
    limits::PORT_RULES,
    place::{Place, Way},
    rule::{
        ALLOW, Content, DENY, ExecKey, FileId, KIND_DIRECTORY, KIND_FILE, REASON_DEFAULT, REASON_UNRESOLVED,
        UNIX_SPELLED,
    },
    session::{HAS_DIRECTORIES, HAS_UNIX_DENIALS, HAS_UNIX_DIRECTORIES},
    socket::{SOCKET_DCCP, SOCKET_SCTP},
};

use super::policy;
use crate::policy::{
    CompileProblem, Effect, NetKey, Note, Policy, Program, ProgramClass, Resolved, UnixFound, UnixSocket, compile,
    decide_exec, decide_inbound, decide_listen, decide_net, decide_unix, metadata,
};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Loopback and the unspecified addresses, which have entries where nobody logs in on this host.
const OF_THIS_HOST: usize = 4;

fn id(inode: u64) -> FileId {
    FileId { inode, device: 1, generation: 0 }
}

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
    let counts: Vec<_> = plan.net.values().map(|entry| entry.count).filter(|count| *count > 1).collect();
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

#[test]
fn what_is_removed_and_renumbered_keeps_its_names() {
    let scope = concat!(
        "{exec: {allow: [{path: /a, id: a}, {path: /b, id: b}]}, ",
        "net: {allow: [{to: 10.1.0.0/16, id: one}, {to: 10.2.0.0/16, id: two}], deny: [{to: 10.1.1.0/24, id: no}], ",
        "listen: [{ports: [80], id: web}]}, unix: {allow: [{name: '@n', id: n}]}}",
    );
    let policy = policy("ci", scope);
    let unix = vec![UnixFound::default()];
    let host = Resolved { files: vec![vec![id(1)], vec![id(2)]], unix, ..Resolved::default() };
    let plan = compile(&policy, &host).expect("a plan");
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    for (bad, there) in [("no", true), ("nobody", false)] {
        assert_eq!(policy.without(&host, &ids(&["one", bad])), Err((bad, there)));
    }
    let (less, less_host) = policy.without(&host, &ids(&["a", "one", "n"])).expect("allow rules");
    assert_ne!(less.digest, policy.digest);
    assert_eq!(less_host.files, [vec![id(2)]]);
    assert_eq!(less.rules().collect::<Vec<_>>(), ["b", "two", "no", "web"]);
    let after = compile(&less, &less_host).expect("a plan").renumbered(&plan.rules).expect("few rules");
    assert_eq!(after.rules, plan.rules);
    let tcp = |plan: &crate::policy::Plan, to: &str| {
        let judged = plan.judge_net(to.parse().expect(to), 80, TCP);
        (judged.verdict, plan.rule_name(judged.rule).to_owned())
    };
    for (to, before, now) in [
        ("10.1.0.1", allowed("one"), denied("default")),
        ("10.1.1.1", denied("no"), denied("no")),
        ("10.2.0.1", allowed("two"), allowed("two")),
        ("169.254.169.254", denied("metadata"), denied("metadata")),
    ] {
        assert_eq!((tcp(&plan, to), tcp(&after, to)), (before, now), "{to}");
    }
    assert_eq!(after.judge_exec(&Program::of(id(1), &[])).rule, REASON_DEFAULT);
    assert_eq!(after.rule_name(after.judge_exec(&Program::of(id(2), &[])).rule), "b");
    let more = plan.clone().renumbered(&ids(&["x", "two"])).expect("few rules");
    assert_eq!(more.rules, ids(&["x", "two", "a", "b", "one", "no", "web", "n"]));
    assert_eq!(tcp(&more, "10.2.0.1"), allowed("two"));
    assert_eq!(tcp(&more, "10.1.1.1"), denied("no"));
    assert!(plan.renumbered(&vec!["x".to_owned(); 70_000]).is_none());
}

#[test]
fn rules_that_do_nothing_are_noted() {
    let scope = concat!(
        "{net: {allow: [{to: 10.1.0.0/16, ports: [22]}, {to: 10.1.0.0/16, ports: [22]}, {to: 10.2.0.0/16}, ",
        "{to: 10.3.0.0/16, id: gone}], deny: [{to: 10.0.0.0/8, ports: ['1-100'], id: low}, {to: 10.3.0.0/16}]}, ",
        "unix: {allow: [/run/gone/socket, '@name']}}",
    );
    let host = Resolved { unix: vec![UnixFound::default(); 2], ..Resolved::default() };
    let plan = compile(&policy("ci", scope), &host).expect("a plan");
    let notes: Vec<_> = plan.notes.iter().map(ToString::to_string).collect();
    let expected = [
        "rule net.allow[1] says what rule net.allow[0] says: keep one",
        "rule net.allow[0] has no effect: rule low denies what it allows",
        "rule net.allow[1] has no effect: rule low denies what it allows",
        "rule gone has no effect: rule net.deny[1] denies what it allows",
        "rule unix.allow[0] allows nothing: path /run/gone/socket does not exist here now",
    ];
    assert_eq!(notes, expected);
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

#[test]
fn unix_sockets_are_places_files_directories_and_names() {
    let scope = concat!(
        "{unix: {allow: [/run/a, /run/all/, '@good', {path: /run/all/not, id: x}], ",
        "deny: [{path: /run/all/not, id: no}, {name: '@bad', id: no-name}]}}",
    );
    let policy = policy("ci", scope);
    let path = |file: u64, directory: u64, name: &str| UnixFound {
        files: vec![id(file)],
        place: Some((id(directory), name.as_bytes().to_vec())),
        trusted: file == 1,
    };
    let all = UnixFound { files: vec![id(30)], place: None, trusted: false };
    let not = path(3, 30, "not");
    let unix = vec![path(1, 20, "a"), all, UnixFound::default(), not.clone(), not, UnixFound::default()];
    let host = Resolved { unix, ..Resolved::default() };
    let plan = compile(&policy, &host).expect("a plan");
    let judge = |socket: &UnixSocket<'_>| {
        let judged = plan.judge_unix(socket);
        assert_eq!(judged.verdict, decide_unix(&policy, &host, socket).verdict, "{socket:?}");
        format!("{} {}", judged.verdict, plan.rule_name(judged.rule))
    };
    let run = [id(20), id(2)];
    let below = [id(31), id(30), id(20)];
    let in_all = [id(30), id(20)];
    let file = |file: u64, name: &'static [u8], ancestors| judge(&UnixSocket::File { file: id(file), name, ancestors });
    assert_eq!(file(1, b"a", &run), "allow unix.allow[0]");
    assert_eq!(file(9, b"a", &run), "allow unix.allow[0]", "made again at its place");
    assert_eq!(file(1, b"link", &in_all[1..]), "allow unix.allow[0]", "another name of the same file");
    assert_eq!(file(9, b"b", &run), "deny default");
    assert_eq!(file(9, b"b", &below), "allow unix.allow[1]");
    assert_eq!(file(9, b"not", &in_all), "deny no");
    assert_eq!(file(3, b"other", &in_all), "deny no");
    assert_eq!(judge(&UnixSocket::Abstract(b"good")), "allow unix.allow[2]");
    assert_eq!(judge(&UnixSocket::Abstract(b"bad")), "deny no-name");
    assert_eq!(judge(&UnixSocket::Abstract(b"goo")), "deny default");
    // for programs that see names alone: a path that is trusted, and one that is denied
    let spelled = plan.unix.iter().filter(|(key, _)| key.kind == UNIX_SPELLED);
    let spelled: Vec<_> = spelled.map(|(key, entry)| (&key.name[..key.length as usize], entry.verdict)).collect();
    assert_eq!(spelled, [(&b"/run/a"[..], ALLOW), (&b"/run/all/not"[..], DENY)]);
    assert_eq!(plan.flags, HAS_UNIX_DIRECTORIES | HAS_UNIX_DENIALS);
}

#[test]
fn deny_beats_allow_for_programs() {
    let scope = concat!(
        "{exec: {allow: [{path: /a}, {dir: /bin}, {path: /gone}], ",
        "deny: [{path: /b, id: no-b}, {dir: /bin/sub, id: sub}]}}",
    );
    let policy = policy("ci", scope);
    let files = vec![vec![id(1)], vec![id(20), id(21), id(30)], vec![], vec![id(1), id(2)], vec![id(30)]];
    let files = Resolved { files, ..Resolved::default() };
    let plan = compile(&policy, &files).expect("a plan");
    let judge = |file: u64, above: &[u64]| {
        let above: Vec<_> = above.iter().copied().map(id).collect();
        let program = Program::of(id(file), &above);
        let judged = plan.judge_exec(&program);
        assert_eq!(judged.verdict, decide_exec(&policy, &files, &program).verdict);
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
    let missing = "rule exec.allow[2] allows nothing: path /gone does not exist here now";
    assert_eq!(notes, ["rule exec.allow[0] has no effect: rule no-b denies the same file as /a", missing]);
    assert_eq!(plan.exec[&ExecKey { file: id(1), kind: KIND_FILE, pad: 0 }].verdict, DENY);
    assert_eq!(plan.exec[&ExecKey { file: id(21), kind: KIND_DIRECTORY, pad: 0 }].verdict, ALLOW);
    let entry = plan.entry(7);
    assert_eq!((entry.revision, entry.exec_default, entry.flags), (7, DENY, HAS_DIRECTORIES));
}

#[test]
fn a_program_below_too_many_directories_is_denied() {
    let files = |dir: u64| Resolved { files: vec![vec![id(dir)]], ..Resolved::default() };
    let above: Vec<_> = (100..149).map(id).collect();
    let policy_of = |kind, rule| policy(kind, &format!("{{exec: {rule}}}"));
    let with = policy_of("operator", "{allow: [{dir: /d}]}");
    let plan = compile(&with, &files(7)).expect("a plan");
    assert_eq!(plan.judge_exec(&Program::of(id(1), &above)).rule, REASON_UNRESOLVED);
    assert_eq!(decide_exec(&with, &files(7), &Program::of(id(1), &above)).rule, REASON_UNRESOLVED);
    assert_eq!(plan.judge_exec(&Program::of(id(1), &above[..48])).rule, REASON_DEFAULT);
    let without = policy_of("operator", "{allow: [{path: /p}]}");
    let plan = compile(&without, &files(7)).expect("a plan");
    assert_eq!((plan.flags, plan.judge_exec(&Program::of(id(1), &above)).rule), (0, REASON_DEFAULT));
    assert_eq!(decide_exec(&without, &files(7), &Program::of(id(1), &above)).rule, REASON_DEFAULT);
}

/// What stands where a rule denies is denied, whichever file it is; a rule that asks for more lets no unknown file in.
#[test]
fn what_stands_in_a_denied_place_is_denied() {
    let policy = policy(
        "operator",
        "{exec: {deny: [{path: /a/bad, id: bad}, {dir: /a/closed, id: closed}, {path: /a/git, subcommands: [push]}]}}",
    );
    let folder = Way::root(1).below(b"a");
    let place = |name: &str| folder.below(name.as_bytes()).place;
    let known = Content { size: 1, changed: 1 };
    let host = Resolved {
        files: vec![vec![], vec![], vec![id(3)]],
        places: ["bad", "closed", "git"].map(|name| vec![place(name)]).into(),
        contents: [(id(3), known)].into(),
        ..Resolved::default()
    };
    let plan = compile(&policy, &host).expect("a plan");
    let judge = |file: u64, places: &[Place]| {
        let above = [id(20), id(21)];
        let program = Program { places, content: Some(known), ..Program::of(id(file), &above[..places.len().min(2)]) };
        let judged = plan.judge_exec(&program);
        assert_eq!(decide_exec(&policy, &host, &program), judged, "{places:?}");
        (judged.verdict, plan.rule_name(judged.rule).to_owned())
    };
    assert_eq!(judge(9, &[place("bad"), folder.place]), denied("bad"));
    assert_eq!(judge(9, &[place("good"), folder.place]), allowed("default"));
    let below = folder.below(b"closed").below(b"bad").place;
    assert_eq!(judge(9, &[below, place("closed"), folder.place]), denied("closed"));
    assert_eq!(judge(9, &[below, place("open"), folder.place]), allowed("default"));
    assert_eq!(judge(9, &[place("git"), folder.place]), denied("changed"));
    assert_eq!(judge(3, &[place("git"), folder.place]), allowed("default"));
    let notes: Vec<_> = plan.notes.iter().map(ToString::to_string).collect();
    assert!(
        notes.contains(&"rule bad denies nothing yet: path /a/bad does not exist here now".to_owned()),
        "{notes:?}"
    );
    // a host that shows nothing takes no place from a rule
    let mut silent = Resolved { files: vec![Vec::new(); 3], ..Resolved::default() };
    silent.as_pinned(&policy, &plan);
    assert_eq!(silent.places, host.places);
}

/// What the host's programs are by their names is in the table where no rule is.
#[test]
fn a_policy_without_rules_has_numbers_too() {
    let file = id(1);
    let host = Resolved { classes: [(file, ProgramClass::Loader.bit())].into(), ..Resolved::default() };
    let plan = compile(&policy("ci", "{}"), &host)
        .expect("it compiles")
        .renumbered(&["gone".to_owned()])
        .expect("it has numbers");
    assert_eq!(plan.rules, ["gone"]);
    assert_eq!(plan.judge_exec(&Program::of(file, &[])).verdict, Effect::Deny);
}

/// A host that cannot be asked takes nothing from a session: its rules name what the tables hold.
#[test]
fn what_the_host_does_not_show_is_named_by_the_tables() {
    let policy = policy("ci", "{exec: {allow: [{path: /a}, {path: /b}], deny: [{path: /d}]}}");
    let count = u64::try_from(policy.exec.len()).expect("a few");
    let content = |inode: u64| (id(inode), Content { size: inode, ..Content::default() });
    let host = Resolved {
        files: (1..=count).map(|inode| vec![id(inode)]).collect(),
        contents: (1..=count).map(content).collect(),
        ..Resolved::default()
    };
    let plan = compile(&policy, &host).expect("a plan");
    let mut silent = Resolved { files: vec![Vec::new(); policy.exec.len()], ..Resolved::default() };
    silent.as_pinned(&policy, &plan);
    assert_eq!(silent.files, host.files);
    assert_eq!(compile(&policy, &silent).expect("a plan").exec, plan.exec);
    // one that shows something else gives the rules nothing new
    let mut other = Resolved { files: vec![vec![id(9)]; policy.exec.len()], ..Resolved::default() };
    other.contents.extend([content(9)]);
    other.as_pinned(&policy, &plan);
    for (rule, (files, own)) in policy.exec.iter().zip(other.files.iter().zip(&host.files)) {
        assert!(own.iter().all(|file| files.contains(file)), "{}: {files:?}", rule.id);
        assert!(rule.effect == Effect::Deny || !files.contains(&id(9)), "{}: {files:?}", rule.id);
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
