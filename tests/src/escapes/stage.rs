//! What the attempts are made against: programs, files, servers, sockets, victims, and the wire; and the words of each
//! attempt with all of these in their places.

use std::{
    cell::RefCell,
    fs,
    io::IoSlice,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::{PermissionsExt as _, chown},
            net::{UnixDatagram, UnixListener},
        },
    },
    path::Path,
};

use nix::{
    pty::openpty,
    sys::socket::{
        AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen, sendmsg, socket,
    },
};

use super::{
    CODE,
    attempt::{Attempt, EVERYBODY, Effect, Family, Twin, Who},
    gifts,
    victim::Victim,
};
use crate::{
    harness::{
        capture::{Capture, Packet, own_network, set},
        launch::User,
        prelude::*,
        sandbox::{OPERATORS, files_below},
        server::Server,
    },
    work::sockets::unix_address,
};

/// The ordinary user.
pub(super) const USER: User = (64_030, OPERATORS);

/// Who makes an attempt, which one it is by its number, and whether it is the twin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) who: Who,
    pub(super) number: usize,
    pub(super) twin: bool,
}

impl Part {
    /// Where it goes: every part to an address of its own, in scope or not.
    fn address(self, family: Family, near: bool) -> IpAddr {
        let who = EVERYBODY.iter().position(|who| *who == self.who).unwrap_or(0) as u8 * 2 + u8::from(self.twin);
        let number = self.number as u8;
        let net = if near { 77 } else { 66 };
        match family {
            Family::Four => Ipv4Addr::new(127, net, who, number + 1).into(),
            Family::Six => {
                Ipv6Addr::new(0xfd00 + u16::from(net), 0, 0, 0, 0, 0, who.into(), u16::from(number) + 1).into()
            }
            Family::Group => Ipv4Addr::new(239, net, who, number + 1).into(),
        }
    }

    /// What its bytes have in them.
    fn text(self) -> String {
        format!("<{}.{}.{}>", self.who.name(), self.number, if self.twin { "twin" } else { "attempt" })
    }
}

/// Everything that attempts are made against.
pub(super) struct Stage<'a> {
    s: &'a Sandbox,
    pub(super) member: String,
    good: String,
    bad: String,
    choosy: String,
    tcp: Server,
    udp: Server,
    capture: Capture,
    packets: RefCell<Vec<Packet>>,
    /// A terminal that nobody sits at.
    terminal: (OwnedFd, OwnedFd),
    sockets: Vec<OwnedFd>,
    victims: RefCell<Vec<(Key, Victim)>>,
    pins: String,
}

