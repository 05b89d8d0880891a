//! The compiled tables against the reference decision, on random policies and operations.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    rc::Rc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use tipstaff_common::{
    limits::DEPTH,
    place::Place,
    rule::{Content, FileId},
};

use crate::policy::{
    Access, Addresses, Budgets, Decision, Effect, ExecRule, ExecTarget, FileDigest, Hashed, Kind, Mode, NetRule, Plan,
    Policy, PortRange, Program, ProgramClass, Protocol, Resolved, UnixFound, UnixRule, UnixSocket, UnixTarget, Wider,
    compile, decide_exec, decide_inbound, decide_listen, decide_net, decide_unix, metadata, narrow::wider_addresses,
    net::join_ranges,
};

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select([Kind::Service, Kind::Ci, Kind::Agent, Kind::Operator, Kind::Breakglass].as_slice())
}

fn effect() -> impl Strategy<Value = Effect> {
    prop::sample::select([Effect::Allow, Effect::Deny].as_slice())
}

fn policy(kind: Kind) -> Policy {
    Policy {
        name: "test".to_owned(),
        kind,
        mode: Mode::Enforce,
        strict: false,
        ttl: std::time::Duration::from_secs(1),
        limits: crate::policy::Limits::default(),
        exec: Vec::new(),
        net: Vec::new(),
        listen: Access::default(),
        inbound: Access::default(),
        unix: None,
        sockets: None,
        privileges: None,
        phases: std::collections::BTreeMap::new(),
        budgets: Budgets::default(),
        attach: crate::policy::Inherited::default(),
        run: crate::policy::Descriptors::default(),
        nested: false,
        review_by: None,
        digest: String::new(),
    }
}

/// The effects of a policy's rules, in the order of their numbers.
fn effects(policy: &Policy) -> Vec<Effect> {
    let net = policy.net.iter().chain(&policy.listen.rules).chain(&policy.inbound.rules).map(|r| r.effect);
    policy.exec.iter().map(|r| r.effect).chain(net).chain(policy.unix_rules().iter().map(|r| r.effect)).collect()
}

/// Few files, so that rules and operations meet.
fn file() -> impl Strategy<Value = FileId> {
    (1u64..12, 0u32..2).prop_map(|(inode, device)| FileId { inode, device, generation: 0 })
}

fn class() -> impl Strategy<Value = ProgramClass> {
    prop::sample::select(ProgramClass::ALL.as_slice())
}

/// Few words, so that rules and programs meet.
const WORDS: [&str; 3] = ["status", "push", "sixteen-bytes-ok"];

fn exec_rule() -> impl Strategy<Value = (ExecRule, Vec<FileId>)> {
    let words = prop::sample::subsequence(WORDS.as_slice(), 0..=2);
    let digest = prop::option::weighted(0.2, (0u8..2).prop_map(|byte| FileDigest::Bytes([byte; 32])));
    let files = prop::collection::vec(file(), 0..4);
    (effect(), 0..8, files, words, digest, class()).prop_map(|(effect, which, files, words, digest, class)| {
        let of_files = which > 2;
        let target = match which {
            0 => ExecTarget::Class(class),
            1 | 2 => ExecTarget::Dir("/d".into()),
            3 => ExecTarget::Glob("/p*".into()),
            _ => ExecTarget::Path("/p".into()),
        };
        let words = words.iter().filter(|_| of_files).map(|word| (*word).to_owned()).collect();
        let digest = digest.filter(|_| of_files && effect == Effect::Allow);
        (
            ExecRule { id: String::new(), effect, target, digest, subcommands: words },
            if which == 0 { vec![] } else { files },
        )
    })
}

/// Few places, so that rules and programs meet.
fn place() -> impl Strategy<Value = Place> {
    (0u64..12).prop_map(|names| Place { names, device: 0, pad: 0 })
}

/// What a program's file was, or is.
fn content() -> impl Strategy<Value = Content> {
    (0u64..2).prop_map(|changed| Content { size: 1, changed })
}

