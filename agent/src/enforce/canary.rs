//! The canary: a session of its own whose child really tries what is forbidden. A control counts as enforced only when
//! the kernel refused it; that a program is attached proves nothing (with `bpf` missing from the active LSM list LSM
//! programs attach and never run).

use std::{
    ffi::OsString,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::{
        fd::{AsFd as _, BorrowedFd},
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr as UnixAddress, UnixListener, UnixStream},
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::Signal,
        socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
    },
};
use tipstaff_common::{
    label::SessionRef,
    rule::{ALLOW, DENY, PortRule},
    session::{Budgets, MODE_ENFORCE, PolicyEntry, SessionConfig},
    socket::SOCKET_UNIX,
};

use super::SessionCgroup;
use crate::{
    kernel::{Kernel, KernelError, Revision, Tier, boot_now, open_pidfd},
    policy::Shed,
    shed,
};

/// Hidden verb that makes this binary the canary's child.
pub const VERB: &str = "canary-child";
/// Argument of the program that must not run.
const FORBIDDEN: &str = "canary-forbidden";
/// What it prints if it does.
const RAN: &str = "ran";
/// The canary's session.
const SLOT: u32 = 0;
/// How long the clock may take, which ticks a hundred times a second here.
const PATIENCE: Duration = Duration::from_secs(2);
const LIFETIME: Duration = Duration::from_secs(20);
/// Nothing listens there, and nothing needs to: the refusal comes first.
const PORT: u16 = 9;

/// What the canary tries beyond its session.
pub const PRIVILEGES: [&str; 4] = ["signal", "ptrace", "bpf", "mount"];
/// What it tries that takes no capability, once its calls are refused.
pub const CALL: &str = "keyctl";
/// Has the child lay down what a session's first process does where no kernel program judges privileges.
const SHED: &str = "canary-shed";
/// `BPF_PROG_GET_NEXT_ID`
const PROGRAM_AFTER: u32 = 11;

/// `KEYCTL_GET_KEYRING_ID`, `KEY_SPEC_PROCESS_KEYRING`
const KEYCTL_GET_KEYRING_ID: i32 = 0;
const PROCESS_KEYRING: i32 = -2;

/// What happened to each thing the canary tried: an errno, 0 for "it worked", or a word.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Song {
    lines: Vec<(String, String)>,
}

impl Song {
    /// The outcome of one attempt.
    #[must_use]
    pub fn of(&self, attempt: &str) -> &str {
        self.lines.iter().find(|(name, _)| name == attempt).map_or("not tried", |(_, outcome)| outcome)
    }

    /// True where the attempt failed with `EPERM`.
    #[must_use]
    pub fn denied(&self, attempt: &str) -> bool {
        self.of(attempt) == libc::EPERM.to_string()
    }

    /// True where the forbidden program did not run, in the way of the tier.
    #[must_use]
    pub fn exec_stopped(&self, tier: Tier) -> bool {
        match tier {
            Tier::Full => self.denied("exec"),
            Tier::NoLsm => self.of("exec") == "killed",
        }
    }

    /// With these outcomes, for tests.
    #[cfg(test)]
    pub(crate) fn with(lines: &[(&str, &str)]) -> Self {
        Self { lines: lines.iter().map(|(name, outcome)| ((*name).into(), (*outcome).into())).collect() }
    }
}

/// Runs the canary in the loaded programs. `from`: a cgroup in which its socket from before is made; none: the agent's own.
///
/// # Errors
/// The canary could not be run: that is no proof either way.
pub fn prove(kernel: &mut Kernel, root: &Path, from: Option<&Path>) -> Result<Song, KernelError> {
    let name = format!("canary-{}", std::process::id());
    let cgroup = SessionCgroup::create(root, &name).map_err(KernelError::file("make cgroup", root.join(&name)))?;
    let song = sing(kernel, &cgroup, from);
    cgroup.kill().map_err(KernelError::file("kill cgroup", cgroup.path()))?;
    let removed = cgroup.remove_patiently().map_err(KernelError::file("remove cgroup", cgroup.path()));
    let song = song?;
    removed?;
    Ok(song)
}

