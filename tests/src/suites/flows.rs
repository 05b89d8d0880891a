//! Open flows of a session that is over: none is left, the other end learns of it, and each has a receipt.

use std::{
    collections::BTreeSet,
    io::Read,
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::Signal,
    sys::socket::{Backlog, SockaddrIn, SockaddrIn6, SockaddrStorage, bind, getsockname, listen},
};
use serde_json::Value;

use super::{
    multipath,
    scene::{Fifo, only, report, stamps},
};
use crate::harness::{
    prelude::*,
    server::Server,
    wait::{all_gone, boot_ns, in_guest, pass, slack},
};
use crate::work::flows::{listener_connects, sctp};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("flows::end-destroys-every-socket", WHEREVER, end),
    Test::sharing("flows::accepted-from-outside", WHEREVER, accepted),
    Test::sharing("flows::namespace-of-a-member", WHEREVER, namespace),
    Test::new("flows::namespace-that-nobody-is-in", WHEREVER, left_behind),
    Test::new("flows::agent-killed-and-back", WHEREVER, agent_killed).waiting(),
    Test::sharing("flows::silenced-where-it-cannot-be-destroyed", WHEREVER, silenced).each_kernel(),
    Test::sharing("flows::narrowing-cuts-what-is-out-of-scope", WHEREVER, narrowed),
    Test::sharing("flows::listed-while-others-go", WHEREVER, listed),
    Test::new("flows::observed-session-keeps-its-flows", WHEREVER, observed),
];

const FAMILIES: [(&str, &str); 2] = [("127.0.0.1", "127.0.0.1/32"), ("::1", "::1/128")];

/// The receipts for sockets of a session.
fn receipts(s: &Sandbox, session: &str) -> Result<Vec<Value>> {
    let records = s.records(session, "flows-cut")?;
    Ok(records.iter().filter_map(|r| r["sockets"].as_array()).flatten().cloned().collect())
}

/// Those of a session for one cause.
pub(super) fn receipts_of(s: &Sandbox, session: &str, cause: &str) -> Result<Vec<Value>> {
    let records = s.records(session, "flows-cut")?;
    let of_cause = records.iter().filter(|r| r["cause"] == cause);
    Ok(of_cause.filter_map(|r| r["sockets"].as_array()).flatten().cloned().collect())
}

/// Those of them that are about a protocol.
fn of(receipts: &[Value], protocol: &str) -> Vec<Value> {
    receipts.iter().filter(|r| r["protocol"] == protocol).cloned().collect()
}

/// Every one of them was destroyed, and was not listed any more.
pub(super) fn all_destroyed(receipts: &[Value], count: usize) -> Result<()> {
    ensure!(receipts.len() == count, "{} receipts for {count} sockets: {receipts:?}", receipts.len());
    let odd = receipts.iter().find(|r| r["outcome"] != "destroyed" || r["gone"] != true);
    ensure!(odd.is_none(), "a socket was not destroyed: {odd:?}");
    let cookies: BTreeSet<u64> = receipts.iter().filter_map(|r| r["cookie"].as_u64()).collect();
    ensure!(cookies.len() == count, "{} sockets under {count} receipts", cookies.len());
    Ok(())
}

/// What the end says is what the receipts say, and nothing is left.
fn nothing_left(end: &Value, receipts: &[Value]) -> Result<()> {
    ensure!(end["flows_cut"] == receipts.len(), "flows_cut is {}, not {}", end["flows_cut"], receipts.len());
    ensure!(end["flows_left"] == 0, "flows are left: {end}");
    Ok(())
}

