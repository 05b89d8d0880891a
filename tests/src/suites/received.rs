//! What comes from another process as a descriptor, and what goes there.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpStream, UdpSocket},
    os::{
        fd::{AsRawFd as _, OwnedFd, RawFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::PathBuf,
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::Value;

use super::scene::{Fifo, only};
use crate::harness::{
    bpf,
    descriptors::{self, opened, pass, take_from},
    launch::Finished,
    prelude::*,
    server::Server,
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("received::files-by-what-they-are", FULL, files),
    Test::sharing("received::taken-out-of-a-process", WHEREVER, taken),
    Test::sharing("received::sockets-that-go-out", WHEREVER, given),
];

/// A unix socket of somebody outside, that members may connect to.
struct Door {
    name: String,
    listener: UnixListener,
}

impl Door {
    fn new(s: &Sandbox) -> Result<Self> {
        let folder = s.fresh("closed");
        fs::create_dir(&folder)?;
        fs::set_permissions(&folder, PermissionsExt::from_mode(0o755))?;
        let path: PathBuf = folder.join("door");
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, PermissionsExt::from_mode(0o666))?;
        listener.set_nonblocking(true)?;
        Ok(Self { name: path.display().to_string(), listener })
    }

    /// The policy with which members get here.
    fn open(&self, policy: Policy) -> Policy {
        policy.scope(format!("unix: {{ allow: [{}] }}", self.name))
    }

    /// Waits for one.
    fn answer(&self) -> Result<UnixStream> {
        let stream = until("a member to come", patience(), || match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        })?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(patience()))?;
        Ok(stream)
    }
}

/// What is passed to a member: its name here, the class that it takes (none: nobody is refused it), and the files. The last
/// is the one that matters.
struct Gift {
    name: &'static str,
    class: Option<&'static str>,
    files: Vec<OwnedFd>,
}

/// Of every kind.
fn gifts(s: &Sandbox) -> Result<Vec<Gift>> {
    let own = s.file("own");
    fs::write(&own, "own")?;
    let evidence = s.evidence_file().display().to_string();
    let setting = "/proc/sys/kernel/core_pattern";
    let mut all: Vec<(&str, Option<&str>, OwnedFd)> =
        bpf::of_each_kind(s)?.into_iter().map(|(name, fd)| (name, Some("bpf"), fd)).collect();
    let map = bpf::find(s.pins(), "map_SESSION_STATE").context("there is no pin")?.display().to_string();
    all.push(("pinned", Some("bpf"), opened(&map, false, 0)?));
    let [making, mounted, copied] = descriptors::mounts()?;
    all.extend([("fsopen", making), ("fsmount", mounted), ("open_tree", copied)].map(|(n, fd)| (n, Some("mount"), fd)));
    for (name, class, fd) in [
        ("perf", "perf-event", descriptors::perf_event()?),
        ("fault", "userfaultfd", descriptors::user_fault()?),
        ("namespace", "namespaces", opened("/proc/self/ns/user", false, 0)?),
        ("disk", "raw-devices", opened("/dev/loop0", false, 0)?),
        ("memory", "raw-devices", opened("/dev/mem", false, 0)?),
        ("setting", "kernel-settings", opened(setting, true, 0)?),
        ("evidence", "agent-files", opened(&evidence, true, 0)?),
    ] {
        all.push((name, Some(class), fd));
    }
    let (pipe, _kept) = nix::unistd::pipe()?;
    for (name, fd) in [
        ("file", opened(&own, true, 0)?),
        ("folder", opened("/", false, 0)?),
        ("pipe", pipe),
        ("memfd", memfd_create("gift", MFdFlags::empty())?),
        ("event", descriptors::event()?),
        ("process", bpf::pidfd(std::process::id())?),
        ("setting-to-read", opened(setting, false, 0)?),
        ("evidence-to-read", opened(&evidence, false, 0)?),
        ("name-of-a-disk", opened("/dev/loop0", false, libc::O_PATH)?),
        ("pair", UnixStream::pair()?.0.into()),
    ] {
        all.push((name, None, fd));
    }
    Ok(all.into_iter().map(|(name, class, fd)| Gift { name, class, files: vec![fd] }).collect())
}

