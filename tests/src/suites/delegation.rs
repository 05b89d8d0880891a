//! Daemons that start programs for whoever asks: by their sockets, by the folders that they read, by a login on this host.

use std::{
    fs,
    net::TcpListener,
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixDatagram, UnixListener},
    },
    path::{Path, PathBuf},
};

use super::{
    privileges::tried,
    scene::{only, reach},
};
use crate::{
    harness::{capture::own_network, prelude::*, server::Server},
    work::sockets::unix_address,
};

const HOSTS: &str = "makes the sockets and folders of the host's daemons";

pub(super) const TESTS: &[Test] = &[
    Test::sharing("delegation::sockets", FULL, sockets).guests_only(HOSTS).alone(),
    Test::sharing("delegation::sockets-by-name-alone", NO_LSM, sockets)
        .since((6, 7), "hooks on the names of unix sockets")
        .guests_only(HOSTS),
    Test::sharing("delegation::abstract-socket-by-name-alone", NO_LSM, abstract_socket)
        .since((6, 7), "hooks on the names of unix sockets"),
    Test::sharing("delegation::folders", FULL, folders).guests_only(HOSTS).alone(),
    Test::sharing("delegation::login", WHEREVER, login),
];

/// Files and folders of the host's that go again with this.
struct Hosts(Vec<PathBuf>);

impl Hosts {
    const fn new() -> Self {
        Self(Vec::new())
    }

    /// Makes the folders of a path that are not there.
    fn folders(&mut self, path: &str) -> Result<()> {
        let above: Vec<&Path> = Path::new(path).ancestors().take_while(|folder| !folder.exists()).collect();
        for folder in above.into_iter().rev() {
            fs::create_dir(folder)?;
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
            self.0.push(folder.to_owned());
        }
        Ok(())
    }

    fn file(&mut self, path: &str) -> Result<()> {
        fs::write(path, "")?;
        self.0.push(path.into());
        Ok(())
    }

    /// A listener that everybody may connect to.
    fn listener(&mut self, name: &str) -> Result<UnixListener> {
        let listener = UnixListener::bind_addr(&unix_address(name)?)?;
        self.open(name)?;
        Ok(listener)
    }

    fn open(&mut self, name: &str) -> Result<()> {
        if name.starts_with('/') {
            self.0.push(name.into());
            fs::set_permissions(name, fs::Permissions::from_mode(0o666))?;
        }
        Ok(())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            let _gone_or_not = fs::remove_file(path).or_else(|_error| fs::remove_dir(path));
        }
    }
}

/// The records of a session on the class, each as `verdict rule place`.
fn recorded(s: &Sandbox, session: &str) -> Result<Vec<String>> {
    let all = s.evidence()?;
    let own = all.iter().filter(|r| r["type"] == "privilege" && r["session"] == session && r["class"] == "delegation");
    let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    Ok(own.map(|r| [&r["verdict"], &r["rule"], &r["place"]].map(word).join(" ")).collect())
}