/// The three times of an end are in its record, in the answer and in what `status` counts, and are what the receipts say.
fn timed(s: &Sandbox, before: &Value, answer: &Value, end: &Value, receipts: &[Value]) -> Result<()> {
    let took = &end["took"];
    let of = |key: &str| took[key].as_u64().with_context(|| format!("an end without {key}: {end}"));
    let (mark, members, flows) = (of("mark_ms")?, of("members_ms")?, of("flows_ms")?);
    ensure!(answer["took"] == *took, "the answer says {answer}, the record {took}");
    ensure!(mark <= members && mark <= flows + 1, "the mark came last: {took}");
    let at = |receipt: &Value| receipt["at_boot_ns"].as_u64();
    let (first, last) = (receipts.iter().filter_map(at).min(), receipts.iter().filter_map(at).max());
    let between = first.zip(last).map(|(first, last)| (last - first) / 1_000_000).context("no receipts")?;
    ensure!(between <= flows, "{between} ms lie between the first and the last flow's end: {took}");
    let after = &s.json(&["status"])?["ends"];
    let bounds: Vec<u64> = after["bounds_ms"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    for (name, ms) in [("mark", mark), ("members", members), ("flows", flows)] {
        let place = bounds.iter().position(|bound| ms <= *bound).unwrap_or(bounds.len());
        let count = |ends: &Value| ends[name]["counts"][place].as_u64();
        let counted = count(before).map(|count| count + 1);
        ensure!(counted.is_some() && count(after) == counted, "{name} took {ms} ms: {before}, then {after}");
        ensure!(after[name]["max_ms"].as_u64() >= Some(ms), "{name} took {ms} ms: {after}");
    }
    // another test of this agent may have lost records, and its status is degraded then
    let status = s.cli(&["status"])?;
    ensure!(matches!(status.code, 0 | 4), "{status:?}");
    status.told(&["ENDS", "to the last member", "to the last flow"]).map(drop)
}

/// A hundred connections and a few datagram sockets, in each family. Their owner is killed after they are destroyed: the
/// server is told by a reset.
fn end(s: &mut Sandbox) -> Result<()> {
    const FLOWS: usize = 100;
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let (tcp, udp) = (Server::tcp(address)?, Server::udp(address)?);
        let policy = only(&member).to("tcp", prefix, tcp.port()).to("udp", prefix, udp.port());
        let line = format!("open {FLOWS} tcp {} open 3 udp {} idle", tcp.words(), udp.words());
        let running = s.run(&s.policy(&policy)?, &member, &line)?;
        let session = running.session(s)?;
        until("the flows to be open", patience(), || Ok((running.said() == "ok\nok\n").then_some(())))?;
        until("each flow to have carried a byte", patience(), || Ok((tcp.received().len() == FLOWS).then_some(())))?;
        tcp.accepted(FLOWS)?;
        udp.accepted(3)?;
        tcp.send(b"four")?;
        udp.send(b"four")?;
        let before = s.json(&["status"])?["ends"].clone();
        let answer = s.json(&["end", &session])?;
        tcp.reset(FLOWS)?;
        let end = s.session_ended(&session, "operator")?;
        let receipts = receipts(s, &session)?;
        nothing_left(&end, &receipts)?;
        timed(s, &before, &answer, &end, &receipts)?;
        let flows = of(&receipts, "tcp");
        all_destroyed(&flows, FLOWS)?;
        all_destroyed(&of(&receipts, "udp"), 3)?;
        let odd = flows.iter().find(|r| r["to"] != tcp.address() || r["bytes_out"] != 1 || r["bytes_in"] != 4);
        ensure!(odd.is_none(), "a receipt does not say where the flow led and what it carried: {odd:?}");
        // by UDP what a packet has of headers too
        let headers = if address.contains(':') { 48 } else { 28 };
        let told =
            |r: &Value| r["to"] == udp.address() && r["bytes_out"] == headers + 1 && r["bytes_in"] == headers + 4;
        ensure!(of(&receipts, "udp").iter().all(told), "udp receipts: {receipts:?}");
        for (protocol, server) in [("tcp", &tcp), ("udp", &udp)] {
            let own = of(&receipts, protocol);
            let from: BTreeSet<String> = own.iter().filter_map(|r| Some(r["from"].as_str()?.to_owned())).collect();
            ensure!(from == server.callers(), "receipts are from {from:?}, but {:?} came", server.callers());
        }
        running.wait()?.ended(137)?;
    }
    Ok(())
}