/// What is known of some of the files that rules name.
fn known() -> impl Strategy<Value = Resolved> {
    let hashed = prop_oneof![
        6 => (0u8..2).prop_map(|byte| Hashed::As(FileDigest::Bytes([byte; 32]))),
        1 => Just(Hashed::Not("cannot be read".to_owned())),
        1 => Just(Hashed::Unknown("is on another file system".to_owned())),
    ];
    let contents = prop::collection::btree_map(file(), content(), 0..20);
    let classes = prop::collection::btree_map(file(), (0..2u32).prop_map(|class| 1 << class), 0..3);
    let stood = prop::collection::btree_map(file(), 0u64..4, 0..20);
    (contents, classes, prop::collection::btree_map(file(), hashed, 0..20), stood).prop_map(
        |(contents, classes, digests, stood)| Resolved { contents, classes, digests, stood, ..Resolved::default() },
    )
}

/// A program as the hooks see it, but for its file and the directories above it.
fn sight() -> impl Strategy<Value = Program<'static>> {
    let word = prop::option::of(prop::option::of(prop::sample::select(
        [WORDS[0], WORDS[1], WORDS[2], "sixteen-bytes-and-more", ""].as_slice(),
    )));
    let classes = prop_oneof![4 => Just(0), 3 => class().prop_map(ProgramClass::bit), 1 => 0u32..64];
    let rare = || prop::bool::weighted(0.1);
    (prop::option::of(content()), rare(), classes, rare(), word).prop_map(
        |(content, writers, classes, script, word)| {
            let word = word.map(|word| word.map(str::as_bytes));
            Program { content, writers, classes, script, word, ..Program::of(FileId::default(), &[]) }
        },
    )
}

/// The directories above a program: few, or about as many as are looked at. Files beyond those of rules fill them.
fn ancestors() -> impl Strategy<Value = Vec<FileId>> {
    let depth = usize::try_from(DEPTH).expect("small");
    let filler = prop_oneof![1 => file(), 9 => Just(FileId { inode: 99, device: 0, generation: 0 })];
    prop_oneof![prop::collection::vec(file(), 0..4), prop::collection::vec(filler, depth - 2..depth + 3)]
}

/// Addresses near each other and near the corners where families meet.
fn address() -> impl Strategy<Value = IpAddr> {
    let v4 = |bits: u32| IpAddr::V4(Ipv4Addr::from_bits(bits));
    let v6 = |bits: u128| IpAddr::V6(Ipv6Addr::from_bits(bits));
    prop_oneof![
        any::<u32>().prop_map(v4),
        (0u32..8).prop_map(move |low| v4(0x0a00_0000 | low)),
        prop::sample::select([0, 0x7f00_0001, 0x7f00_0002, 0x0a00_0000, u32::MAX].as_slice()).prop_map(v4),
        any::<u128>().prop_map(v6),
        (0u128..4).prop_map(v6),
        (0u128..8).prop_map(move |low| v6((0x2001_0db8 << 96) | low)),
        (0u32..8).prop_map(|low| IpAddr::V6(Ipv4Addr::from_bits(0x0a00_0000 | low).to_ipv6_mapped())),
        prop::sample::select([0xffff << 32, 0xffff_7f00_0001, 0xfffe << 32, 0x1_0000 << 32].as_slice()).prop_map(v6),
        prop::sample::select(metadata::ADDRESSES.as_slice()),
        // beside a metadata address
        prop::sample::select([0xa9fe_a9fd, 0xa9fe_a9ff].as_slice()).prop_map(v4),
    ]
}

/// Few, and that of logins.
fn port() -> impl Strategy<Value = u16> {
    prop_oneof![9 => 0u16..16, 1 => Just(22u16)]
}

/// The host's resolvers: one on loopback, one that is a metadata address too; and two addresses of its own.
fn host() -> Resolved {
    let resolvers = vec!["127.0.0.53".parse().expect("an address"), metadata::ADDRESSES[0]];
    let own = ["10.0.0.3", "2001:db8::3"].map(|address| address.parse().expect("an address")).to_vec();
    Resolved { resolvers, own, ..Resolved::default() }
}

fn addresses() -> impl Strategy<Value = Addresses> {
    prop_oneof![
        8 => network().prop_map(Addresses::Net),
        1 => Just(Addresses::Every),
        1 => Just(Addresses::Metadata),
        1 => Just(Addresses::Resolvers),
    ]
}

