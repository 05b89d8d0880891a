//! Names in the first hour: the host's resolvers, of both families, as they are when a session starts.

use std::{fs, net::SocketAddr, os::unix::process::CommandExt as _, path::Path};

use nix::mount::{MsFlags, mount};

use super::{
    badinput::own_mounts,
    scene::{Fifo, only},
};
use crate::harness::{
    capture::{Capture, own_network},
    mounts,
    prelude::*,
    server::Server,
    wait::in_guest,
};

pub(super) const TESTS: &[Test] = &[Test::new("scope::resolvers-of-both-families", WHEREVER, resolvers)];

const RESOLVERS: &str = "/etc/resolv.conf";
const ADDRESSES: [&str; 2] = ["127.0.0.1", "::1"];

/// Starts an agent that finds this file in the place of the host's.
fn start_with(s: &mut Sandbox, file: &str) -> Result<()> {
    if in_guest() && !Path::new(RESOLVERS).exists() {
        fs::write(RESOLVERS, "")?;
    }
    let (places, file) = (mounts::below(Path::new("/"))?, file.to_owned());
    let mut daemon = s.daemon();
    let bound = move || {
        own_mounts(&places)?;
        Ok(mount(Some(file.as_str()), RESOLVERS, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
    };
    // SAFETY: between fork and exec only system calls are made; what they need was allocated before.
    unsafe { daemon.pre_exec(bound) };
    s.start_as(daemon)
}

/// With `resolver: allow` queries arrive at each of them, by UDP and by TCP; without it none leaves, and the record says what to
/// write. A session keeps those that it started with.
fn resolvers(s: &mut Sandbox) -> Result<()> {
    let file = s.file("resolv.conf");
    fs::write(&file, "nameserver 127.0.0.1\nnameserver ::1\n")?;
    start_with(s, &file)?;
    let member = s.program("member")?;
    own_network(&[])?;
    let wire = Capture::new()?;
    let servers = ADDRESSES.map(|ip| -> Result<_> {
        let at = SocketAddr::new(ip.parse()?, 53);
        Ok((Server::udp_at(at)?, Server::serve(std::net::TcpListener::bind(at)?)?))
    });
    let [four, six] = servers;
    let servers = [four?, six?];
    let asks = ADDRESSES.map(|ip| format!("by query asked-{} {ip} 53 + by tcp spoke-{} {ip} 53", mark(ip), mark(ip)));
    let line = asks.join(" + ");
    let (closed, open) = (s.policy(&only(&member))?, s.policy(&only(&member).net("resolver: allow"))?);
    for (policy, answer, verdict, rule) in
        [(&closed, "errno 1", "deny", "dns-denied"), (&open, "ok", "allow", "net.resolver")]
    {
        wire.left()?;
        let running = s.run(policy, &member, &line)?;
        let session = running.session(s)?;
        running.wait()?.said(&[answer; 4].join("\n"))?;
        s.session_ended(&session, "completed")?;
        let records = s.records(&session, "connect")?;
        for ip in ADDRESSES {
            let to = SocketAddr::new(ip.parse()?, 53).to_string();
            let told = records.iter().filter(|r| r["to"] == to && r["verdict"] == verdict && r["rule"] == rule);
            ensure!(told.clone().count() == 2, "of two queries to {to}: {records:?}");
            let remedy = |r: &&serde_json::Value| r["remedy"].to_string().contains("resolver: allow");
            ensure!(answer == "ok" || told.clone().all(|r| remedy(&r)), "no remedy: {records:?}");
        }
        let left = wire.left()?;
        for what in ADDRESSES.iter().flat_map(|ip| [format!("asked-{}", mark(ip)), format!("spoke-{}", mark(ip))]) {
            ensure!(left.iter().any(|packet| packet.has(&what)) == (answer == "ok"), "{what}, with {answer}: {left:?}");
        }
    }
    for (asked, spoken) in &servers {
        asked.accepted(1)?;
        spoken.accepted(1)?;
    }
    keeps(s, &file, &member, &open)
}

/// A label of a name.
fn mark(ip: &str) -> &'static str {
    if ip.contains(':') { "six" } else { "four" }
}

/// The file becomes another while a session lives.
fn keeps(s: &Sandbox, file: &str, member: &str, open: &str) -> Result<()> {
    let mut fifo = Fifo::new(s)?;
    let asks = "by query old 127.0.0.1 53 + by query new 127.0.0.7 53";
    let running = s.run(open, member, &format!("fifo {} {asks}", fifo.path))?;
    running.session(s)?;
    fs::write(file, "nameserver 127.0.0.7\n")?;
    s.run(open, member, asks)?.wait()?.said("errno 1\nok")?;
    fifo.wake()?;
    running.wait()?.said("ok\nerrno 1").map(drop)
}