/// A flow that came from outside is the session's as much as its listener.
fn accepted(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, _) in FAMILIES {
        let file = s.file("port");
        let line = format!("serve {address} {file} idle");
        let running = s.run(&s.policy(&only(&member).net("listen: allow"))?, &member, &line)?;
        let session = running.session(s)?;
        let port = until("the member to listen", patience(), || {
            Ok(std::fs::read_to_string(&file).ok().and_then(|text| text.parse::<u16>().ok()))
        })?;
        let mut stream = TcpStream::connect((address, port))?;
        stream.set_read_timeout(Some(patience()))?;
        stream.read_exact(&mut [0; 3])?;
        s.cli(&["end", &session])?.ended(0)?;
        let told = stream.read(&mut [0]).map_err(|error| error.kind());
        ensure!(told == Err(std::io::ErrorKind::ConnectionReset), "the other end was told {told:?}");
        let end = s.session_ended(&session, "operator")?;
        let receipts = receipts(s, &session)?;
        nothing_left(&end, &receipts)?;
        all_destroyed(&receipts, 2)?;
        let own = stream.local_addr()?.to_string();
        let flow = receipts.iter().find(|r| r["to"] == own);
        ensure!(flow.is_some_and(|r| r["bytes_out"] == 3), "no receipt for the accepted flow: {receipts:?}");
    }
    Ok(())
}

/// Servers in the network namespace of a process, each of which a member calls once it is told by the file.
fn both_within(inside: u32, address: &str, ports: [u16; 2], go: &str) -> Result<[Server; 2]> {
    let servers = [Server::tcp_within(inside, address, ports[0])?, Server::tcp_within(inside, address, ports[1])?];
    std::fs::write(go, "")?;
    servers.iter().try_for_each(|server| server.accepted(1))?;
    Ok(servers)
}

/// A member that made a network namespace of its own has its flows in there destroyed too, by a narrower scope and at the
/// end.
fn namespace(s: &mut Sandbox) -> Result<()> {
    const PORTS: [u16; 2] = [7777, 7778];
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let (pid, go) = (s.file("pid"), s.file("go"));
        let policy = only(&member).to("goes", prefix, PORTS[0]).to("stays", prefix, PORTS[1]);
        let [goes, stays] = PORTS.map(|port| format!("open 1 tcp {address} {port}"));
        let line = format!("unshare net loopback pid {pid} await {go} {goes} {stays} idle");
        let running = s.run(&s.policy(&policy.privileges("capabilities"))?, &member, &line)?;
        let session = running.session(s)?;
        let inside = s.pid_in(&pid)?;
        let [goes, stays] = both_within(inside, address, PORTS, &go)?;
        let home = s.records(&session, "session-start")?[0]["context"]["namespaces"]["net"].clone();
        let elsewhere = |receipts: &[Value]| {
            let here = receipts.iter().find(|r| r["netns"] == home);
            ensure!(here.is_none(), "a flow was in the namespace of the start: {here:?}");
            all_destroyed(receipts, 1)
        };
        s.cli(&["narrow", &session, "--remove", "goes"])?.ended(0)?;
        goes.reset(1)?;
        let narrowed = receipts_of(s, &session, "narrow")?;
        elsewhere(&narrowed)?;
        ensure!(narrowed[0]["to"] == goes.address(), "receipts: {narrowed:?}");
        // who is in scope goes on
        until("what is in scope to be there", patience(), || Ok((stays.received() == b"x").then_some(())))?;
        stays.send(b"y").context("the flow in scope")?;
        s.cli(&["end", &session])?.ended(0)?;
        stays.reset(1)?;
        all_gone(&[inside])?;
        let end = s.session_ended(&session, "operator")?;
        let ended = receipts_of(s, &session, "end")?;
        nothing_left(&end, &ended)?;
        elsewhere(&ended)?;
        ensure!(ended[0]["to"] == stays.address(), "receipts: {ended:?}");
    }
    Ok(())
}

