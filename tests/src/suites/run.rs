//! `tipstaff run`: the command is the caller's own in everything but its scope.

use std::{
    ffi::OsStr,
    fs,
    fs::File,
    io::Read as _,
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::PermissionsExt, net::UnixStream},
    },
    path::Path,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType};
use serde_json::Value;

use super::scene::only;
use crate::harness::{
    launch::{Finished, Launch},
    prelude::*,
    sandbox::{OPERATORS, READERS},
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("run::exit-status-and-signals", WHEREVER, status).agents_own(),
    Test::sharing("run::input-output-environment-folder", WHEREVER, surroundings).agents_own(),
    Test::sharing("run::names-of-any-bytes", WHEREVER, bytes).agents_own(),
    Test::sharing("run::user-and-groups", WHEREVER, user).agents_own(),
    Test::sharing("run::no-descriptor-beyond-0-to-2", WHEREVER, descriptors).agents_own(),
    Test::sharing("run::inherited-sockets", WHEREVER, inherited),
    Test::sharing("run::no-such-command", WHEREVER, no_such_command).agents_own(),
    Test::sharing("run::many-at-once", WHEREVER, many).agents_own(),
];

fn status(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    for (line, code) in [("nothing", 0), ("status 3", 3), ("status 125", 125), ("raise 15", 143), ("raise 9", 137)] {
        let running = s.run(&policy, &member, line)?;
        let session = running.session(s)?;
        running.wait()?.ended(code).with_context(|| line.to_owned())?;
        s.session_ended(&session, "completed")?;
    }
    Ok(())
}

fn surroundings(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let input = s.fresh("input");
    fs::write(&input, "in and out\n")?;
    s.launch(&policy, &member, "cat").stdin(&input).start()?.wait()?.ended(0)?.said("in and out")?;
    let launch = s.launch(&policy, &member, "env COLOUR").variable("COLOUR", "blue and green");
    launch.start()?.wait()?.ended(0)?.said("blue and green")?;
    let folder = Path::new(s.folder()).join("work");
    let here = folder.display().to_string();
    s.launch(&policy, &member, "cwd").folder(&folder).start()?.wait()?.ended(0)?.said(&here)?;
    // a command without a slash is found as a shell finds it
    let launch = Launch::new(s, &policy, ["member", "--work", "say", "found"]).variable("PATH", &s.bin());
    launch.start()?.wait()?.ended(0)?.said("found")?;
    Ok(())
}

/// A program, an argument, a folder and a policy whose names are Latin-1 and hold a backslash: each keeps its bytes, and
/// the evidence has the one spelling of them.
fn bytes(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let named = |folder: &Path, name: &[u8]| folder.join(OsStr::from_bytes(name));
    let folder = named(&s.folder().join("work"), b"caf\xe9");
    fs::create_dir(&folder)?;
    let policy = named(&folder, b"p\\\xe9.yaml");
    fs::copy(s.policy(&Policy::new().allow_dir("all", s.bin()))?, &policy)?;
    let program = named(Path::new(&s.bin()), b"m\xe9mber");
    fs::copy(s.program("member")?, &program)?;
    fs::write(named(&folder, b"\\\xff"), "in and out")?;
    let words: [&OsStr; 4] = [program.as_os_str(), "--work".as_ref(), "show".as_ref(), OsStr::from_bytes(b"\\\xff")];
    let running = Launch::new(s, policy, words).folder(&folder).start()?;
    let session = running.session(s)?;
    running.wait()?.ended(0)?.said("in and out")?;
    s.session_ended(&session, "completed")?;
    let start = s.records(&session, "session-start")?.remove(0);
    let spelled = |name: &str| format!("{}/{name}", s.folder().display());
    let program = spelled(r"bin/m\xe9mber");
    let (context, exec) = (&start["context"], s.saw_exec(&session, &program, "allow", "all")?);
    for words in [&context["command"], &exec["args"]] {
        ensure!(words[0] == program && words[3] == r"\\\xff", "the command's words are {words}");
    }
    ensure!(context["cwd"] == spelled(r"work/caf\xe9"), "the folder is {}", context["cwd"]);
    let source = &start["policy"]["source"];
    ensure!(*source == spelled(r"work/caf\xe9/p\\\xe9.yaml"), "the policy is from {source}");
    Ok(())
}

fn user(s: &mut Sandbox) -> Result<()> {
    const UID: u32 = 1000;
    s.start()?;
    let (member, mark) = (s.program("member")?, s.file("mark"));
    let policy = s.policy(&only(&member))?;
    // who is in no group may start nothing, and who may read may not start
    for group in [UID, READERS] {
        let refused = s.launch(&policy, &member, &format!("mark {mark}")).user(UID, group).start()?;
        refused.wait()?.ended(125)?.complained(&["tipstaff: "])?;
        ensure!(!fs::exists(&mark)?, "a user of group {group} started a session");
    }
    let running = s.launch(&policy, &member, "ids").user(UID, OPERATORS).start()?;
    let session = running.session(s)?;
    running.wait()?.ended(0)?.said(&format!("{UID} {OPERATORS} {OPERATORS}"))?;
    let start = s.records(&session, "session-start")?.remove(0);
    let principal = &start["principal"];
    ensure!(principal["uid"] == UID && principal["gid"] == OPERATORS, "the principal is {principal}");
    // whoever may operate may ask
    for group in [READERS, OPERATORS] {
        for words in [&["ps"][..], &["status"], &["probe"], &["events"]] {
            let asked = s.cli_as(Some((UID, group)), words)?;
            // 4: another test's records were lost
            ensure!(matches!(asked.code, 0 | 4), "{words:?} of group {group}: {asked:?}");
        }
    }
    s.cli_as(Some((UID, UID)), &["ps"])?.ended(6)?.complained(&["tipstaff: ", "read.sock"])?;
    Ok(())
}