/// A network around such an address, in the form that a checked policy has.
fn network() -> impl Strategy<Value = IpNet> {
    let length = prop_oneof![Just(0u8), Just(128), 90u8..=97, 26u8..=32, 0u8..=128];
    (address(), length).prop_map(|(address, length)| match address.to_canonical() {
        IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new(v4, length.min(32)).expect("short").trunc()),
        IpAddr::V6(v6) => {
            let net = Ipv6Net::new(v6, length).expect("short").trunc();
            match net.addr().to_ipv4_mapped() {
                Some(v4) if length >= 96 => IpNet::V4(Ipv4Net::new(v4, length - 96).expect("short").trunc()),
                _ => IpNet::V6(net),
            }
        }
    })
}

fn net_rule() -> impl Strategy<Value = Rc<NetRule>> {
    let ports =
        prop::collection::vec((1u16..12, 0u16..4).prop_map(|(low, more)| PortRange { low, high: low + more }), 0..4);
    let protocols = prop::sample::subsequence([Protocol::Tcp, Protocol::Udp, Protocol::Icmp].as_slice(), 0..=2);
    (effect(), addresses(), ports, protocols).prop_map(|(effect, to, ports, protocols)| {
        Rc::new(NetRule { id: String::new(), effect, to, ports: join_ranges(ports), protocols })
    })
}

/// What `net.listen` and `net.inbound` say.
fn access() -> impl Strategy<Value = Access> {
    let allowed = net_rule().prop_map(|rule| Rc::new(NetRule { effect: Effect::Allow, ..NetRule::clone(&rule) }));
    (prop::option::of(effect()), prop::collection::vec(allowed, 0..6))
        .prop_map(|(default, rules)| Access { default, rules })
}

fn protocol() -> impl Strategy<Value = u8> {
    prop::sample::select([6u8, 17, 132, 1, 58].as_slice())
}

const NAMES: [&[u8]; 3] = [b"a", b"b", b"a/b"];

fn unix_rule() -> impl Strategy<Value = (UnixRule, UnixFound)> {
    let place = prop::option::of((file(), prop::sample::select(NAMES.as_slice())));
    (effect(), 0..3, prop::collection::vec(file(), 0..3), place).prop_map(|(effect, which, files, place)| {
        let target = match which {
            0 => UnixTarget::Path("/s".into()),
            1 => UnixTarget::Dir("/d".into()),
            _ => UnixTarget::Abstract(if files.len() > 1 { "a".to_owned() } else { "b".to_owned() }),
        };
        let place = place.map(|(directory, name)| (directory, name.to_vec()));
        (UnixRule { id: String::new(), effect, target }, UnixFound { files, place, trusted: false })
    })
}

