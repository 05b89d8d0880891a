//! Sockets whatever way they come: of every class, made by others, of the unix family.

use std::{
    fs,
    io::IoSlice,
    net::{SocketAddr, UdpSocket},
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::PermissionsExt,
            net::{UnixDatagram, UnixListener},
        },
    },
    path::PathBuf,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::Value;

use super::scene::{Fifo, only, reach};
use crate::{
    harness::{
        capture::own_network,
        launch::{Finished, bare},
        prelude::*,
        server::Server,
    },
    work::sockets::unix_address,
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("sockets::classes", WHEREVER, classes),
    Test::sharing("sockets::made-before", WHEREVER, made_before),
    Test::sharing("sockets::made-before-by-every-use", WHEREVER, uses),
    Test::sharing("sockets::passed-in", WHEREVER, passed_in),
    Test::sharing("sockets::moved-member-reaches-no-more", FULL, moved),
    Test::sharing("sockets::source-route", WHEREVER, source_route),
    Test::sharing("sockets::unix", FULL, unix),
    Test::sharing("sockets::unix-by-name-alone", NO_LSM, unix_names)
        .since((6, 7), "hooks on the names of unix sockets"),
];

pub(super) const FAMILIES: [(&str, &str); 2] = [("127.0.0.1", "127.0.0.1/32"), ("::1", "::1/128")];

/// Whether a record of a kind says so.
pub(super) fn said(s: &Sandbox, session: &str, kind: &str, rule: &str) -> Result<()> {
    let fits = |r: &Value| r["session"] == session && r["type"] == kind && r["verdict"] == "deny" && r["rule"] == rule;
    s.wait_evidence(&format!("a {kind} that {rule} denies"), fits).map(drop)
}

/// What no address limits is refused when it is made, unless its class is allowed.
fn classes(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    // raw, raw of IPv6; and what only LSM sees: packet, vsock, other
    let (internet, others) = (["2 3 17", "10 3 58"], ["17 3 0", "40 1 0", "38 5 0"]);
    let seen = internet.iter().chain(if s.tier == Tier::Full { &others[..] } else { &[] });
    let seen: Vec<&str> = seen.copied().collect();
    let line = seen.iter().map(|what| format!("make {what}")).collect::<Vec<_>>().join(" + ");
    // without BPF LSM nobody has the capability for any of them whom no class of them needs it
    let policy = only(&member);
    let policy = if s.tier == Tier::Full { policy } else { policy.scope("sockets: { allow: [packet] }") };
    let running = s.run(&s.policy(&policy)?, &member, &line)?;
    let session = running.session(s)?;
    running.wait()?.said(&vec!["errno 1"; seen.len()].join("\n"))?;
    for what in &seen {
        let numbers: Vec<u64> = what.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        let fits = |r: &Value| r["family"] == numbers[0] && r["kind"] == numbers[1] && r["protocol"] == numbers[2];
        let refused = |r: &Value| r["session"] == session && r["rule"] == "socket-class" && r["verdict"] == "deny";
        s.wait_evidence(&format!("the refusal of {what}"), |r| refused(r) && fits(r))?;
    }
    let open = only(&member).scope("sockets: { allow: [raw, packet] }");
    let twin = "make 2 3 17 + make 10 3 58 + make 17 3 0";
    s.run(&s.policy(&open)?, &member, twin)?.wait()?.said("ok\nok\nok")?;
    // where the kernel has them; without BPF LSM nobody is asked
    let rare = only(&member).scope("sockets: { allow: [vsock, other] }");
    let finished = s.run(&s.policy(&rare)?, &member, "make 40 1 0 + make 38 5 0")?.wait()?;
    let lacks = format!("errno {}", libc::EAFNOSUPPORT);
    let right = |answer: &str| answer == "ok" || answer == lacks;
    ensure!(finished.stdout.lines().count() == 2 && finished.stdout.lines().all(right), "{finished:?}");
    // what everybody may make
    let plain = "make 2 1 0 + make 10 2 0 + make 1 1 0 + make 16 3 0";
    s.run(&s.policy(&only(&member))?, &member, plain)?.wait()?.said("ok\nok\nok\nok")?;
    if s.tier == Tier::Full {
        let without = only(&member).scope("sockets: { deny: [netlink] }");
        let running = s.run(&s.policy(&without)?, &member, plain)?;
        let session = running.session(s)?;
        running.wait()?.said("ok\nok\nok\nerrno 1")?;
        said(s, &session, "socket", "socket-class")?;
    }
    Ok(())
}