/// Who, which attempt, and whether it is the twin.
type Key = (&'static str, usize, bool);

impl<'a> Stage<'a> {
    pub(super) fn new(s: &'a Sandbox, attempts: &[&Attempt]) -> Result<Self> {
        let six = attempts.iter().enumerate().filter(|(_, attempt)| attempt.family == Family::Six);
        let parts = six.flat_map(|(number, _)| parts_of(number));
        let addresses = parts.flat_map(|part| [part.address(Family::Six, true), part.address(Family::Six, false)]);
        let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
        own_network(&addresses.iter().map(String::as_str).collect::<Vec<_>>())?;
        set(gifts::SETTING.0, gifts::SETTING.1)?;
        set("ipv4/ping_group_range", "0 2147483647")?;
        let member = s.program("member")?;
        let made = |name: &str| program(s, name);
        let (good, bad, choosy) = (made("good")?, made("bad")?, made("choosy")?);
        let capture = Capture::new()?;
        let tcp = Server::tcp("::")?;
        let udp = Server::udp_at(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), tcp.port()))?;
        let is_map = |pin: &std::path::PathBuf| pin.ends_with("map_SESSION_STATE");
        let pin = files_below(s.pins()).into_iter().find(is_map).context("there is no pin")?;
        let pty = openpty(None, None)?;
        let mut stage = Self {
            s,
            member,
            good,
            bad,
            choosy,
            tcp,
            udp,
            capture,
            packets: RefCell::default(),
            terminal: (pty.master, pty.slave),
            sockets: Vec::new(),
            victims: RefCell::default(),
            pins: pin.display().to_string(),
        };
        let name = stage.terminal_name()?;
        fs::set_permissions(&name, fs::Permissions::from_mode(0o666))?;
        stage.unix_sockets()?;
        Ok(stage)
    }

    fn terminal_name(&self) -> Result<String> {
        Ok(fs::read_link(format!("/proc/self/fd/{}", self.terminal.1.as_raw_fd()))?.display().to_string())
    }

    /// A name in a folder that only root can write.
    fn place(&self, name: &str) -> String {
        format!("{}/{name}", self.s.bin())
    }

    /// Unix sockets of every kind, in scope (`near`) and not (`far`), and those that pass descriptors on.
    fn unix_sockets(&mut self) -> Result<()> {
        for side in ["near", "far"] {
            let plain = self.place(side);
            self.sockets.push(UnixListener::bind(&plain)?.into());
            let nameless = UnixListener::bind_addr(&unix_address(&self.abstract_name(side))?)?;
            self.sockets.push(nameless.into());
            let packets = self.place(&format!("{side}-packets"));
            let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
            bind(socket.as_raw_fd(), &UnixAddr::new(packets.as_str())?)?;
            listen(&socket, Backlog::new(64)?)?;
            self.sockets.push(socket);
            let datagrams = self.place(&format!("{side}-datagrams"));
            let socket = UnixDatagram::bind(&datagrams)?;
            self.sockets.push(socket.into());
            for path in [plain, packets, datagrams] {
                fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
            }
        }
        let giver = self.place("giver");
        let listener = UnixListener::bind(&giver)?;
        fs::set_permissions(&giver, fs::Permissions::from_mode(0o666))?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(socket) = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) else { continue };
                let (parts, files) = ([IoSlice::new(b"x")], [socket.as_raw_fd()]);
                let passed = [ControlMessage::ScmRights(&files)];
                // who went away gets none
                let _ = sendmsg::<()>(stream.as_raw_fd(), &parts, &passed, MsgFlags::empty(), None);
            }
        });
        let gifts = self.place("gifts");
        gifts::give(UnixListener::bind(&gifts)?);
        fs::set_permissions(&gifts, fs::Permissions::from_mode(0o666))?;
        Ok(())
    }

    fn abstract_name(&self, side: &str) -> String {
        format!("@tipstaff-{side}-{}", std::process::id())
    }

    /// What a member may, whoever it is: the twin of each attempt that has one inside.
    pub(super) fn policy(&self, who: Who) -> Policy {
        let near = ["near", "near-packets", "near-datagrams", "giver", "gifts"].map(|name| self.place(name));
        let (read, operate) = self.agents_sockets();
        let allowed: Vec<String> = near
            .into_iter()
            .chain([self.abstract_name("near"), read, operate])
            .map(|name| format!("\"{name}\""))
            .collect();
        let classes =
            if who == Who::Capable && self.s.tier == Tier::NoLsm { "io-uring, capabilities" } else { "io-uring" };
        Policy::new()
            .allow("member", &self.member)
            .allow("good", &self.good)
            .exec_rule("allow", &format!("{{ path: \"{}\", subcommands: [\"yes\"], id: choosy }}", self.choosy))
            .allow_dir("own", self.own_folder(who))
            .to("near4", "127.77.0.0/16", "")
            .to("near6", "fd4d::/16", "")
            .to("friend4", "127.0.0.1/32", "")
            .to("friend6", "::1/128", "")
            .net("listen: [{ on: 127.77.0.0/16 }]")
            .scope(format!("unix: {{ allow: [{}] }}", allowed.join(", ")))
            .privileges(classes)
    }

    fn agents_sockets(&self) -> (String, String) {
        let at = |name: &str| self.s.runtime().join(name).display().to_string();
        (at("read.sock"), at("operate.sock"))
    }

    /// Programs that are in scope and the user's own.
    fn own_folder(&self, who: Who) -> String {
        format!("{}/own-{}", self.s.bin(), who.name())
    }

    /// Makes what the attempts of `who` are made with, before the session begins: what is written later is out of scope.
    pub(super) fn prepare(&self, who: Who, attempts: &[&Attempt]) -> Result<()> {
        let folder = self.own_folder(who);
        fs::create_dir_all(&folder)?;
        for (number, attempt) in attempts.iter().enumerate() {
            for part in parts_of(number).filter(|part| part.who == who) {
                self.prepare_part(attempt, part)?;
            }
        }
        let owner = if who == Who::User { USER.0 } else { 0 };
        for path in files_below(Path::new(&folder)).into_iter().chain([folder.into()]) {
            chown(path, Some(owner), None)?;
        }
        Ok(())
    }

    fn prepare_part(&self, attempt: &Attempt, part: Part) -> Result<()> {
        let uses = |name: &str| attempt.words.contains(name);
        let paths = self.paths(part);
        if uses("{own}") {
            fs::copy(&self.good, &paths.own)?;
        }
        if uses("{script}") {
            script(&paths.script, &format!("{} --script", self.member), &paths.mark)?;
        }
        if uses("{wrapper}") {
            // the interpreter is given the script's name and what follows: a place for its mark is the fourth word
            script(&paths.wrapper, &format!("{} --work", self.bad), &paths.mark)?;
        }
        if uses("{code}") {
            fs::write(&paths.code, CODE)?;
        }
        if uses("{victim}") || uses("{cell}") {
            let owner = (part.who == Who::User).then_some(USER);
            let key = (part.who.name(), part.number, part.twin);
            self.victims.borrow_mut().push((key, Victim::new(self.s, &self.member, owner)?));
        }
        Ok(())
    }

    fn paths(&self, part: Part) -> Paths {
        let name = format!("{}-{}-{}", part.who.name(), part.number, part.twin);
        let work = self.s.folder().join("work").display().to_string();
        let own = self.own_folder(part.who);
        // the twin's script is in scope
        let scripts = if part.twin { &own } else { &work };
        Paths {
            mark: format!("{work}/mark-{name}"),
            tmp: format!("{work}/tmp-{name}"),
            code: format!("{work}/code-{name}"),
            own: format!("{own}/own-{name}"),
            script: format!("{scripts}/script-{name}"),
            wrapper: format!("{own}/wrapper-{name}"),
        }
    }

    /// The words of an attempt, or of its twin.
    pub(super) fn words(&self, attempt: &Attempt, part: Part) -> String {
        let (paths, inside) = (self.paths(part), attempt.twin == Twin::Inside);
        let near = part.twin && inside;
        let side = if near { "near" } else { "far" };
        let address = part.address(attempt.family, near).to_string();
        let (read, operate) = self.agents_sockets();
        let victim = self.victim(part, |victim| (victim.pid().to_string(), victim.cell()));
        let (victim, cell) = victim.unwrap_or_default();
        let agent = self.s.agent_pid().map(|pid| pid.to_string()).unwrap_or_default();
        let socket = |name: &str| self.place(&format!("{side}{name}"));
        let places = [
            ("program", if near { self.good.clone() } else { self.bad.clone() }),
            ("good", self.good.clone()),
            ("member", self.member.clone()),
            ("choosy", self.choosy.clone()),
            ("mark", paths.mark),
            ("tmp", paths.tmp),
            ("own", paths.own),
            ("script", paths.script),
            ("wrapper", paths.wrapper),
            ("code", paths.code),
            ("text", part.text()),
            ("ip", address),
            ("near", part.address(attempt.family, true).to_string()),
            ("mine", format!("10.66.{}.1", part.number)),
            ("port", self.tcp.port().to_string()),
            ("free", (30_000 + part.number).to_string()),
            ("socket", socket("")),
            ("packets", socket("-packets")),
            ("datagrams", socket("-datagrams")),
            ("abstract", self.abstract_name(side)),
            ("giver", self.place("giver")),
            ("gifts", self.place("gifts")),
            ("read", read),
            ("operate", operate),
            ("elsewhere", self.s.part("elsewhere").path().display().to_string()),
            ("agents-cell", self.s.part("agent").path().display().to_string()),
            ("outsider", std::process::id().to_string()),
            ("agent", agent),
            ("evidence", self.s.evidence_file().display().to_string()),
            ("configuration", self.configuration()),
            ("pin", self.pins.clone()),
            ("terminal", self.terminal_name().unwrap_or_default()),
            ("victim", victim),
            ("cell", cell),
        ];
        let words = attempt.twin_words.filter(|_| part.twin).unwrap_or(attempt.words).to_owned();
        places.iter().fold(words, |words, (name, value)| words.replace(&format!("{{{name}}}"), value))
    }

    fn configuration(&self) -> String {
        self.s.runtime().with_file_name("tipstaff.toml").display().to_string()
    }

    fn victim<T>(&self, part: Part, ask: impl FnOnce(&Victim) -> T) -> Option<T> {
        let victims = self.victims.borrow();
        let key = (part.who.name(), part.number, part.twin);
        victims.iter().find(|(own, _)| *own == key).map(|(_, victim)| ask(victim))
    }

    /// Where its mark is to be.
    pub(super) fn mark(&self, part: Part) -> String {
        self.paths(part).mark
    }

    /// Where its process id is to be.
    pub(super) fn pid_file(&self, part: Part) -> String {
        self.paths(part).tmp
    }

    /// The times that left for the address of an attempt: the last eight bytes of each packet that carries any.
    pub(super) fn stamps(&self, attempt: &Attempt, part: Part) -> Vec<u64> {
        let address = part.address(attempt.family, true);
        let packets = self.packets.borrow();
        let sent = packets.iter().filter(|packet| packet.to == address && packet.payload >= 8);
        sent.filter_map(|packet| packet.bytes.last_chunk()).map(|stamp| u64::from_be_bytes(*stamp)).collect()
    }

    /// Takes what has left so far.
    pub(super) fn look(&self) -> Result<()> {
        self.packets.borrow_mut().extend(self.capture.left()?);
        Ok(())
    }

    /// Whether what was attempted came to be.
    pub(super) fn came_about(&self, attempt: &Attempt, part: Part, answer: &str) -> Result<bool> {
        Ok(match attempt.effect {
            Effect::Mark => Path::new(&self.paths(part).mark).exists(),
            Effect::Said => answer == "ok" || answer == attempt.done,
            Effect::Victim => self.victim(part, Victim::is_changed).context("there is no victim")?,
            Effect::Wire => self.went_out(attempt, part),
        })
    }

    fn went_out(&self, attempt: &Attempt, part: Part) -> bool {
        let near = part.twin && attempt.twin == Twin::Inside;
        let (address, text) = (part.address(attempt.family, near), part.text());
        let group = match address {
            IpAddr::V4(group) if attempt.family == Family::Group => Some(group.octets()),
            _ => None,
        };
        let hits = |packet: &Packet| {
            packet.to == address
                || packet.has(&text)
                || group.is_some_and(|group| packet.bytes.windows(4).any(|part| part == group))
        };
        let arrived = |server: &Server| {
            let bytes = server.received();
            bytes.windows(text.len()).any(|part| part == text.as_bytes())
        };
        self.packets.borrow().iter().any(hits) || arrived(&self.tcp) || arrived(&self.udp)
    }

    /// Nobody and nothing of the stage is left.
    pub(super) fn clear(self) -> Result<()> {
        for (_, victim) in self.victims.into_inner() {
            victim.end()?;
        }
        drop(self.sockets);
        Ok(())
    }
}

struct Paths {
    mark: String,
    tmp: String,
    own: String,
    script: String,
    wrapper: String,
    code: String,
}

/// Attempt and twin of everybody.
fn parts_of(number: usize) -> impl Iterator<Item = Part> {
    EVERYBODY.into_iter().flat_map(move |who| [false, true].map(|twin| Part { who, number, twin }))
}

/// A script that leaves the mark.
fn script(path: &str, interpreter: &str, mark: &str) -> Result<()> {
    fs::write(path, format!("#!{interpreter}\nmark {mark}\n"))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// The smallest program that makes the file which its third argument names (`--work mark FILE`).
fn program(s: &Sandbox, name: &str) -> Result<String> {
    if !cfg!(target_arch = "x86_64") {
        return s.program(name);
    }
    let path = format!("{}/{name}", s.bin());
    fs::create_dir_all(s.bin())?;
    // each has a byte of its own at its end
    fs::write(&path, [super::elf::PROGRAM, name.as_bytes()].concat())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}