/// Whole names, beginnings, any user's, abstract ones; and what only looks like them. A rule that allows the socket is not
/// enough.
fn sockets(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let mut hosts = Hosts::new();
    for folder in ["/run/user/1000", "/run/systemd", "/run/containerd", "/run/podman", "/run/dbus"] {
        hosts.folders(folder)?;
    }
    let bus = format!("@/tmp/dbus-{}", std::process::id());
    let places = [
        ("/run/docker.sock", "/run/docker*"),
        ("/run/containerd/containerd.sock", "/run/containerd/*"),
        ("/run/podman/podman.sock", "/run/podman/*"),
        ("/run/dbus/system_bus_socket", "/run/dbus/*"),
        ("/run/systemd/private", "/run/systemd/private"),
        ("/run/user/1000/bus", "/run/user/*/bus"),
        (bus.as_str(), "@/tmp/dbus-*"),
    ];
    let others = ["/run/systemd/private2".to_owned(), "/run/user/1000/bus2".to_owned(), format!("@x{bus}")];
    let all: Vec<&str> = places.iter().map(|(name, _)| *name).chain(others.iter().map(String::as_str)).collect();
    let listeners: Vec<UnixListener> = all.iter().map(|name| hosts.listener(name)).collect::<Result<_>>()?;
    listeners.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
    let letters = "/run/containerd/letters";
    let _letters = UnixDatagram::bind(letters)?;
    hosts.open(letters)?;
    let named: Vec<String> = all.iter().chain([&letters]).map(|name| format!("\"{name}\"")).collect();
    let rules = format!("unix: {{ allow: [{}] }}", named.join(", "));
    let line: Vec<String> = all.iter().map(|name| format!("unix-to stream {name}")).collect();
    let line = format!("{} + unix-to datagram {letters}", line.join(" + "));
    let ci = || only(&member).scope(&rules);
    let (refused, open) = ("errno 1\n".repeat(places.len()), "ok\n".repeat(all.len()));
    let refused = format!("{refused}{}errno 1", "ok\n".repeat(others.len()));
    let records = |verdict: &str| -> Vec<String> {
        let places = places.iter().map(|(_, place)| *place).chain(["/run/containerd/*"]);
        places.map(|place| format!("{verdict} privilege {place}")).collect()
    };
    let cases = [
        ("nothing is said", ci(), &refused, "deny"),
        ("an agent's", ci().kind("agent"), &refused, "deny"),
        ("a service's", ci().kind("service"), &refused, "deny"),
        (
            "an operator is denied it",
            ci().kind("operator").scope("privileges: { deny: [delegation] }"),
            &refused,
            "deny",
        ),
        ("observed", ci().observe(), &format!("{open}ok"), "would-deny"),
        ("it is allowed", ci().scope("privileges: { allow: [delegation] }"), &format!("{open}ok"), ""),
        ("an operator's", ci().kind("operator"), &format!("{open}ok"), ""),
    ];
    for (what, policy, said, verdict) in cases {
        let (finished, session) = tried(s, &policy, &member, &line)?;
        finished.said(said).context(what)?;
        for (listener, (name, said)) in listeners.iter().zip(all.iter().zip(said.lines())) {
            ensure!(listener.accept().is_ok() == (said == "ok"), "{what}: {name} was reached, or was not: {said}");
        }
        let expected = if verdict.is_empty() { Vec::new() } else { records(verdict) };
        ensure!(recorded(s, &session)? == expected, "{what}: recorded {:?}", recorded(s, &session)?);
    }
    // by another path to it: the socket's own name counts where the kernel shows it, the kind's word where it does not
    let link = s.file("link");
    std::os::unix::fs::symlink("/run/containerd/containerd.sock", &link)?;
    let (finished, _) = tried(s, &ci(), &member, &format!("unix-to stream {link}"))?;
    finished.said("errno 1")?;
    // the class alone opens nothing
    let class = only(&member).scope("privileges: { allow: [delegation] }");
    tried(s, &class, &member, "unix-to stream /run/containerd/containerd.sock")?.0.said("errno 1")?;
    let checked = s.json(&["policy", "check", &s.policy(&ci())?])?;
    let notes = checked[0]["policy"]["notes"].to_string();
    ensure!(
        notes.contains("does not allow /run/containerd/*") && notes.contains("privileges.allow"),
        "notes: {checked}"
    );
    Ok(())
}