/// A socket from before its user joined: refused at each use (tier full), even to an address in scope; without LSM it is
/// not seen, and the control says so.
fn made_before(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let server = Server::udp(address)?;
        let policy = only(&member).to("server", prefix, server.port());
        let running = s.run(&s.policy(&policy)?, &member, "idle")?;
        let session = running.session(s)?;
        let (newcomer, _fifo) = joins(s, &member, &running, "early", &server)?;
        let (first, count) = if s.tier == Tier::Full { ("errno 1", 1) } else { ("ok", 2) };
        until(
            "the newcomer's answers",
            patience(),
            || Ok((newcomer.said() == format!("{first}\nok\n")).then_some(())),
        )?;
        server.accepted(count)?;
        if s.tier == Tier::Full {
            said(s, &session, "socket", "crossed-socket")?;
            // it is destroyed, and not the one that the newcomer made as a member
            let cut = s.wait_evidence("the end of that socket", |r| {
                r["session"] == session && r["type"] == "flows-cut" && r["cause"] == "crossed"
            })?;
            let receipts = cut["sockets"].as_array().map_or(&[][..], Vec::as_slice);
            ensure!(receipts.len() == 1 && receipts[0]["outcome"] == "destroyed", "{cut}");
        }
        s.cli(&["end", &session])?.ended(0)?;
        s.session_ended(&session, "operator")?;
        drop(running);
    }
    Ok(())
}

/// Who is moved into a session, and then, when the FIFO told it, does `word` with sockets from before and the server; after
/// `early` it sends by its own.
fn joins(s: &Sandbox, member: &str, inside: &Running, word: &str, server: &Server) -> Result<(Running, Fifo)> {
    let (pid, mut fifo) = (s.file("pid"), Fifo::new(s)?);
    let mut command = bare(member.as_ref());
    let more = if word == "early" { format!("+ send {} + idle", server.words()) } else { String::new() };
    let line = format!("--work {word} {pid} {} {} {more}", fifo.path, server.words());
    command.args(line.split_whitespace());
    let newcomer = Running::spawn(s, command, None)?;
    s.pid_in(&pid)?;
    let homes = s.part("sessions").descendants();
    let home = homes.into_iter().find(|cgroup| cgroup.processes().contains(&inside.pid()));
    home.context("the session has no cgroup of its own")?.take(newcomer.pid())?;
    fifo.wake()?;
    Ok((newcomer, fifo))
}

/// As above for connects, a bind, a listener, what is received, who is accepted and the end of a connection; each by a socket of its own is let go.
fn uses(s: &mut Sandbox) -> Result<()> {
    const OWN: &str = "ok\nok\nok\nok\nerrno 11\nerrno 11\nok";
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let server = Server::tcp(address)?;
        let policy = only(&member).to("server", prefix, server.port()).net("listen: allow");
        let running = s.run(&s.policy(&policy)?, &member, "idle")?;
        let session = running.session(s)?;
        let before = if s.tier == Tier::Full { ["errno 1"; 7].join("\n") } else { OWN.to_owned() };
        let (newcomer, _fifo) = joins(s, &member, &running, "beforehand", &server)?;
        newcomer.wait()?.said(&format!("{before}\n{OWN}"))?;
        server.accepted(if s.tier == Tier::Full { 1 } else { 2 })?;
        s.cli(&["end", &session])?.ended(0)?;
        s.session_ended(&session, "operator")?;
        let refused = s.records(&session, "socket")?;
        let refused = refused.iter().filter(|r| r["rule"] == "crossed-socket" && r["verdict"] == "deny").count();
        let all = if s.tier == Tier::Full { 7 } else { 0 };
        ensure!(refused == all, "{refused} uses of sockets from before are recorded");
    }
    Ok(())
}