/// Both say the same, and each names a rule that does what it says.
fn agree(effects: &[Effect], reference: Decision, judged: Decision) -> Result<(), TestCaseError> {
    prop_assert_eq!(reference.verdict, judged.verdict, "{:?} {:?}", reference, judged);
    let reason = |d: Decision| (d.rule >= tipstaff_common::rule::REASONS).then_some(d.rule);
    prop_assert_eq!(reason(reference), reason(judged));
    for decision in [reference, judged] {
        if reason(decision).is_none() {
            let index = usize::try_from(decision.rule).expect("an index");
            prop_assert_eq!(effects[index], decision.verdict);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn on_programs(
        kind in kind(),
        rules in prop::collection::vec(exec_rule(), 0..8),
        known in known(),
        places in prop::collection::vec(prop::collection::vec(place(), 0..2), 8),
        operations in prop::collection::vec((file(), ancestors(), sight()), 1..20),
        stand in prop::collection::vec(prop::collection::vec(place(), usize::try_from(DEPTH).expect("small") + 4), 20),
    ) {
        let (exec, files): (Vec<ExecRule>, _) = rules.into_iter().unzip();
        let places = exec.iter().zip(places).map(|(rule, places)| if rule.is_of_places() { places } else { vec![] });
        let places = places.collect();
        let policy = Policy { exec, ..policy(kind) };
        let host = Resolved { files, places, ..known };
        let plan = compile(&policy, &host).expect("no net rules");
        let effects = effects(&policy);
        for ((file, ancestors, sight), stand) in operations.into_iter().zip(stand) {
            let places = &stand[..=ancestors.len()];
            let program = Program { file, ancestors: &ancestors, places, ..sight };
            agree(&effects, decide_exec(&policy, &host, &program), plan.judge_exec(&program))?;
        }
    }

    #[test]
    fn on_destinations(
        kind in kind(),
        net in prop::collection::vec(net_rule(), 0..10),
        operations in prop::collection::vec((address(), port(), protocol()), 1..40),
        near in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), port()), 0..20),
    ) {
        let policy = Policy { net, ..policy(kind) };
        let host = host();
        let Ok(plan) = compile(&policy, &host) else { return Ok(()) };
        let effects = effects(&policy);
        // the ends of the rules' own networks
        let nets: Vec<_> = policy.net.iter().flat_map(|rule| rule.to.nets(&host)).collect();
        let ends = near.into_iter().filter(|_| !nets.is_empty()).map(|(index, last, port)| {
            let net = nets[index.index(nets.len())];
            (if last { net.broadcast() } else { net.network() }, port, 6)
        });
        for (to, port, protocol) in operations.into_iter().chain(ends) {
            let reference = decide_net(&policy, &host, to, port, protocol);
            agree(&effects, reference, plan.judge_net(to, port, protocol))?;
        }
    }

    #[test]
    fn on_local_addresses_and_peers(
        kind in kind(),
        listen in access(),
        inbound in access(),
        operations in prop::collection::vec((address(), 0u16..16, protocol()), 1..60),
    ) {
        let policy = Policy { listen, inbound, ..policy(kind) };
        let host = host();
        let Ok(plan) = compile(&policy, &host) else { return Ok(()) };
        let effects = effects(&policy);
        for (address, port, protocol) in operations {
            let reference = decide_listen(&policy, &host, address, port, protocol);
            agree(&effects, reference, plan.judge_listen(address, port, protocol))?;
            let reference = decide_inbound(&policy, &host, address, port, protocol);
            agree(&effects, reference, plan.judge_inbound(address, port, protocol))?;
        }
    }

    /// What the comparison finds is allowed by one and not by the other; where it finds nothing, there is nothing.
    #[test]
    fn on_what_is_wider(
        kinds in (kind(), kind()),
        net in (prop::collection::vec(net_rule(), 0..6), prop::collection::vec(net_rule(), 0..6)),
        listen in (access(), access()),
        operations in prop::collection::vec((address(), 0u16..16, protocol()), 1..60),
    ) {
        let host = host();
        let old = Policy { net: net.0, listen: listen.0, ..policy(kinds.0) };
        let new = Policy { net: net.1, listen: listen.1, ..policy(kinds.1) };
        let (Ok(old), Ok(new)) = (compile(&old, &host), compile(&new, &host)) else { return Ok(()) };
        for (one, other) in [(&old, &new), (&new, &old), (&old, &old)] {
            let found = wider_addresses(one, other);
            match found {
                Some(Wider::Address { what, address, port, protocol }) => {
                    let judge = |plan: &Plan| match what {
                        "destination" => plan.judge_net(address, port, protocol),
                        _ => plan.judge_listen(address, port, protocol),
                    };
                    prop_assert_eq!(judge(one).verdict, Effect::Deny, "{:?}", found);
                    prop_assert_eq!(judge(other).verdict, Effect::Allow, "{:?}", found);
                }
                Some(_) => {}
                None => {
                    for (address, port, protocol) in &operations {
                        let (address, port, protocol) = (*address, *port, *protocol);
                        for (one, other) in [
                            (one.judge_net(address, port, protocol), other.judge_net(address, port, protocol)),
                            (one.judge_listen(address, port, protocol), other.judge_listen(address, port, protocol)),
                        ] {
                            prop_assert!(one.verdict == Effect::Allow || other.verdict == Effect::Deny, "{}", address);
                        }
                    }
                }
            }
        }
    }

    /// What loses an allow rule or gains a denial is never wider.
    #[test]
    fn on_what_is_stricter(
        kind in kind(),
        net in prop::collection::vec(net_rule(), 1..8),
        removed in any::<prop::sample::Index>(),
        denied in net_rule(),
    ) {
        let host = host();
        let mut less = net.clone();
        let removed = removed.index(net.len());
        if less[removed].effect == Effect::Allow {
            less.remove(removed);
        }
        less.push(Rc::new(NetRule { effect: Effect::Deny, ..NetRule::clone(&denied) }));
        let (old, new) = (Policy { net, ..policy(kind) }, Policy { net: less, ..policy(kind) });
        let (Ok(old), Ok(new)) = (compile(&old, &host), compile(&new, &host)) else { return Ok(()) };
        prop_assert_eq!(wider_addresses(&old, &new), None);
    }

    /// A phase, and each that follows it, takes away and never gives: of programs, destinations and local addresses.
    #[test]
    fn on_phases(
        kind in kind(),
        exec in prop::collection::vec(exec_rule(), 0..8),
        net in prop::collection::vec(net_rule(), 0..8),
        listen in access(),
        stays in prop::collection::vec(any::<(bool, bool)>(), 24),
        programs in prop::collection::vec((file(), ancestors()), 1..20),
    ) {
        let (mut exec, found): (Vec<_>, Vec<_>) = exec.into_iter().unzip();
        exec.iter_mut().for_each(|rule| rule.digest = None);
        let mut full = Policy { exec, net, listen, ..policy(kind) };
        let name = |n: usize| format!("r{n}");
        let net = full.net.iter_mut().chain(&mut full.listen.rules).map(|rule| &mut Rc::make_mut(rule).id);
        full.exec.iter_mut().map(|rule| &mut rule.id).chain(net).enumerate().for_each(|(n, id)| *id = name(n));
        let of = |second: bool| {
            let named = stays.iter().enumerate().filter(|(_, (first, then))| *first && (*then || !second));
            named.map(|(n, _)| name(n)).collect()
        };
        full.phases = [("first".to_owned(), of(false)), ("second".to_owned(), of(true))].into();
        let host = Resolved { files: found, ..host() };
        let mut before = (full, host);
        for phase in ["first", "second"] {
            let gone = before.0.outside(phase).expect("there is such a phase");
            let denials = |policy: &Policy| effects(policy).into_iter().filter(|e| *e == Effect::Deny).count();
            let after = before.0.without(&before.1, &gone).expect("what a phase takes away allows");
            prop_assert_eq!(denials(&before.0), denials(&after.0));
            prop_assert_eq!(after.0.outside(phase), Some(Vec::new()));
            let (Ok(old), Ok(new)) = (compile(&before.0, &before.1), compile(&after.0, &after.1)) else { return Ok(()) };
            prop_assert_eq!(wider_addresses(&old, &new), None);
            for (file, ancestors) in &programs {
                // what lies too deep is denied for that, and by no rule, while any rule has a directory
                let program = Program::of(*file, ancestors.get(..4).unwrap_or(ancestors));
                let (old, new) = (old.judge_exec(&program).verdict, new.judge_exec(&program).verdict);
                prop_assert!(old == Effect::Allow || new == Effect::Deny, "{:?}", program);
            }
            before = after;
        }
    }

    #[test]
    fn on_unix_sockets(
        kind in kind(),
        rules in prop::collection::vec(unix_rule(), 0..8),
        files in prop::collection::vec((file(), prop::sample::select(NAMES.as_slice()), ancestors()), 1..20),
    ) {
        let (unix, found): (Vec<_>, Vec<_>) = rules.into_iter().unzip();
        let policy = Policy { unix: Some(unix), ..policy(kind) };
        let host = Resolved { unix: found, ..Resolved::default() };
        let plan = compile(&policy, &host).expect("no net rules");
        let effects = effects(&policy);
        let bound = files.iter().map(|(file, name, ancestors)| UnixSocket::File { file: *file, name, ancestors });
        for socket in bound.chain([UnixSocket::Abstract(b"a"), UnixSocket::Abstract(b"b"), UnixSocket::Abstract(b"ab")]) {
            agree(&effects, decide_unix(&policy, &host, &socket), plan.judge_unix(&socket))?;
        }
    }
}