/// Where nothing of the host's may be made: a bus with a name of its own that is no file, and what only looks like one.
fn abstract_socket(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let own = std::process::id();
    let names = [format!("@/tmp/dbus-{own}"), format!("@/tmp/dbus{own}")];
    let letters = names.each_ref().map(|name| format!("{name}-letters"));
    let mut streams = Vec::new();
    for (name, letters) in names.iter().zip(&letters) {
        let (stream, post) =
            (UnixListener::bind_addr(&unix_address(name)?)?, UnixDatagram::bind_addr(&unix_address(letters)?)?);
        stream.set_nonblocking(true)?;
        post.set_nonblocking(true)?;
        streams.push((stream, post));
    }
    let line =
        names.iter().zip(&letters).map(|(name, letters)| format!("unix-to stream {name} + unix-to datagram {letters}"));
    let line = line.collect::<Vec<_>>().join(" + ");
    let all: Vec<String> = names.iter().chain(&letters).map(|name| format!("\"{name}\"")).collect();
    let named = |kind: &'static str| only(&member).kind(kind).scope(format!("unix: {{ allow: [{}] }}", all.join(", ")));
    let open = |kind: &'static str| named(kind).privileges("delegation");
    let (refused, reached) = ("errno 1\nerrno 1\nok\nok", "ok\nok\nok\nok");
    let cases = [
        ("an agent's", named("agent"), refused, "deny"),
        ("a pipeline's", named("ci"), refused, "deny"),
        ("observed", named("ci").observe(), reached, "would-deny"),
        ("an agent's, and it is allowed", open("agent"), reached, ""),
        ("a pipeline's, and it is allowed", open("ci"), reached, ""),
    ];
    for (what, policy, said, verdict) in cases {
        let (finished, session) = tried(s, &policy, &member, &line)?;
        finished.said(said).context(what)?;
        let answers: Vec<bool> = said.lines().map(|said| said == "ok").collect();
        for ((stream, post), answers) in streams.iter().zip(answers.chunks(2)) {
            let came = [stream.accept().is_ok(), post.recv(&mut [0; 8]).is_ok()];
            ensure!(came == answers, "{what}: at the sockets {came:?} came, the member was told {answers:?}");
        }
        let expected =
            if verdict.is_empty() { Vec::new() } else { vec![format!("{verdict} privilege @/tmp/dbus-*"); 2] };
        ensure!(recorded(s, &session)? == expected, "{what}: recorded {:?}", recorded(s, &session)?);
    }
    // the class alone opens nothing
    let class = only(&member).privileges("delegation");
    tried(s, &class, &member, &line)?.0.said("errno 1\nerrno 1\nerrno 1\nerrno 1").map(drop)
}