/// A flow in a network namespace that the agent never saw anybody in, because it was stopped meanwhile, is destroyed too.
fn left_behind(s: &mut Sandbox) -> Result<()> {
    const PORTS: [u16; 2] = [7777, 7778];
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let (pid, go, back) = (s.file("pid"), s.file("go"), s.file("back"));
        let policy = only(&member).to("goes", prefix, PORTS[0]).to("stays", prefix, PORTS[1]);
        let [goes, stays] = PORTS.map(|port| format!("open 1 tcp {address} {port}"));
        let line = format!("fifo {{fifo}} roam pid {pid} await {go} {goes} {stays} return {back} idle");
        let mut fifo = Fifo::new(s)?;
        let line = line.replace("{fifo}", &fifo.path);
        let policy = s.policy(&policy.privileges("capabilities, namespaces, mount"))?;
        let running = s.run(&policy, &member, &line)?;
        let session = running.session(s)?;
        s.signal_agent(Signal::SIGSTOP)?;
        fifo.wake()?;
        let inside = s.pid_in(&pid)?;
        let [goes, stays] = both_within(inside, address, PORTS, &go)?;
        until("the member to be back", patience(), || Ok(std::fs::exists(&back)?.then_some(())))?;
        s.signal_agent(Signal::SIGCONT)?;
        s.cli(&["narrow", &session, "--remove", "goes"])?.ended(0)?;
        goes.reset(1)?;
        all_destroyed(&receipts_of(s, &session, "narrow")?, 1)?;
        s.cli(&["end", &session])?.ended(0)?;
        stays.reset(1)?;
        let end = s.session_ended(&session, "operator")?;
        nothing_left(&end, &receipts_of(s, &session, "end")?)?;
    }
    Ok(())
}

/// Sessions whose deadline passed without an agent: their flows are silent from then on, and the next agent destroys them.
fn agent_killed(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let servers = [Server::tcp("127.0.0.1")?, Server::tcp("::1")?];
    let busy = [Server::tcp("127.0.0.1")?, Server::tcp("::1")?];
    let ttl = if in_guest() { "20s" } else { "3s" };
    let mut sessions = Vec::new();
    for (((_, prefix), server), busy) in FAMILIES.iter().zip(&servers).zip(&busy) {
        let policy = only(&member).to("server", prefix, server.port()).to("busy", prefix, busy.port());
        let line = format!("background flow {} + open 10 tcp {} idle", busy.words(), server.words());
        let running = s.launch(&s.policy(&policy)?, &member, &line).ttl(ttl).start()?;
        let session = running.session(s)?;
        server.accepted(10)?;
        sessions.push((running, session));
    }
    s.kill_agent()?;
    let killed = boot_ns()?;
    let mut deadlines = Vec::new();
    for (_, session) in &sessions {
        let start = s.records(session, "session-start")?;
        deadlines.push(start[0]["deadline_boot_ns"].as_u64().context("session-start without a deadline")?);
    }
    pass(deadlines[1], slack())?;
    let heard = busy.each_ref().map(|server| server.received().len());
    s.start()?;
    for ((running, session), server) in sessions.into_iter().zip(&servers) {
        server.reset(10)?;
        all_gone(&[running.pid()])?;
        let end =
            s.wait_evidence("the end of the session", |r| r["type"] == "session-end" && r["session"] == session)?;
        let receipts = receipts(s, &session)?;
        nothing_left(&end, &receipts)?;
        let own: Vec<Value> = receipts.into_iter().filter(|r| r["to"] == server.address()).collect();
        all_destroyed(&own, 10)?;
    }
    for ((server, deadline), heard) in busy.iter().zip(deadlines).zip(heard) {
        let last = stamps(&server.received()).into_iter().max().unwrap_or(0);
        ensure!(last > killed, "{} heard nothing after the agent was killed", server.address());
        let late = last.saturating_sub(deadline);
        ensure!(u128::from(late) < slack().as_nanos(), "a byte left {} ms after the deadline", late / 1_000_000);
        let since = server.received().len() - heard;
        ensure!(since == 0, "{} heard {since} bytes of a session that was over", server.address());
    }
    Ok(())
}

