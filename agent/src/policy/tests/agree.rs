//! The compiled tables against the reference decision, on random policies and operations.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;
use tipstaff_common::{limits::DEPTH, rule::FileId};

use crate::policy::{
    Decision, Effect, ExecRule, ExecTarget, Kind, Mode, NetRule, Policy, PortRange, Protocol, Resolved, compile,
    decide_exec, decide_net, net::join_ranges,
};

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select([Kind::Service, Kind::Ci, Kind::Agent, Kind::Operator, Kind::Breakglass].as_slice())
}

fn effect() -> impl Strategy<Value = Effect> {
    prop::sample::select([Effect::Allow, Effect::Deny].as_slice())
}

fn policy(kind: Kind, mut exec: Vec<ExecRule>, mut net: Vec<NetRule>) -> Policy {
    exec.iter_mut().enumerate().for_each(|(index, rule)| rule.id = format!("e{index}"));
    net.iter_mut().enumerate().for_each(|(index, rule)| rule.id = format!("n{index}"));
    let (name, digest) = ("test".to_owned(), String::new());
    Policy { name, kind, mode: Mode::Enforce, strict: false, ttl: std::time::Duration::from_secs(1), exec, net, digest }
}

/// Few files, so that rules and operations meet.
fn file() -> impl Strategy<Value = FileId> {
    (1u64..12, 0u32..2).prop_map(|(inode, device)| FileId { inode, device, generation: 0 })
}

fn exec_rule() -> impl Strategy<Value = (ExecRule, Vec<FileId>)> {
    (effect(), any::<bool>(), prop::collection::vec(file(), 0..4)).prop_map(|(effect, dir, files)| {
        let target = if dir { ExecTarget::Dir("/d".into()) } else { ExecTarget::Path("/p".into()) };
        (ExecRule { id: String::new(), effect, target }, files)
    })
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

fn net_rule() -> impl Strategy<Value = NetRule> {
    let ports =
        prop::collection::vec((1u16..12, 0u16..4).prop_map(|(low, more)| PortRange { low, high: low + more }), 0..4);
    let protocol = prop::sample::select([None, Some(Protocol::Tcp), Some(Protocol::Udp)].as_slice());
    (effect(), network(), ports, protocol).prop_map(|(effect, to, ports, protocol)| NetRule {
        id: String::new(),
        effect,
        to,
        ports: join_ranges(ports),
        protocol,
    })
}

fn protocol() -> impl Strategy<Value = u8> {
    prop::sample::select([6u8, 17, 132].as_slice())
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
        operations in prop::collection::vec((file(), ancestors()), 1..20),
    ) {
        let (exec, files) = rules.into_iter().unzip();
        let policy = policy(kind, exec, Vec::new());
        let files = Resolved { files };
        let plan = compile(&policy, &files).expect("no net rules");
        let effects: Vec<_> = policy.exec.iter().map(|rule| rule.effect).collect();
        for (file, ancestors) in operations {
            let reference = decide_exec(&policy, &files, file, &ancestors);
            agree(&effects, reference, plan.judge_exec(file, &ancestors))?;
        }
    }

    #[test]
    fn on_destinations(
        kind in kind(),
        net in prop::collection::vec(net_rule(), 0..10),
        operations in prop::collection::vec((address(), 0u16..16, protocol()), 1..40),
        near in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), 0u16..16), 0..20),
    ) {
        let policy = policy(kind, Vec::new(), net);
        let Ok(plan) = compile(&policy, &Resolved::default()) else { return Ok(()) };
        let effects: Vec<_> = policy.net.iter().map(|rule| rule.effect).collect();
        // the ends of the rules' own networks
        let ends = near.into_iter().filter(|_| !policy.net.is_empty()).map(|(index, last, port)| {
            let net = policy.net[index.index(policy.net.len())].to;
            (if last { net.broadcast() } else { net.network() }, port, 6)
        });
        for (to, port, protocol) in operations.into_iter().chain(ends) {
            let reference = decide_net(&policy, to, port, protocol);
            agree(&effects, reference, plan.judge_net(to, port, protocol))?;
        }
    }
}