/// A socket that somebody outside passes in does not arrive (tier full); its own sockets a member may send with.
fn passed_in(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    for (address, prefix) in FAMILIES {
        let server = Server::udp(address)?;
        let name = closed(s)?.join("giver").display().to_string();
        let listener = UnixListener::bind(&name)?;
        fs::set_permissions(&name, PermissionsExt::from_mode(0o666))?;
        let giver = std::thread::spawn(move || -> Result<()> {
            let (stream, _) = listener.accept()?;
            let socket = UdpSocket::bind((address, 0))?;
            let (parts, files) = ([IoSlice::new(b"x")], [socket.as_raw_fd()]);
            sendmsg::<()>(stream.as_raw_fd(), &parts, &[ControlMessage::ScmRights(&files)], MsgFlags::empty(), None)?;
            Ok(())
        });
        let policy = only(&member).to("server", prefix, server.port()).scope(format!("unix: {{ allow: [{name}] }}"));
        let line = format!("take {name} {} + send {}", server.words(), server.words());
        let running = s.run(&s.policy(&policy)?, &member, &line)?;
        let session = running.session(s)?;
        let finished = running.wait()?;
        giver.join().map_err(|_panic| anyhow::anyhow!("the giver died"))??;
        if s.tier == Tier::Full {
            finished.said("none\nok")?;
            server.accepted(1)?;
            said(s, &session, "socket", "crossed-socket")?;
        } else {
            finished.said("ok\nok")?;
            server.accepted(2)?;
        }
    }
    Ok(())
}

/// A member that left its cgroup makes sockets that no program there sees: it reaches what it reached before, and no more.
fn moved(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, elsewhere) = (s.program("member")?, s.part("elsewhere").path().display().to_string());
    let ways = ["connect tcp", "send"];
    for (how, (address, prefix)) in ways.into_iter().flat_map(|how| FAMILIES.map(|family| (how, family))) {
        let serve = || if how == "send" { Server::udp(address) } else { Server::tcp(address) };
        let (good, bad) = (serve()?, serve()?);
        let policy = only(&member).to("server", prefix, good.port());
        let line = |to: &Server| format!("cgroup {elsewhere} {how} {}", to.words());
        reach(s, &policy, &member, &line(&bad))?.was_refused(s, &bad, "default")?;
        reach(s, &policy, &member, &line(&good))?.arrived(s, &good, "server")?;
    }
    // an address without a family, which raw sockets of IPv6 take
    let raw = only(&member).scope("sockets: { allow: [raw] }");
    let line = format!("cgroup {elsewhere} raw-unspec ::1");
    reach(s, &raw, &member, &line)?.was_refused_to(s, "[::1]:0", "default")?;
    reach(s, &raw.to("loopback", "::1/128", ""), &member, &line)?.was_let_through(s, "[::1]:0", "loopback")
}

/// A datagram to an address in scope by way of one that is not: the option is refused (tier full), the packet is dropped.
fn source_route(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    own_network(&["fd00:77::9"])?;
    for ((address, prefix), hop) in FAMILIES.into_iter().zip(["127.0.0.9", "fd00:77::9"]) {
        let server = Server::udp(address)?;
        // the option of IPv4 wants the capability that packet sockets do
        let policy = only(&member).to("server", prefix, server.port()).scope("sockets: { allow: [packet] }");
        let line = format!("source-route {hop} {}", server.words());
        let running = s.run(&s.policy(&policy)?, &member, &line)?;
        let session = running.session(s)?;
        running.wait()?.said("errno 1").with_context(|| format!("by way of {hop}"))?;
        server.untouched()?;
        if s.tier == Tier::Full {
            said(s, &session, "socket", "socket-option")?;
        } else {
            let next = SocketAddr::new(hop.parse()?, server.port()).to_string();
            let seen = s.saw_connect(&session, &next, "deny", "default")?;
            ensure!(seen["via"] == "packet", "the packet is recorded as {seen}");
        }
        let twin = Server::udp(address)?;
        let policy = only(&member).to("server", prefix, twin.port());
        reach(s, &policy, &member, &format!("send {}", twin.words()))?.arrived(s, &twin, "server")?;
        // who may go anywhere may go there by any way
        let open = s.run(&s.policy(&only(&member).kind("operator"))?, &member, &line)?;
        open.wait()?.said("ok").with_context(|| format!("by way of {hop}"))?;
    }
    options(s, &member)?;
    changed(s, &member)
}