fn sing(kernel: &mut Kernel, cgroup: &SessionCgroup, from: Option<&Path>) -> Result<Song, KernelError> {
    let failed = |what: &'static str| KernelError::file(what, "/proc/self/exe");
    let name = format!("tipstaff-canary-{}", std::process::id());
    let address = UnixAddress::from_abstract_name(&name).map_err(failed("name a socket for"))?;
    // what the child must not reach: it is here, outside the canary's session
    let _listener = UnixListener::bind_addr(&address).map_err(failed("listen for the canary from"))?;
    let mut child = start(&name, kernel.tier()).map_err(failed("start the canary from"))?;
    let outcome = tell(kernel, (cgroup, from), &mut child);
    let _ = child.kill();
    child.wait().map_err(failed("wait for the canary from"))?;
    outcome
}

fn start(socket: &str, tier: Tier) -> std::io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg0("tipstaff")
        .arg(VERB)
        .args((tier == Tier::NoLsm).then_some(SHED))
        .arg(socket)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

/// Labels the child, lets it try, ends its session under it, lets it try once more.
fn tell(
    kernel: &mut Kernel,
    (cgroup, from): (&SessionCgroup, Option<&Path>),
    child: &mut Child,
) -> Result<Song, KernelError> {
    let failed = |what: &'static str| KernelError::file(what, "the canary");
    let generation = u32::try_from(boot_now() >> 20 & 0x7fff_ffff).unwrap_or(1).max(1);
    let session = SessionRef { slot: SLOT, generation };
    // beside those of adopted sessions, which count from 1
    let revision = generation | 1 << 31;
    install(kernel, revision)?;
    let deadline = boot_now() + u64::try_from(LIFETIME.as_nanos()).unwrap_or(u64::MAX);
    // one flow is let through, a second would be one too many
    let budgets = Budgets { connects: 1, ..Budgets::default() };
    let config = SessionConfig { mode: MODE_ENFORCE, policy: SLOT, deadline, budgets, ..SessionConfig::default() };
    kernel.begin(session, config, cgroup.id())?;
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(failed("talk to")(std::io::Error::other("no pipes")));
    };
    let mut output = BufReader::new(output);
    // a parent goes on before its child's exec is over (vfork): labelled too early, the child is judged for that exec
    let mut song = Song::default();
    if let Some(from) = from {
        fs::write(from.join("cgroup.procs"), child.id().to_string()).map_err(failed("move"))?;
    }
    verse(&mut input, &mut output, &mut song).map_err(failed("listen to"))?;
    let process = open_pidfd(child.id()).map_err(failed("open"))?;
    kernel.label(process.as_fd(), session)?;
    cgroup.take(child.id()).map_err(failed("move"))?;
    verse(&mut input, &mut output, &mut song).map_err(failed("listen to"))?;
    kernel.mark_ended(session)?;
    verse(&mut input, &mut output, &mut song).map_err(failed("listen to"))?;
    // it computes now, and asks the kernel for nothing any more
    input.write_all(b"\n").map_err(failed("talk to"))?;
    // only now: before, it would have killed the child while it still had something to say
    kernel.arm_clock_to_prove()?;
    let killed = ticked(child, process.as_fd());
    kernel.disarm_clock(None)?;
    song.lines.push(("spin".into(), killed.map_err(failed("wait for"))?));
    kernel.release(&[(session, cgroup.id())])?;
    kernel.uninstall(SLOT, revision)?;
    Ok(song)
}

/// Lets the child go on, and reads what it says until its next stop.
fn verse(input: &mut ChildStdin, output: &mut BufReader<ChildStdout>, song: &mut Song) -> std::io::Result<()> {
    input.write_all(b"\n")?;
    listen(output, song)
}

