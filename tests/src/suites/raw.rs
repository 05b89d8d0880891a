//! Raw sockets, where a policy allows them: each packet is judged by where it says that it goes, whatever it looks like.

use std::net::{IpAddr, SocketAddr};

use super::wire::{ACK, FAMILIES, Family, RST, SYN, member, policy, wire};
use crate::harness::{capture::Capture, prelude::*, server::Server};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("wire::raw-sockets-are-no-streams", WHEREVER, resets),
    Test::sharing("wire::what-is-cut-short-does-not-leave", WHEREVER, cut),
    Test::sharing("wire::what-is-not-what-it-says-does-not-leave", WHEREVER, disguised),
    Test::sharing("wire::what-a-raw-socket-begins-counts", WHEREVER, counted),
];

/// Nobody is there.
const PORT: u16 = 9;

/// A reset that carries nothing may leave of a flow that is over, and of no raw socket, after whatever that one sent before.
fn resets(s: &mut Sandbox) -> Result<()> {
    let wire = wire(s)?;
    let member = member(s);
    let policy = s.policy(&policy(&member).scope("sockets: { allow: [raw] }"))?;
    for family in &FAMILIES {
        let (good, bad): (IpAddr, IpAddr) = (family.good.parse()?, family.bad.parse()?);
        for way in ["raw-reset", "raw-whole-tcp"] {
            for (to, count) in [(bad, 1), (good, 2)] {
                wire.left()?;
                let running = s.run(&policy, &member, &format!("by {way} nothing {to} {PORT}"))?;
                let session = running.session(s)?;
                let finished = running.wait()?;
                s.session_ended(&session, "completed")?;
                let left = wire.left()?;
                let out = left.iter().find(|packet| packet.to == bad);
                ensure!(out.is_none(), "{way}: a packet left for {bad}: {out:?}");
                let resets = left.iter().filter(|packet| packet.to == good && packet.flags & RST != 0).count();
                ensure!(resets == count, "{way} to {to}: {resets} of {count} resets left for {good}: {left:?}");
                if to == good {
                    finished.said("ok")?;
                    continue;
                }
                // the kernel tells nobody that a packet of IPv6 was dropped
                let hook = s.tier == Tier::Full && way == "raw-reset";
                let told = finished.stdout == "errno 1" || (finished.stdout == "ok" && bad.is_ipv6() && !hook);
                ensure!(told, "{way} to {bad}: {finished:?}");
                let port = if hook { 0 } else { PORT };
                s.saw_connect(&session, &SocketAddr::new(bad, port).to_string(), "deny", family.denies)?;
            }
        }
    }
    Ok(())
}

/// Of a packet without the header that it should have nobody can tell where it goes: it is dropped, but not where a policy only
/// observes.
fn cut(s: &mut Sandbox) -> Result<()> {
    let wire = wire(s)?;
    let member = member(s);
    let policy = policy(&member).scope("sockets: { allow: [raw] }");
    for family in &FAMILIES {
        let good: IpAddr = family.good.parse()?;
        for (policy, leaves) in [(policy.clone(), false), (policy.clone().observe(), true)] {
            let running = s.run(&s.policy(&policy)?, &member, &format!("by raw-cut nothing {good} {PORT}"))?;
            let session = running.session(s)?;
            let finished = running.wait()?;
            s.session_ended(&session, "completed")?;
            let left = wire.left()?;
            let own = left.iter().any(|packet| i32::from(packet.protocol) == libc::IPPROTO_TCP && packet.to == good);
            ensure!(own == leaves, "left: {left:?}, {finished:?}");
            let told = if leaves { "ok" } else { "errno 1" };
            ensure!(finished.stdout == told || (finished.stdout == "ok" && good.is_ipv6()), "{finished:?}");
        }
    }
    Ok(())
}