/// Every option that leads packets elsewhere or changes what a socket is, with a value that says nothing.
fn options(s: &Sandbox, member: &str) -> Result<()> {
    // IP_OPTIONS; IPV6_ADDRFORM, IPV6_2292RTHDR, IPV6_2292PKTOPTIONS, IPV6_RTHDR; TCP_REPAIR
    const OPTIONS: [(u32, u32); 6] = [(0, 4), (41, 1), (41, 5), (41, 6), (41, 57), (6, 19)];
    let line = OPTIONS.map(|(level, option)| format!("set-option {level} {option}")).join(" + ");
    if s.tier == Tier::Full {
        let running = s.run(&s.policy(&only(member))?, member, &line)?;
        let session = running.session(s)?;
        running.wait()?.said(&["errno 1"; OPTIONS.len()].join("\n"))?;
        for (level, option) in OPTIONS {
            let refused = |r: &Value| r["session"] == session && r["rule"] == "socket-option" && r["verdict"] == "deny";
            let fits = |r: &Value| r["level"] == level && r["option"] == option;
            s.wait_evidence(&format!("the refusal of {level}/{option}"), |r| refused(r) && fits(r))?;
        }
    }
    // the kernel takes some of them, and says of none that it may not be
    let open = s.run(&s.policy(&only(member).kind("operator"))?, member, &line)?.wait()?;
    let answers: Vec<&str> = open.stdout.lines().collect();
    ensure!(answers.len() == OPTIONS.len() && !answers.contains(&"errno 1"), "{open:?}");
    Ok(())
}

/// A socket of IPv6 goes where its session may go, also once it has become one of IPv4, which it may without LSM.
fn changed(s: &Sandbox, member: &str) -> Result<()> {
    let (good, bad) = (Server::udp("127.0.0.1")?, Server::udp("127.0.0.1")?);
    let policy = only(member).to("server", "127.0.0.1/32", good.port());
    let line = |to: &Server| format!("address-form ::ffff:127.0.0.1 {} {}", good.port(), to.words());
    let refused = reach(s, &policy, member, &line(&bad))?;
    refused.was_refused(s, &bad, "default")?;
    if s.tier == Tier::Full {
        said(s, &refused.session, "socket", "socket-option")?;
    }
    reach(s, &policy, member, &line(&good))?.arrived(s, &good, "server")
}