/// Reads what the child says until its next stop.
fn listen(output: &mut BufReader<ChildStdout>, song: &mut Song) -> std::io::Result<()> {
    loop {
        let mut line = String::new();
        if output.read_line(&mut line)? == 0 {
            return Err(std::io::Error::other("it died before it was done"));
        }
        match line.trim_end().split_once(' ') {
            Some((name, outcome)) => song.lines.push((name.into(), outcome.into())),
            None => return Ok(()),
        }
    }
}

/// What became of the child that only computes: the clock must kill it.
fn ticked(child: &mut Child, process: BorrowedFd<'_>) -> std::io::Result<String> {
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    if poll(&mut [PollFd::new(process, PollFlags::POLLIN)], timeout)? == 0 {
        return Ok("lived on".into());
    }
    let status = child.wait()?;
    Ok(if status.signal() == Some(libc::SIGKILL) { "killed".into() } else { format!("ended with {status}") })
}

/// Rules that deny nearly everything.
fn install(kernel: &mut Kernel, revision: u32) -> Result<(), KernelError> {
    let to_self = [datagrams_to_self()];
    let net = [(128, Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets(), &to_self[..])];
    let rules = Revision { exec: &[], net: &net, listen: &[], inbound: &[], unix: &[], entry: deny_all(revision) };
    kernel.install(SLOT, &rules, || ())
}

const fn deny_all(revision: u32) -> PolicyEntry {
    PolicyEntry {
        revision,
        exec_default: DENY,
        net_default: DENY,
        flags: 0,
        listen_default: DENY,
        inbound_default: ALLOW,
        unix_default: DENY,
        sockets: SOCKET_UNIX,
        privileges: 0,
        neighbours: 0,
    }
}

/// Allows UDP to 127.0.0.1, so that there is an open flow to be silenced.
fn datagrams_to_self() -> PortRule {
    let protocol = u8::try_from(libc::IPPROTO_UDP).unwrap_or(17);
    let verdict = u8::try_from(ALLOW).unwrap_or(0);
    PortRule { low: 1, high: u16::MAX, protocol, verdict, rule: 0 }
}

/// The child's side: tries one thing after the other and says what came of it. Waits for a line before each part.
///
/// # Errors
/// Its pipes are gone, or the loopback interface is not there.
pub fn child(arguments: &[OsString]) -> std::io::Result<()> {
    if arguments.iter().any(|a| a == FORBIDDEN) {
        println!("{RAN}");
        return Ok(());
    }
    // at last it computes and hears nothing any more: it goes with an agent that is killed then
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let mut input = std::io::stdin().lock();
    let mut line = [0u8; 1];
    input.read_exact(&mut line)?;
    // made before it is labelled, and where no session is
    let before = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    privileges("-before");
    println!();
    input.read_exact(&mut line)?;
    say("connect4", errno(TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)))));
    say("connect6", errno(TcpStream::connect(SocketAddr::from((Ipv6Addr::LOCALHOST, PORT)))));
    say("send4", errno(datagram(Ipv4Addr::UNSPECIFIED.into(), (Ipv4Addr::new(127, 0, 0, 2), PORT).into())));
    say("send6", errno(datagram(Ipv6Addr::UNSPECIFIED.into(), (Ipv6Addr::LOCALHOST, PORT).into())));
    say("bind4", errno(UdpSocket::bind((Ipv4Addr::LOCALHOST, PORT))));
    say("bind6", errno(UdpSocket::bind((Ipv6Addr::LOCALHOST, PORT))));
    say("crossed", errno(before.send_to(b"1", (Ipv4Addr::LOCALHOST, PORT))));
    say("raw", make(AddressFamily::Inet));
    say("frames", make(AddressFamily::Packet));
    let name = arguments.iter().rfind(|a| *a != VERB).map_or(&[][..], |name| name.as_bytes());
    let unix = UnixAddress::from_abstract_name(name).and_then(|to| UnixStream::connect_addr(&to));
    say("unix", errno(unix));
    if arguments.iter().any(|argument| argument == SHED) {
        // after what root alone could try: what refuses that is not to be this
        let apart = shed::landlock_keeps_signals();
        let all = Shed { apart, ..Shed::of(0, 0) };
        say("shed", shed::lay_down(&all).map_or_else(|error| error.to_string(), |()| "0".into()));
    }
    privileges("");
    say("exec", try_exec());
    let receiver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    say("flow", errno(sender.connect(receiver.local_addr()?).and_then(|()| sender.send(b"1"))));
    say("budget", errno(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.connect(receiver.local_addr()?)));
    println!();
    input.read_exact(&mut line)?;
    say("packet", errno(sender.send(b"2")));
    println!();
    input.read_exact(&mut line)?;
    loop {
        std::hint::spin_loop();
    }
}

