//! Many ports of one network: as many rules as an entry of the kernel's trie has room for, one more, and as many as there can be.

use std::{io::Read as _, net::TcpStream, time::Duration};

use serde_json::Value;

use super::scene::{Fifo, only, report};
use crate::harness::{
    prelude::*,
    wait::{patience, until},
};

pub(super) const TESTS: &[Test] = &[
    Test::new("ports::many-that-are-gone-to", WHEREVER, gone_to).each_kernel(),
    Test::sharing("ports::many-that-are-listened-on", WHEREVER, listened_on),
    Test::sharing("ports::many-that-are-come-to", WHEREVER, come_to),
];

const FAMILIES: [(&str, &str); 2] = [("127.0.0.1", "127.0.0.1/32"), ("::1", "::1/128")];
/// Rules of one entry: all have room in it; one has not; the most.
const COUNTS: [u16; 3] = [4, 5, 32];

/// Every other port, so that none is one with the next.
fn ports(count: u16) -> Vec<u16> {
    (0..count).map(|n| 2101 + 2 * n).collect()
}

fn list(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// The first port, one that is denied, one beside them, and one of another rule, the last: with this agent, with the next one, which reads
/// the rules out of the kernel, and without that rule.
fn gone_to(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for ((address, prefix), count) in FAMILIES.into_iter().flat_map(|family| COUNTS.map(|count| (family, count))) {
        // an address of this host has one for logins
        let ports = ports(count - 1);
        let (last, most) = ports.split_last().context("ports")?;
        let policy = only(&member)
            .net_rule("allow", &format!("{{ to: \"{prefix}\", ports: [{}], id: many }}", list(most)))
            .to("more", prefix, last)
            .not_to("not", prefix, ports[1]);
        let tried = [ports[0], ports[1], ports[0] + 1, *last];
        let mut ways = Vec::new();
        for port in tried {
            ways.push((port, Fifo::new(s)?, s.file("report")));
        }
        let each = ways.iter().map(|(port, fifo, file)| {
            format!("background report {file} connect-when-told {} {address} {port}", fifo.path)
        });
        let line = each.chain(["idle".to_owned()]).collect::<Vec<_>>().join(" + ");
        let running = s.run(&s.policy(&policy)?, &member, &line)?;
        let session = running.session(s)?;
        let mut round = |lines: usize, last: &str| -> Result<()> {
            for ((port, fifo, file), expected) in ways.iter_mut().zip(["ok", "errno 1", "errno 1", last]) {
                fifo.wake()?;
                let said = report(file, lines)?.swap_remove(lines - 1);
                ensure!(said == expected, "{count} rules, port {port}, time {lines}: {said}");
            }
            Ok(())
        };
        round(1, "ok")?;
        for (port, (verdict, rule)) in
            tried.into_iter().zip([("allow", "many"), ("deny", "not"), ("deny", "default"), ("allow", "more")])
        {
            s.saw_connect(&session, &std::net::SocketAddr::new(address.parse()?, port).to_string(), verdict, rule)?;
        }
        s.kill_agent()?;
        s.start()?;
        round(2, "ok")?;
        s.cli(&["narrow", &session, "--remove", "more"])?.ended(0)?;
        round(3, "errno 1")?;
        s.cli(&["end", &session])?.ended(0)?;
    }
    Ok(())
}

fn listened_on(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for ((address, prefix), count) in FAMILIES.into_iter().flat_map(|family| COUNTS.map(|count| (family, count))) {
        let ports = ports(count);
        let listen = format!("listen: [{{ on: \"{prefix}\", ports: [{}], id: own }}]", list(&ports));
        let tried = [ports[0], ports[ports.len() - 1], ports[0] + 1];
        let line = tried.map(|port| format!("bind udp {address} {port}")).join(" + ");
        let running = s.run(&s.policy(&only(&member).net(listen))?, &member, &line)?;
        let session = running.session(s)?;
        running.wait()?.said("ok\nok\nerrno 1")?;
        for (port, (verdict, rule)) in tried.into_iter().zip([("allow", "own"), ("allow", "own"), ("deny", "default")])
        {
            s.saw_connect(&session, &std::net::SocketAddr::new(address.parse()?, port).to_string(), verdict, rule)?;
        }
    }
    Ok(())
}

/// The kernel picks the port that the member is called at: by ranges, the last of which holds it, or none.
fn come_to(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for ((address, prefix), count) in FAMILIES.into_iter().flat_map(|family| COUNTS.map(|count| (family, count))) {
        for comes in [true, false] {
            let mut ranges: Vec<String> = ports(count).iter().map(u16::to_string).collect();
            if comes {
                ranges[usize::from(count) - 1] = "\"3000-65535\"".to_owned();
            }
            let inbound = format!("inbound: [{{ from: \"{prefix}\", ports: [{}], id: friends }}]", ranges.join(", "));
            let file = s.file("port");
            let policy = only(&member).net("listen: allow").net(inbound);
            let running = s.run(&s.policy(&policy)?, &member, &format!("serve {address} {file} idle"))?;
            let session = running.session(s)?;
            let port = until("a port to call", patience(), || {
                Ok(std::fs::read_to_string(&file).ok().and_then(|text| text.parse::<u16>().ok()))
            })?;
            let to = std::net::SocketAddr::new(address.parse()?, port);
            let wait = if comes { patience() } else { Duration::from_millis(700) };
            let came = TcpStream::connect_timeout(&to, wait).and_then(|mut stream| stream.read_exact(&mut [0; 3]));
            ensure!(came.is_ok() == comes, "{count} rules: {came:?}");
            let (verdict, rule) = if comes { ("allow", "friends") } else { ("deny", "default") };
            let fits = |r: &Value| r["session"] == session && r["via"] == "accept" && r["rule"] == rule;
            let seen = s.wait_evidence("who came", fits)?;
            ensure!(seen["verdict"] == verdict, "{seen}");
            s.cli(&["end", &session])?.ended(0)?;
        }
    }
    Ok(())
}