/// By path, by place, by directory and by abstract name; streams and datagrams.
fn unix(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let path = s.file("listener");
    let open = |path: &str| fs::set_permissions(path, PermissionsExt::from_mode(0o666));
    let listener = UnixListener::bind(&path)?;
    open(&path)?;
    let letters = s.file("letters");
    let box_of_letters = UnixDatagram::bind(&letters)?;
    open(&letters)?;
    let name = format!("@tipstaff-test-{}", std::process::id());
    let named = UnixListener::bind_addr(&unix_address(&name)?)?;
    let post = format!("{name}-post");
    let box_of_post = UnixDatagram::bind_addr(&unix_address(&post)?)?;
    listener.set_nonblocking(true)?;
    named.set_nonblocking(true)?;
    box_of_letters.set_nonblocking(true)?;
    box_of_post.set_nonblocking(true)?;
    let calls = |listener: &UnixListener| listener.incoming().take_while(Result::is_ok).count();
    let letter = |from: &UnixDatagram| std::iter::from_fn(|| from.recv(&mut [0; 16]).ok()).count();
    let came = || [calls(&listener), letter(&box_of_letters), calls(&named), letter(&box_of_post)];
    let line =
        format!("unix-to stream {path} + unix-to datagram {letters} + unix-to stream {name} + unix-to datagram {post}");
    let say = |policy: &Policy| -> Result<(String, Finished)> {
        let running = s.run(&s.policy(policy)?, &member, &line)?;
        let session = running.session(s)?;
        let finished = running.wait()?;
        let (came, said) = (came(), finished.stdout.lines().map(|answer| usize::from(answer == "ok")));
        ensure!(said.eq(came), "of what was answered with {:?} came {came:?}", finished.stdout);
        Ok((session, finished))
    };
    let (session, none) = say(&only(&member))?;
    none.said("errno 1\nerrno 1\nerrno 1\nerrno 1")?;
    said(s, &session, "unix", "default")?;
    let all = only(&member).scope(format!("unix: {{ allow: [{path}, {letters}, \"{name}\", \"{post}\"] }}"));
    say(&all)?.1.said("ok\nok\nok\nok")?;
    // whoever may reach all names but some
    let operator = || only(&member).kind("operator");
    say(&operator())?.1.said("ok\nok\nok\nok")?;
    let but = operator().scope(format!("unix: {{ deny: [{path}, \"{post}\"] }}"));
    say(&but)?.1.said("errno 1\nok\nok\nerrno 1")?;
    let directory = std::path::Path::new(&path).parent().context("no folder")?.display();
    let below = only(&member).scope(format!("unix: {{ allow: [{directory}/], deny: [{letters}] }}"));
    say(&below)?.1.said("ok\nerrno 1\nerrno 1\nerrno 1")?;
    let connected = format!("unix-to connected {letters} + unix-to connected {post} + unix-to stream {path}");
    for (policy, answers, verdict, rule, to) in [
        (only(&member), "errno 1\nerrno 1\nerrno 1", "deny", "default", &letters),
        (but, "ok\nerrno 1\nerrno 1", "deny", "unix.deny[1]", &post),
        // of datagrams that go there is no record
        (all.clone(), "ok\nok\nok", "allow", "unix.allow[0]", &path),
    ] {
        let running = s.run(&s.policy(&policy)?, &member, &connected)?;
        let session = running.session(s)?;
        running.wait()?.said(answers)?;
        let fits = |r: &Value| r["session"] == session && r["type"] == "unix" && r["to"] == to.as_str();
        s.wait_evidence(&format!("{to} {verdict} {rule}"), |r| {
            fits(r) && r["verdict"] == verdict && r["rule"] == rule
        })?;
    }
    // another socket at the same place, and another path to it
    let mut fifo = Fifo::new(s)?;
    let running = s.run(&s.policy(&all)?, &member, &format!("fifo {} unix-to stream {path}", fifo.path))?;
    running.session(s)?;
    drop(listener);
    fs::remove_file(&path)?;
    let _again = UnixListener::bind(&path)?;
    open(&path)?;
    fifo.wake()?;
    running.wait()?.said("ok")?;
    let link = s.file("link");
    std::os::unix::fs::symlink(&letters, &link)?;
    let other = only(&member).scope(format!("unix: {{ allow: [{directory}/], deny: [{letters}] }}"));
    let through = s.run(&s.policy(&other)?, &member, &format!("unix-to datagram {link} + unix-to stream {path}"))?;
    through.wait()?.said("errno 1\nok")?;
    Ok(())
}

/// A new folder that nobody but root can change.
pub(super) fn closed(s: &Sandbox) -> Result<PathBuf> {
    let folder = s.fresh("closed");
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, PermissionsExt::from_mode(0o755))?;
    Ok(folder)
}