fn say(name: &str, outcome: String) {
    println!("{name} {outcome}");
}

/// What a process of root can do and a member cannot; none of it does anything where it is let go. `when` tells the attempts
/// of before the session, which must not fail so, from those in it.
fn privileges(when: &str) {
    for attempt in PRIVILEGES {
        say(&format!("{attempt}{when}"), privilege(attempt));
    }
    say(&format!("{CALL}{when}"), privilege(CALL));
}

fn privilege(attempt: &str) -> String {
    let agent = nix::unistd::getppid().as_raw();
    // SAFETY: the pointers are to locals or null, and hold as long as the calls.
    let result = unsafe {
        match attempt {
            // who does not wait for it does not notice it
            "signal" => libc::c_long::from(libc::kill(agent, libc::SIGURG)),
            "ptrace" => {
                let mut byte = 0u8;
                let here = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
                // an address that nothing is at: who may look is told so
                let there = libc::iovec { iov_base: std::ptr::without_provenance_mut(16), iov_len: 1 };
                libc::process_vm_readv(agent, &raw const here, 1, &raw const there, 1, 0) as libc::c_long
            }
            "bpf" => {
                let mut next = [0u32; 4];
                libc::syscall(libc::SYS_bpf, PROGRAM_AFTER, next.as_mut_ptr(), size_of_val(&next))
            }
            // the number of its own keyring, which there need not be
            CALL => libc::syscall(libc::SYS_keyctl, KEYCTL_GET_KEYRING_ID, PROCESS_KEYRING, 0),
            // both at once are no propagation
            _ => {
                let (none, flags) = (std::ptr::null(), libc::MS_PRIVATE | libc::MS_SHARED);
                libc::c_long::from(libc::mount(none, c"/".as_ptr(), none, flags, none.cast()))
            }
        }
    };
    errno(if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) })
}

/// Tries to make a socket that no address limits.
fn make(family: AddressFamily) -> String {
    let protocol = SockProtocol::Udp;
    let made = match family {
        AddressFamily::Inet => socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol),
        _ => socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, None),
    };
    errno(made.map_err(std::io::Error::from))
}

fn errno<T>(result: std::io::Result<T>) -> String {
    match result {
        Ok(_) => "0".into(),
        Err(error) => error.raw_os_error().map_or_else(|| error.to_string(), |code| code.to_string()),
    }
}

fn datagram(from: std::net::IpAddr, to: SocketAddr) -> std::io::Result<usize> {
    UdpSocket::bind((from, 0))?.send_to(b"1", to)
}

/// Tries to run this very binary: no rule names it.
fn try_exec() -> String {
    match Command::new("/proc/self/exe").args([VERB, FORBIDDEN]).stdin(Stdio::null()).output() {
        Err(error) => error.raw_os_error().map_or_else(|| error.to_string(), |code| code.to_string()),
        Ok(output) if output.stdout.starts_with(RAN.as_bytes()) => RAN.into(),
        Ok(output) if output.status.signal() == Some(libc::SIGKILL) => "killed".into(),
        Ok(output) => format!("ended with {}", output.status),
    }
}