fn descriptors(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let launch = s.launch(&policy, &member, "descriptors").extra(File::open("/proc/self/status")?);
    launch.start()?.wait()?.ended(0)?.said("0 1 2")?;
    Ok(())
}

fn no_such_command(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let policy = s.policy(&Policy::new().allow_dir("all", s.bin()))?;
    let missing = format!("{}/missing", s.bin());
    s.run(&policy, &missing, "nothing")?.wait()?.ended(127)?.complained(&["tipstaff: ", &missing])?;
    s.run(&policy, "missing-from-every-path", "nothing")?.wait()?.ended(127)?;
    let plain = s.program("plain")?;
    fs::set_permissions(&plain, PermissionsExt::from_mode(0o644))?;
    s.run(&policy, &plain, "nothing")?.wait()?.ended(126)?.complained(&["tipstaff: ", &plain])?;
    let folder = s.bin();
    s.run(&policy, &folder, "nothing")?.wait()?.ended(126)?;
    fs::set_permissions(&plain, PermissionsExt::from_mode(0o755))?;
    s.run(&policy, &plain, "say here")?.wait()?.ended(0)?.said("here")?;
    Ok(())
}

fn many(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let policy = s.policy(&only(&member))?;
    let running = (0..12).map(|_| s.run(&policy, &member, "say one of many")).collect::<Result<Vec<_>>>()?;
    for run in running {
        let session = run.session(s)?;
        run.wait()?.ended(0)?.said("one of many")?;
        s.session_ended(&session, "completed")?;
    }
    Ok(())
}

/// What the command inherits as descriptor 0, as inetd gives it: listed, and kept, closed or refused as the policy says.
/// Tier full refuses each use of what is kept.
fn inherited(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let say = |policy: &Policy, socket: OwnedFd| -> Result<Finished> {
        s.launch(&s.policy(policy)?, &member, "descriptor 0").input(socket).start()?.wait()
    };
    let kept = if s.tier == Tier::Full { "socket errno 1" } else { "socket ok" };
    for (ip, net) in [("127.0.0.1", "127.0.0.1/32"), ("::1", "::1/128")] {
        let listener = TcpListener::bind((ip, 0))?;
        let port = listener.local_addr()?.port();
        // both ends, and whether a byte came out of the other
        let pair = || -> Result<(TcpStream, TcpStream)> { Ok((TcpStream::connect((ip, port))?, listener.accept()?.0)) };
        let heard = |mut other: TcpStream| -> Result<usize> {
            other.set_read_timeout(Some(patience()))?;
            Ok(other.read(&mut [0; 2])?)
        };
        let went = usize::from(s.tier == Tier::NoLsm);
        let known = || only(&member).to("peer", net, port);
        let by_rule = format!("inbound: [{{ from: '{ip}', ports: [{port}] }}]");
        let run = |words: &str| format!("run: {{ sockets: {words} }}");
        // in scope: by where it goes, or by a rule for who comes in; the last two are not
        let cases = [
            (known(), false, true),
            (only(&member).net(&by_rule), true, true),
            (only(&member), false, false),
            (only(&member), true, false),
            (only(&member).spec(run("keep")), false, true),
            (known().spec(run("close")), false, false),
            (only(&member).observe(), false, true),
        ];
        for (index, (policy, came_in, stays)) in cases.into_iter().enumerate() {
            let (client, server) = pair()?;
            let (own, other) = if came_in { (server, client) } else { (client, server) };
            let observed = index == 6;
            let to = own.peer_addr()?;
            let finished = say(&policy, own.into())?;
            let expected = if observed {
                "socket ok"
            } else if stays {
                kept
            } else {
                "/dev/null ok"
            };
            finished.said(expected).with_context(|| format!("case {index} over {ip}"))?;
            let what = if stays { "it is kept" } else { "it is closed" };
            finished.complained(&["descriptor 0 is a socket of tcp", &format!("connected to {to}"), what])?;
            let count = if observed { 1 } else { usize::from(stays) * went };
            ensure!(heard(other)? == count, "case {index} over {ip}: not {count} bytes arrived");
            let listed = |r: &Value| {
                let socket = &r["inherited"][0];
                r["type"] == "session-start" && socket["to"] == to.to_string() && socket["closed"] == !stays
            };
            s.wait_evidence("the socket in the session's start", listed)?;
        }
        // what could still be connected to anybody
        let unconnected: [OwnedFd; 3] = [
            UdpSocket::bind((ip, 0))?.into(),
            TcpListener::bind((ip, 0))?.into(),
            nix::sys::socket::socket(
                if ip == "::1" { AddressFamily::Inet6 } else { AddressFamily::Inet },
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
                None,
            )?,
        ];
        for socket in unconnected {
            say(&known(), socket)?.said("/dev/null ok")?;
        }
        let refuse = only(&member).to("peer", net, port).spec(run("refuse"));
        say(&refuse, pair()?.0.into())?.ended(125)?.complained(&["descriptor 0 is a socket of tcp", "</dev/null"])?;
        let refused =
            |r: &Value| r["type"] == "refused" && r["message"].as_str().is_some_and(|m| m.contains("descriptor 0"));
        s.wait_evidence("the refusal", refused)?;
        // standard streams may be unix sockets and pipes
        for policy in [only(&member), refuse] {
            let (own, _other) = UnixStream::pair()?;
            say(&policy, own.into())?.said("socket ok")?;
            let (_reader, writer) = std::io::pipe()?;
            say(&policy, writer.into())?.said("pipe ok")?;
            s.run(&s.policy(&policy)?, &member, "say runs")?.wait()?.said("runs")?;
        }
    }
    Ok(())
}