/// A packet that says that it is of the other family, and one behind more headers than are looked behind, leave nowhere. Behind as
/// many as are looked behind the port is judged.
fn disguised(s: &mut Sandbox) -> Result<()> {
    let wire = wire(s)?;
    let member = member(s);
    let policy = policy(&member).scope("sockets: { allow: [raw] }").not_to("shut", "fd00:77::2/128", PORT);
    let policy = s.policy(&policy)?;
    let cases = [
        ("raw-other-version", "127.0.0.1", PORT, false),
        ("raw-other-version", "::1", PORT, false),
        ("raw-some-headers", "fd00:77::2", PORT, false),
        ("raw-some-headers", "fd00:77::2", PORT + 1, true),
        ("raw-many-headers", "fd00:77::2", PORT, false),
        ("raw-many-headers", "fd00:77::2", PORT + 1, false),
    ];
    for (way, to, port, leaves) in cases {
        wire.left()?;
        let running = s.run(&policy, &member, &format!("by {way} the-disguised {to} {port}"))?;
        let session = running.session(s)?;
        let finished = running.wait()?;
        s.session_ended(&session, "completed")?;
        let left = wire.left()?.iter().any(|packet| packet.has("the-disguised"));
        ensure!(left == leaves, "{way} to {to}, port {port}: left: {left}, {finished:?}");
        // the kernel tells nobody that a packet of IPv6 was dropped
        let told = if leaves { "ok" } else { "errno 1" };
        ensure!(
            finished.stdout == told || (finished.stdout == "ok" && to.contains(':')),
            "{way} to {to}: {finished:?}"
        );
    }
    Ok(())
}

/// What a packet begins is one of the connects of its second, once, and gives none of them back. A second may end on the way:
/// then it is tried again.
fn counted(s: &mut Sandbox) -> Result<()> {
    let wire = wire(s)?;
    let member = member(s);
    for family in &FAMILIES {
        let server = Server::udp(family.good)?;
        let words = server.words();
        let line = format!("connect-many 40 {words} + by raw-begin nothing {words} + connect-many 40 {words}");
        for (rate, first, last) in
            [(3, "3 done 37 refused", "0 done 40 refused"), (1000, "40 done 0", "40 done 0 refused")]
        {
            let policy = policy(&member).scope("sockets: { allow: [raw] }");
            let policy = s.policy(&policy.spec(format!("budgets: {{ connectsPerSecond: {rate} }}")))?;
            until(&format!("{last} of {rate} in a second"), patience(), || {
                let finished = s.run(&policy, &member, &line)?.wait()?;
                finished.ended(0)?;
                Ok((finished.stdout.starts_with(first) && finished.stdout.ends_with(last)).then_some(()))
            })?;
        }
        wire.left()?;
        let policy = policy(&member).scope("sockets: { allow: [raw] }").spec("budgets: { connects: 1 }");
        let running = s.run(&s.policy(&policy)?, &member, &format!("by raw-begin nothing {words}"))?;
        running.wait()?.said("ok")?;
        let (good, left): (IpAddr, _) = (family.good.parse()?, wire.left()?);
        let begun = left.iter().filter(|packet| packet.to == good && packet.flags & (SYN | ACK) == SYN).count();
        ensure!(begun == 1, "{begun} packets of a connection's beginning left for {good}: {left:?}");
        elsewhere(s, &wire, family)?;
    }
    Ok(())
}

/// It counts where the packet goes, not where the message was said to go.
fn elsewhere(s: &Sandbox, wire: &Capture, family: &Family) -> Result<()> {
    let (member, hop) = (member(s), family.hop.parse::<IpAddr>()?);
    let line = format!("by raw-begin nothing {} {PORT} + by raw-begin-elsewhere nothing {hop} {PORT}", family.good);
    for (destinations, count) in [(1, 0), (2, 1)] {
        let policy = policy(&member).scope("sockets: { allow: [raw] }");
        let policy = policy.spec(format!("budgets: {{ destinations: {destinations} }}"));
        wire.left()?;
        let running = s.run(&s.policy(&policy)?, &member, &line)?;
        let session = running.session(s)?;
        running.wait()?.ended(0)?;
        s.session_ended(&session, "completed")?;
        let left = wire.left()?;
        let begun = left.iter().filter(|packet| packet.to == hop && packet.flags & (SYN | ACK) == SYN).count();
        ensure!(begun == count, "of {destinations}: {begun} packets left for {hop}: {left:?}");
        let (verdict, rule) = if count == 0 { ("deny", "budget-destinations") } else { ("allow", family.allows_hop) };
        s.saw_connect(&session, &SocketAddr::new(hop, PORT).to_string(), verdict, rule)?;
    }
    Ok(())
}