/// Passes all of them to a member under the policy, one after the other: what it said, and its session.
fn handed(s: &Sandbox, policy: &Policy, member: &str, door: &Door, gifts: &[Gift]) -> Result<(Finished, String)> {
    let running =
        s.run(&s.policy(&door.open(policy.clone()))?, member, &format!("receive {} {}", door.name, gifts.len()))?;
    let session = running.session(s)?;
    let mut stream = door.answer()?;
    for gift in gifts {
        let files: Vec<RawFd> = gift.files.iter().map(|file| file.as_raw_fd()).collect();
        pass(&stream, gift.name.as_bytes(), &files)?;
        stream.read_exact(&mut [0]).with_context(|| format!("{} was not taken", gift.name))?;
    }
    let finished = running.wait()?;
    finished.ended(0)?;
    s.session_ended(&session, "completed")?;
    Ok((finished, session))
}

/// What a session's members were refused, each as class, verdict and rule.
fn privileges(s: &Sandbox, session: &str) -> Result<Vec<String>> {
    let text = |r: &Value| format!("{} {} {}", r["class"], r["verdict"], r["rule"]).replace('"', "");
    Ok(s.records(session, "privilege")?.iter().map(text).collect())
}

/// What a member could not have made or opened it does not get from others either; ordinary files arrive.
fn files(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, door, mut gifts) = (s.program("member")?, Door::new(s)?, gifts(s)?);
    let (ring, (stream, _other)) = (descriptors::ring()?, UnixStream::pair()?);
    ensure!(pass(&stream, b"ring", &[ring.as_raw_fd()]).is_err(), "a ring can be passed in a message");
    // of one message what stands before what is refused arrives, and nothing after it
    let (first, last) = (descriptors::event()?, descriptors::event()?);
    gifts.push(Gift {
        name: "between",
        class: Some("perf-event"),
        files: vec![first, descriptors::perf_event()?, last],
    });
    let mut classes: Vec<&str> = gifts.iter().filter_map(|gift| gift.class).collect();
    classes.retain(|class| *class != "agent-files");
    classes.dedup();
    let all = only(&member).privileges(&classes.join(", "));
    let cases = [
        ("nothing is said", only(&member), &[][..], "deny"),
        ("all are allowed", all, &classes, ""),
        ("observed", only(&member).observe(), &classes, "would-deny"),
        ("one is allowed", only(&member).privileges("perf-event"), &["perf-event"], "deny"),
    ];
    for (what, policy, open, verdict) in cases {
        let (finished, session) = handed(s, &policy, &member, &door, &gifts)?;
        let (mut expected, mut records) = (Vec::new(), Vec::new());
        for Gift { name, class, files } in &gifts {
            let refused = class.filter(|class| !open.contains(class));
            let came = if refused.is_none() { files.len() } else { files.len() / 2 };
            expected.push(format!("{name}: {came}{}", if refused.is_none() { "" } else { ", cut" }));
            match class {
                Some("agent-files") => records.push("agent-files deny protected".to_owned()),
                Some(class) if refused.is_some() || verdict == "would-deny" => {
                    records.push(format!("{class} {verdict} privilege"));
                }
                _ => {}
            }
        }
        finished.said(&expected.join("\n")).context(what)?;
        let found = privileges(s, &session)?;
        ensure!(found == records, "{what}: recorded {found:?} where {records:?} were expected");
    }
    Ok(())
}

/// To take a descriptor out of a process outside, and to enter its namespaces, takes a class; with it, what comes is judged
/// as what is passed. (A ring comes by this way only: the kernel passes none in a message.)
fn taken(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let (pipe, _kept) = nix::unistd::pipe()?;
    let ring = descriptors::ring()?;
    let own = std::process::id();
    let take = format!("take-from {own} {} + take-from {own} {}", pipe.as_raw_fd(), ring.as_raw_fd());
    let line = format!("{take} + enter {own}");
    let full = s.tier == Tier::Full;
    let cases = [
        // without LSM the file of the namespace takes a capability that the session has not
        (
            "",
            if full { "errno 1\nerrno 1\nerrno 1\nerrno 1" } else { "errno 1\nerrno 1\nerrno 1\nerrno 13" },
            &["ptrace", "ptrace", "ptrace", "namespaces"][..],
        ),
        (
            "ptrace",
            if full { "ok\nerrno 1\nok\nerrno 1" } else { "ok\nok\nerrno 1\nerrno 1" },
            &["io-uring", "namespaces"],
        ),
        ("namespaces", if full { "errno 1\nerrno 1\nerrno 1\nok" } else { "" }, &["ptrace", "ptrace", "ptrace"]),
        ("ptrace, namespaces, io-uring, mount, capabilities", "ok\nok\nok\nok", &[]),
    ];
    for (classes, said, recorded) in cases {
        let running = s.run(&s.policy(&only(&member).privileges(classes))?, &member, &line)?;
        let session = running.session(s)?;
        let finished = running.wait()?;
        finished.ended(0)?;
        s.session_ended(&session, "completed")?;
        // without LSM the namespaces of others take a capability that none of these classes keeps
        if full || !said.is_empty() && !classes.contains("mount") {
            finished.said(said).with_context(|| format!("allowed: {classes}"))?;
        }
        if full {
            let found = privileges(s, &session)?;
            let expected: Vec<String> = recorded.iter().map(|class| format!("{class} deny privilege")).collect();
            ensure!(found == expected, "allowed: {classes}: recorded {found:?}");
        }
    }
    Ok(())
}