/// No kernel destroys SCTP sockets: they are silent, and their receipt says why. (A connection whose packets are dropped
/// stays until the kernel gives up on it.) The server's own sockets are nobody's business.
fn silenced(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let address = SocketAddr::new(address.parse()?, 0);
        let (server, port) = match listen_sctp(&address) {
            Ok(server) => server,
            // and a kernel that has no SCTP has nothing to silence
            Err(errno) => {
                ensure!(errno == Errno::EPROTONOSUPPORT, "an SCTP socket: {errno}");
                return Err(Lacking("this kernel was built without SCTP".to_owned()).into());
            }
        };
        let policy = only(&member).to("server", prefix, port).scope("sockets: { allow: [sctp] }");
        let file = s.file("pid");
        let line = format!("open 1 sctp {} {port} pid {file} idle", address.ip());
        let running = s.run(&s.policy(&policy)?, &member, &line)?;
        let session = running.session(s)?;
        s.pid_in(&file)?;
        s.cli(&["end", &session])?.ended(0)?;
        let receipts = of(&receipts(s, &session)?, "sctp");
        let well = |r: &Value| r["outcome"] == "silenced" && r["why"].as_str().is_some_and(|why| why.contains("sctp"));
        ensure!(receipts.len() == 1 && receipts.iter().all(well), "receipts of SCTP sockets: {receipts:?}");
        drop((server, running));
    }
    Ok(())
}

/// An SCTP socket that listens, and its port.
fn listen_sctp(address: &SocketAddr) -> Result<(OwnedFd, u16), Errno> {
    let socket = sctp(address)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(*address))?;
    listen(&socket, Backlog::new(1)?)?;
    let own: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    let port = own.as_sockaddr_in().map(SockaddrIn::port).or_else(|| own.as_sockaddr_in6().map(SockaddrIn6::port));
    Ok((socket, port.unwrap_or(0)))
}

/// Of the open flows those that a narrower scope does not name are destroyed, their owner and the other end are told, and
/// the others go on: also where nobody may listen, and where everybody may.
fn narrowed(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for ((address, prefix), listens) in FAMILIES.iter().flat_map(|family| [(*family, false), (*family, true)]) {
        let (stays, goes, udp) = (Server::tcp(address)?, Server::tcp(address)?, Server::udp(address)?);
        let policy = only(&member).to("stays", prefix, stays.port()).to("goes", prefix, goes.port());
        let policy = policy.to("udp", prefix, udp.port()).net(if listens { "listen: allow" } else { "listen: deny" });
        let (kept, lost, lost_udp, pid) = (s.file("kept"), s.file("lost"), s.file("lost"), s.file("pid"));
        let (listened, mut fifo, lost_late) = (s.file("port"), Fifo::new(s)?, s.file("lost"));
        let line = format!(
            "background report {kept} chat {} + background report {lost} chat {goes} + background report {lost_udp} \
             listen-to {} + background report {lost_late} listen-first {listened} {} {goes} + pid {pid} idle",
            stays.words(),
            udp.words(),
            fifo.path,
            goes = goes.words(),
        );
        let running = s.run(&s.policy(&policy)?, &member, &line)?;
        let session = running.session(s)?;
        s.pid_in(&pid)?;
        let port = until("a member to have tried to listen", patience(), || {
            Ok(std::fs::read_to_string(&listened).ok().and_then(|text| text.parse::<u16>().ok()))
        })?;
        call_listener(s, &session, address, port, listens)?;
        fifo.wake()?;
        let (connects, late) = match listener_connects(&goes.address().parse()?)? {
            true => (1, Errno::ECONNABORTED),
            false => (0, Errno::EINVAL),
        };
        for (server, bytes) in [(&stays, 1), (&goes, 1 + connects), (&udp, 1)] {
            until("the flows to be open", patience(), || Ok((server.received().len() >= bytes).then_some(())))?;
        }
        let before = boot_ns()?;
        s.cli(&["narrow", &session, "--remove", "goes", "udp"])?.ended(0)?;
        let told = |file: &str| Ok::<_, anyhow::Error>(report(file, 2)?.swap_remove(1));
        ensure!(told(&lost)? == format!("errno {}", libc::ECONNABORTED), "the owner was told {}", told(&lost)?);
        ensure!(told(&lost_udp)? == format!("errno {}", libc::ECONNABORTED), "UDP: {}", told(&lost_udp)?);
        let listened = report(&lost_late, 1 + connects)?.swap_remove(connects);
        ensure!(listened == format!("errno {}", late as i32), "a socket that listened before: {listened}");
        let receipts = receipts(s, &session)?;
        all_destroyed(&receipts, 2 + connects)?;
        let to = |server: &Server| receipts.iter().filter(|r| r["to"] == server.address()).count();
        ensure!((to(&goes), to(&udp), to(&stays)) == (1 + connects, 1, 0), "receipts: {receipts:?}");
        let cut = s.records(&session, "flows-cut")?.swap_remove(0);
        let at = receipts.iter().filter_map(|r| r["at_boot_ns"].as_u64()).max().context("no receipt says when")?;
        let most = if in_guest() { 10_000_000_000 } else { 1_000_000_000 };
        ensure!(at.saturating_sub(before) < most, "cut {} ns after it was asked for", at - before);
        ensure!(cut["cause"] == "narrow" && cut["revision"] == 2, "the cause and the scope that it was cut for: {cut}");
        stays.send(b"y")?;
        ensure!(told(&kept)? == "received 1", "the flow in scope: {}", told(&kept)?);
        s.cli(&["end", &session])?.ended(0)?;
    }
    FAMILIES.into_iter().try_for_each(|(address, prefix)| multipath::narrowed(s, &member, address, prefix))
}