/// What lies where schedulers and service managers look is changed by no member, and read by all.
fn folders(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    let mut hosts = Hosts::new();
    let job = "/var/spool/cron/crontabs/root";
    let places = [
        ("/etc/cron.d/job", "/etc/cron.d"),
        (job, "/var/spool/cron"),
        ("/var/spool/at/a0001", "/var/spool/at"),
        ("/etc/systemd/system/x.wants/y.service", "/etc/systemd/system"),
        ("/etc/systemd/system.control/y.service.d/50.conf", "/etc/systemd/system.control"),
        ("/run/systemd/generator.late/y.service", "/run/systemd/generator.late"),
        ("/usr/local/lib/udev/rules.d/50.rules", "/usr/local/lib/udev/rules.d"),
    ];
    for file in places.iter().map(|(file, _)| *file).chain(["/etc/crontab", "/etc/other.d/job"]) {
        hosts.folders(&Path::new(file).parent().unwrap_or_else(|| Path::new("/")).display().to_string())?;
        hosts.file(file)?;
    }
    let acts = |file: &str| {
        ["write", "make", "mkdir", "symlink", "link", "truncate", "chmod", "acl", "unlink", "rename"]
            .map(|act| format!("own-file {act} {file}"))
    };
    let mut all: Vec<(String, &str)> = Vec::new();
    for (file, place) in places {
        all.extend(acts(file).map(|act| (act, place)));
    }
    // beside the table is not in it
    let of_table = ["write", "truncate", "chmod", "unlink", "rename"].map(|act| format!("own-file {act} /etc/crontab"));
    all.extend(of_table.map(|act| (act, "/etc/crontab")));
    let line = all.iter().map(|(act, _)| act.as_str()).collect::<Vec<_>>().join(" + ");
    let expected: Vec<String> = all.iter().map(|(_, place)| format!("deny privilege {place}")).collect();
    for kind in ["ci", "agent"] {
        let (finished, session) = tried(s, &only(&member).kind(kind), &member, &line)?;
        finished.said(&vec!["errno 1"; all.len()].join("\n"))?;
        ensure!(recorded(s, &session)? == expected, "{kind}: recorded {:?}", recorded(s, &session)?);
    }
    ensure!(fs::metadata(job)?.permissions().mode() & 0o777 != 0o700, "the job was changed");
    // into it from elsewhere, and out of it
    let across = "own-file move /etc/other.d/job /etc/cron.d/new + own-file move /etc/cron.d/job /etc/other.d/new";
    tried(s, &only(&member), &member, across)?.0.said("errno 1\nerrno 1")?;
    // another table in the place of the one that was looked at
    fs::write("/etc/crontab.new", "")?;
    fs::rename("/etc/crontab.new", "/etc/crontab")?;
    tried(s, &only(&member), &member, "own-file write /etc/crontab")?.0.said("errno 1")?;
    // reading, and a folder that is nobody's
    let free = "own-file read /etc/cron.d/job + own-file write /etc/other.d/job + own-file make /etc/other.d/job";
    let (finished, session) = tried(s, &only(&member), &member, free)?;
    finished.said("ok\nok\nok")?;
    hosts.0.push("/etc/other.d/job-beside".into());
    ensure!(recorded(s, &session)?.is_empty(), "what is free is recorded");
    let open = only(&member).scope("privileges: { allow: [delegation] }");
    let (finished, session) = tried(
        s,
        &open,
        &member,
        "own-file write /etc/crontab + own-file make /etc/cron.d/job + own-file unlink /etc/cron.d/job",
    )?;
    finished.said("ok\nok\nok")?;
    hosts.0.push("/etc/cron.d/job-beside".into());
    ensure!(recorded(s, &session)?.is_empty(), "what is allowed is recorded");
    let (finished, session) = tried(s, &only(&member).observe(), &member, "own-file write /etc/crontab")?;
    finished.said("ok")?;
    ensure!(recorded(s, &session)? == ["would-deny privilege /etc/crontab"], "observed: {:?}", recorded(s, &session)?);
    Ok(())
}

/// To this host's own port 22, whatever rule allows the address; another port is as ever.
fn login(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let member = s.program("member")?;
    own_network(&[])?;
    let logins = Server::serve(TcpListener::bind(("::", 22))?)?;
    for (address, prefix) in [("127.0.0.1", "127.0.0.0/8"), ("127.9.8.7", "127.0.0.0/8"), ("::1", "::1/128")] {
        let to = std::net::SocketAddr::new(address.parse()?, 22).to_string();
        let policy = |kind: &'static str| only(&member).kind(kind).to("here", prefix, "");
        let line = format!("connect tcp {address} 22");
        for kind in ["agent", "ci"] {
            reach(s, &policy(kind), &member, &line)?.was_refused_to(s, &to, "delegation")?;
            let open = policy(kind).privileges("delegation");
            reach(s, &open, &member, &line)?.was_let_through(s, &to, "here")?;
        }
        reach(s, &policy("operator"), &member, &line)?.was_let_through(s, &to, "here")?;
    }
    // of each address three connects were let through, and nothing else came
    logins.accepted(9)?;
    // by the address that stands for this host
    let any = only(&member).to("any", "0.0.0.0/32", "").to("here", "127.0.0.0/8", "");
    reach(s, &any, &member, "connect tcp 0.0.0.0 22")?.was_refused_to(s, "0.0.0.0:22", "delegation")?;
    logins.accepted(9)?;
    let server = Server::tcp("127.0.0.1")?;
    let here = only(&member).to("here", "127.0.0.0/8", "");
    reach(s, &here, &member, &format!("connect tcp {}", server.words()))?.arrived(s, &server, "here")
}