/// Without LSM the kernel asks before it looks for the socket: abstract names are judged as ever; a path is let through
/// where no rule could deny it, or where a rule allows just this one, only root can change where it leads, and the caller's
/// root is the host's.
fn unix_names(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let folder = closed(s)?;
    let mut kept = Vec::new();
    let mut listen = |path: PathBuf| -> Result<String> {
        kept.push((UnixListener::bind(&path)?, UnixDatagram::bind(path.with_extension("letters"))?));
        for path in [&path, &path.with_extension("letters")] {
            fs::set_permissions(path, PermissionsExt::from_mode(0o666))?;
        }
        Ok(path.display().to_string())
    };
    let (good, bad, open) = (listen(folder.join("good"))?, listen(folder.join("bad"))?, listen(s.fresh("open"))?);
    let name = format!("@tipstaff-test-{}", std::process::id());
    let _named = UnixListener::bind_addr(&unix_address(&name)?)?;
    let post = format!("{name}-post");
    let _post = UnixDatagram::bind_addr(&unix_address(&post)?)?;
    let paths = format!("unix-to stream {good} + unix-to datagram {good}.letters");
    let names = format!("unix-to stream {name} + unix-to datagram {post}");
    let line = format!("{paths} + {names} + unix-to stream {open}");
    let say = |policy: &Policy, line: &str| -> Result<(String, Finished)> {
        let running = s.run(&s.policy(policy)?, &member, line)?;
        Ok((running.session(s)?, running.wait()?))
    };
    let (session, none) = say(&only(&member), &line)?;
    none.said("errno 1\nerrno 1\nerrno 1\nerrno 1\nerrno 1")?;
    said(s, &session, "unix", "default")?;
    // all that is named, but for what members could put another socket in the place of
    let all =
        only(&member).scope(format!("unix: {{ allow: [{good}, {good}.letters, \"{name}\", \"{post}\", {open}] }}"));
    let (session, finished) = say(&all, &line)?;
    finished.said("ok\nok\nok\nok\nerrno 1")?;
    let allowed = |r: &Value| r["session"] == session && r["type"] == "unix" && r["to"] == good.as_str();
    let record = s.wait_evidence("the connect that a rule allows", allowed)?;
    ensure!(record["verdict"] == "allow" && record["rule"] == "unix.allow[0]", "{record}");
    // what is named is the path as it was written: what lies beside it, or leads to it, is not
    let link = folder.join("link").display().to_string();
    std::os::unix::fs::symlink(&bad, &link)?;
    let others = format!("unix-to stream {bad} + unix-to stream {link} + unix-to stream {good}");
    say(&all, &others)?.1.said("errno 1\nerrno 1\nok")?;
    // a link of that name, another tree of mounts, and whoever may make one could lead elsewhere
    let linked = only(&member).scope(format!("unix: {{ allow: [{link}, {good}] }}"));
    say(&linked, &format!("unix-to stream {link} + unix-to stream {good}"))?.1.said("errno 1\nok")?;
    let apart = all.clone().privileges("mount, namespaces");
    for namespace in ["mount", "user"] {
        let said = say(&apart, &format!("unix-to stream {good} + unshare {namespace} unix-to stream {good}"))?.1.stdout;
        let lines: Vec<&str> = said.lines().take(2).collect();
        ensure!(lines == ["ok", "errno 1"], "before and in a new {namespace} namespace: {said}");
    }
    // who may reach all reaches all; with a denial by path, what it does not name can be it by another
    let operator = || only(&member).kind("operator");
    say(&operator(), &line)?.1.said("ok\nok\nok\nok\nok")?;
    let but_name = operator().scope(format!("unix: {{ deny: [\"{post}\"] }}"));
    say(&but_name, &line)?.1.said("ok\nok\nok\nerrno 1\nok")?;
    let but = operator().scope(format!("unix: {{ deny: [{{ path: {bad}, id: no-bad }}], allow: [{good}, {link}] }}"));
    let (session, finished) = say(&but, &format!("{others} + unix-to stream {open} + {names}"))?;
    finished.said("errno 1\nerrno 1\nok\nerrno 1\nok\nok")?;
    said(s, &session, "unix", "no-bad")?;
    said(s, &session, "unix", "unresolved")?;
    // a denial beats what allows the same socket by another path
    let twice = only(&member).scope(format!("unix: {{ allow: [{good}, {bad}], deny: [{link}] }}"));
    say(&twice, &others)?.1.said("errno 1\nerrno 1\nok")?;
    let below = only(&member).scope(format!("unix: {{ allow: [{good}], deny: [{}/] }}", folder.display()));
    say(&below, &paths)?.1.said("errno 1\nerrno 1")?;
    // mode observe refuses nothing
    let (session, finished) = say(&only(&member).observe(), &line)?;
    finished.said("ok\nok\nok\nok\nok")?;
    s.wait_evidence("what would be denied", |r| r["session"] == session && r["verdict"] == "would-deny")?;
    Ok(())
}