/// Calls a member that tried to listen, where it could: it is let through where it may be.
fn call_listener(s: &Sandbox, session: &str, address: &str, port: u16, allowed: bool) -> Result<()> {
    let listens = allowed || s.tier == Tier::NoLsm;
    ensure!((port != 0) == listens, "the member listens on port {port}");
    if listens {
        let to = SocketAddr::new(address.parse()?, port);
        let wait = if allowed { patience() } else { Duration::from_millis(300) };
        let came = TcpStream::connect_timeout(&to, wait).is_ok();
        ensure!(came == allowed, "{to} answers: {came}");
    }
    let (via, verdict) = if listens && allowed { ("accept", "allow") } else { ("listen", "deny") };
    let fits = |r: &Value| r["session"] == session && r["via"] == via && r["verdict"] == verdict;
    s.wait_evidence("who listened", fits).map(drop)
}

/// Each end of a session lists sockets, while two members make labelled ones and let them go as fast as they can.
fn listed(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let busy = s.run(&policy, &member, "background make-sockets + make-sockets")?;
    let session = busy.session(s)?;
    for _ in 0..if in_guest() { 25 } else { 100 } {
        s.run(&policy, &member, "nothing")?.wait()?.ended(0)?;
    }
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator").map(drop)
}

/// Nothing is cut where a policy only observes.
fn observed(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, server) = (s.program("member")?, Server::tcp("127.0.0.1")?);
    let file = s.file("pid");
    let line = format!("background pid {file} open 1 tcp {} idle + await {file} nothing", server.words());
    let running = s.run(&s.policy(&only(&member).observe())?, &member, &line)?;
    let session = running.session(s)?;
    let pid = s.pid_in(&file)?;
    server.accepted(1)?;
    running.wait()?.ended(0)?;
    let end = s.wait_evidence("the end of the session", |r| r["type"] == "session-end" && r["session"] == session)?;
    ensure!(
        end["flows_cut"] == 0 && s.records(&session, "flows-cut")?.is_empty(),
        "an observed session was cut: {end}"
    );
    server.send(b"on").context("the flow of an observed session")?;
    ensure!(!crate::harness::wait::gone(pid), "an observed member was killed");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?;
    all_gone(&[pid])
}