/// A session's sockets that somebody outside has, passed by a member or taken from it: what goes by them is the session's,
/// and ends with it. In another session they are of no use.
fn given(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, door, fifo) = (s.program("member")?, Door::new(s)?, Fifo::new(s)?);
    let (good, bad, letters) = (Server::tcp("127.0.0.1")?, Server::udp("127.0.0.1")?, Server::udp("127.0.0.1")?);
    let policy = only(&member).to("good", "127.0.0.1/32", good.port()).to("letters", "127.0.0.1/32", letters.port());
    let pid = s.file("pid");
    let line = format!("pid {pid} give {} {} fifo {} nothing", door.name, good.words(), fifo.path);
    let running = s.run(&s.policy(&door.open(policy.clone()))?, &member, &line)?;
    let session = running.session(s)?;
    let passed = descriptors::receive(&door.answer()?)?;
    let [datagrams, connection] =
        <[OwnedFd; 2]>::try_from(passed.files).map_err(|_files| anyhow::anyhow!("not two"))?;
    let number = String::from_utf8(passed.bytes)?.split(' ').next().context("no number")?.parse()?;
    let taken = take_from(&bpf::pidfd(s.pid_in(&pid)?)?, number)?;
    let mut connection = TcpStream::from(connection);
    let (datagrams, taken) = (UdpSocket::from(datagrams), UdpSocket::from(taken));
    let to = |server: &Server| server.address();
    for (round, socket) in [&datagrams, &taken].into_iter().enumerate() {
        socket.send_to(b"in scope", to(&letters))?;
        letters.accepted(round + 1)?;
        let out = socket.send_to(b"out of scope", to(&bad));
        ensure!(out.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EPERM)), "out of scope: {out:?}");
    }
    bad.untouched()?;
    let seen = s.saw_connect(&session, &to(&bad), "deny", "default")?;
    ensure!(seen["via"] == "packet", "recorded as {seen}");
    connection.write_all(b"hello")?;
    until("the bytes to arrive", patience(), || Ok((good.received() == b"hello").then_some(())))?;
    // in another session, whose scope has the address too
    let other = s.run(&s.policy(&door.open(policy))?, &member, &format!("take {} {}", door.name, letters.words()))?;
    let second = other.session(s)?;
    pass(&door.answer()?, b"x", &[datagrams.as_raw_fd()])?;
    let (answer, kind) = if s.tier == Tier::Full { ("none", "socket") } else { ("errno 1", "connect") };
    other.wait()?.ended(0)?.said(answer)?;
    let crossed = |r: &Value| r["session"] == second && r["type"] == kind && r["rule"] == "crossed-socket";
    s.wait_evidence("the socket of another session", crossed)?;
    letters.accepted(2)?;
    // the end
    s.cli(&["end", &session])?.ended(0)?;
    s.session_ended(&session, "operator")?;
    good.reset(1)?;
    connection.set_read_timeout(Some(patience()))?;
    let cut = connection.read(&mut [0]);
    ensure!(cut.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionAborted), "after the end: {cut:?}");
    for socket in [&datagrams, &taken] {
        // the first is told that the socket was closed under it, then nothing leaves
        let sent: Vec<_> = (0..2).map(|_| socket.send_to(b"late", to(&letters))).collect();
        ensure!(sent[1].is_err(), "sent after the end: {sent:?}");
    }
    letters.accepted(2)?;
    running.wait()?.ended(137).map(drop)
}
