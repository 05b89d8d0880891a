//! From the kernel's records to evidence, and the running counts of a session.

use std::{fs, net::SocketAddr, os::fd::AsFd as _, path::Path};

use tipstaff_common::{
    event::{self, Header, VIA_CONNECT},
    label::SessionRef,
    privilege::PRIVILEGE_DELEGATION,
    rule,
};
use tracing::{debug, warn};

use super::{Engine, LAST_VERDICTS, Live, Note, complain, now};
use crate::{
    api::wire,
    enforce::{cgroup_of, protocol_name, step_out},
    evidence::{Act, Body, Connect, Exec, Exit, FileRef, Fork, Move, Privilege, Socket, Text, Unix, Verdict, Via},
    kernel::{
        kill_pidfd, open_pidfd,
        ring::{self, Event},
    },
    policy::{delegates, privilege_name, reason_name},
    session::{Mode, SessionId},
};

/// Bytes of arguments that a record of an exec holds; the kernel keeps no more.
const ARGUMENTS: usize = tipstaff_common::limits::ARG_BYTES;
/// Where resolvers listen.
const DNS: u16 = 53;

impl Engine {
    /// Takes one record: counts it for its session and writes it into the evidence.
    pub(super) fn take(&mut self, event: &Event) {
        let header = *event.header();
        if matches!(event, Event::Move(_)) && header.tgid == std::process::id() {
            // of whichever session, also one that is over
            complain("leaving a session's cgroup", step_out(&self.parts.root.path));
        }
        let found = self
            .sessions
            .iter_mut()
            .find(|(_, s)| s.reference.slot == header.slot && s.reference.generation == header.generation);
        let Some((id, session)) = found else {
            // the canary's, or of a session whose end is written already: it was counted there as lost
            debug!("a record of no live session: slot {} kind {}", header.slot, header.kind);
            return;
        };
        if self.written_already.take(*id, header.sequence) {
            return;
        }
        session.count(&header, event);
        let within = session.start.within.map(|_| *id);
        let body = body(*id, session, event);
        let moved = matches!(event, Event::Move(moved) if moved.joined == 0)
            && (session.rules.moved_ends || session.machine.is_still());
        let refused = matches!(header.verdict, rule::DENY | rule::KILL) && session.rules.ends_at(&header);
        let began = matches!(event, Event::Exec(_)) && header.tgid == session.first_process.pid;
        let laid_down = session.to_lay_down.take_if(|_| began);
        let doomed = (header.verdict == rule::KILL).then(|| doomed(event));
        let (id, reference, cgroup) = (*id, session.reference, session.cgroup.path().to_owned());
        self.append(&body);
        if let Some(inner) = within {
            self.record_for_outer(inner, &header);
        }
        self.maybe_replaced(event);
        self.see_namespace(id, event);
        if let Event::Move(joins) = event
            && joins.joined != 0
        {
            self.label_threads(header.tgid);
        }
        if moved {
            // by a note: what ends a session reads the rings, which are being read
            let _ = self.parts.notes.send(Note::Moved(id));
        }
        if refused {
            let _ = self.parts.notes.send(Note::Refused(id));
        }
        if let Some(shed) = laid_down {
            self.see_laid_down(id, &shed);
        }
        if let Some(pid) = doomed {
            self.see_to(pid, reference, &cgroup);
        }
    }

    /// A process that was moved into a session's cgroup: the kernel told of its first thread only.
    fn label_threads(&mut self, process: u32) {
        let threads = fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count);
        // who is born of a thread without a label is labelled at its birth all the same, by the first thread's
        if threads > 1
            && let Some(walk) = complain("labelling threads", self.parts.kernel.label_heirs())
            && walk.failed > 0
        {
            warn!("{} threads cannot be labelled: the kernel has no room for more", walk.failed);
        }
    }

    /// A kill that the kernel could not do itself: `bpf_send_signal` reaches the task that runs, never its child.
    fn see_to(&mut self, pid: u32, session: SessionRef, cgroup: &Path) {
        // gone already is what was wanted
        let Ok(process) = open_pidfd(pid) else { return };
        let labelled = complain("reading a label", self.parts.kernel.label_of(process.as_fd())).flatten();
        let inside = || cgroup_of(pid, &self.parts.mount).is_ok_and(|own| own.starts_with(cgroup));
        if labelled == Some(session) || (labelled.is_none() && inside()) {
            let killed = kill_pidfd(process.as_fd());
            let gone = |e: &std::io::Error| e.raw_os_error() == Some(libc::ESRCH);
            complain("killing a member", killed.or_else(|e| if gone(&e) { Ok(()) } else { Err(e) }));
        }
    }
}

/// The process that a verdict of kill is on.
fn doomed(event: &Event) -> u32 {
    match event {
        Event::Fork(fork) => fork.child_tgid,
        other => other.header().tgid,
    }
}

impl Live {
    fn count(&mut self, header: &Header, event: &Event) {
        self.doings.record(header);
        self.last_seen.record(header);
        if let Some(count) = self.consumed.get_mut(usize::from(header.kind)) {
            *count += 1;
        }
        // one that ended by itself just before may be read only now
        if let Event::Exit(exit) = event
            && exit.code & 0x7f == libc::SIGKILL.cast_unsigned()
        {
            self.confirm(header, ring::name(exit));
        }
        if header.verdict == rule::ALLOW {
            return;
        }
        self.denied += 1;
        self.crossed.see(event);
        if self.verdicts.len() == LAST_VERDICTS {
            self.verdicts.pop_front();
        }
        self.verdicts.push_back(wire::Verdict {
            time: now().back_to(header.time).time.to_string(),
            kind: ring::kind_name(header.kind).unwrap_or("unknown").into(),
            pid: header.tgid,
            what: what(event),
            verdict: verdict(header).to_string(),
            rule: rule(event, |code| self.plan.rule_name(code).to_owned()),
            remedy: remedy(event).map(str::to_owned),
        });
    }
}

impl Live {
    /// A process that was killed once the session was over, by a kernel program and not by a round of the end: its end
    /// is a receipt too.
    fn confirm(&mut self, header: &Header, name: &[u8]) {
        // records are read later than what they tell of: one of a process that ended by itself before may come now
        let over_since =
            self.ending.map_or(u64::MAX, |ending| ending.marked_boot_ns).min(self.machine.armed().at_boot_ns);
        let over = header.time >= over_since;
        let process = header.tgid == header.tid;
        if over && process && self.machine.mode() == Mode::Enforce && !self.sweep.killed.contains_key(&header.tgid) {
            self.confirmed.insert(header.tgid, name.to_vec());
        }
    }
}

/// The program or address that a record is about.
fn what(event: &Event) -> String {
    match event {
        Event::Exec(exec) => Text::from(ring::path(exec)).to_string(),
        Event::Connect(connect) => SocketAddr::new(ring::address(connect), connect.port).to_string(),
        Event::Fork(fork) => format!("task {}", fork.child_tid),
        Event::Unix(unix) => unix_name(unix).to_string(),
        Event::Socket(socket) => format!("{} {}", act(socket), family(socket)),
        Event::Privilege(tried) => match (tried.target, place(tried)) {
            (0, None) => privilege_name(tried.class).to_owned(),
            (0, Some(place)) => format!("{} {place}", privilege_name(tried.class)),
            (target, _) => format!("{} process {target}", privilege_name(tried.class)),
        },
        Event::Exit(_) | Event::Move(_) => String::new(),
    }
}

/// What a record's rule is called. A query for a name that no rule lets through is called by what it is, because it is
/// the first thing that a new policy meets.
fn rule(event: &Event, rule_name: impl Fn(u32) -> String) -> String {
    match event {
        Event::Connect(connect) if is_query(connect) && connect.header.rule == rule::REASON_DEFAULT => {
            reason_name(rule::REASON_DNS).to_owned()
        }
        _ => rule_name(event.header().rule),
    }
}

/// Whether somebody was refused to ask for a name.
fn is_query(connect: &event::Connect) -> bool {
    let out = matches!(connect.via, VIA_CONNECT | event::VIA_SEND | event::VIA_PACKET);
    let protocol = i32::from(connect.protocol);
    let asks = connect.port == DNS && matches!(protocol, libc::IPPROTO_TCP | libc::IPPROTO_UDP);
    out && asks && connect.header.verdict != rule::ALLOW
}

/// What to add to the policy, where no rule of it was meant.
fn remedy(event: &Event) -> Option<&'static str> {
    let Event::Connect(connect) = event else { return None };
    match connect.header.rule {
        rule::REASON_DEFAULT if is_query(connect) => Some("add `resolver: allow` to spec.scope.net"),
        rule::REASON_METADATA if is_query(connect) => {
            Some("add `resolver: allow` to spec.scope.net, if it is the host's resolver")
        }
        rule::REASON_METADATA => Some("add a rule with `to: metadata` to spec.scope.net.allow"),
        rule::REASON_DELEGATION => Some("add delegation to spec.scope.privileges.allow, if members may log in here"),
        _ => None,
    }
}

fn verdict(header: &Header) -> Verdict {
    match header.verdict {
        rule::ALLOW => Verdict::Allow,
        rule::KILL => Verdict::Kill,
        rule::WOULD_DENY => Verdict::WouldDeny,
        _ => Verdict::Deny,
    }
}

fn body(session: SessionId, live: &Live, event: &Event) -> Body {
    translate(session, event, |code| live.plan.rule_name(code).to_owned())
}

/// The record of evidence for a record of the kernel; `rule_name` names its rule.
pub(super) fn translate(session: SessionId, event: &Event, rule_name: impl Fn(u32) -> String) -> Body {
    let header = event.header();
    let (seq, at_boot_ns) = (header.sequence, header.time);
    let (pid, tid, uid) = (header.tgid, header.tid, header.uid);
    let (verdict, rule) = (verdict(header), rule(event, rule_name));
    match event {
        Event::Fork(fork) => Body::Fork(Fork { session, seq, at_boot_ns, pid, child: fork.child_tid, verdict, rule }),
        Event::Exit(exit) => Body::Exit(Exit { session, seq, at_boot_ns, pid, status: exit.code }),
        Event::Move(moved) => {
            Body::Move(Move { session, seq, at_boot_ns, pid, cgroup: moved.cgroup, joined: moved.joined != 0 })
        }
        Event::Exec(exec) => {
            let (arguments, more) = ring::arguments(exec);
            let (args, cut) = Text::list(arguments, ARGUMENTS);
            let file = FileRef { device: exec.file.device, inode: exec.file.inode, generation: exec.file.generation };
            let (path, args_cut) = (ring::path(exec).into(), cut || more);
            let late = exec.late != 0;
            Body::Exec(Exec {
                session,
                seq,
                at_boot_ns,
                pid,
                tid,
                uid,
                path,
                args,
                args_cut,
                file,
                verdict,
                rule,
                late,
            })
        }
        Event::Connect(connect) => {
            let via = via(connect.via);
            let protocol = protocol_name(connect.protocol.into());
            let to = SocketAddr::new(ring::address(connect), connect.port);
            let remedy = remedy(event).map(str::to_owned);
            Body::Connect(Connect { session, seq, at_boot_ns, pid, tid, uid, to, protocol, via, verdict, rule, remedy })
        }
        Event::Socket(socket) => {
            let event::Socket { family, kind, protocol, level, option, .. } = *socket;
            let act = act(socket);
            Body::Socket(Socket {
                session,
                seq,
                at_boot_ns,
                pid,
                tid,
                uid,
                act,
                family,
                kind,
                protocol,
                level,
                option,
                verdict,
                rule,
            })
        }
        Event::Unix(unix) => {
            let file = FileRef { device: unix.file.device, inode: unix.file.inode, generation: unix.file.generation };
            let (to, via) = (unix_name(unix), via(u8::try_from(unix.via).unwrap_or(VIA_CONNECT)));
            Body::Unix(Unix { session, seq, at_boot_ns, pid, tid, uid, to, file, via, verdict, rule })
        }
        Event::Privilege(tried) => {
            let class = privilege_name(tried.class).to_owned();
            let (target, place) = ((tried.target != 0).then_some(tried.target), place(tried).map(str::to_owned));
            let detail = if place.is_some() { 0 } else { tried.detail };
            Body::Privilege(Privilege {
                session,
                seq,
                at_boot_ns,
                pid,
                tid,
                uid,
                class,
                target,
                place,
                detail,
                verdict,
                rule,
            })
        }
    }
}

/// Who was to start programs outside of the session.
fn place(tried: &event::Privilege) -> Option<&'static str> {
    (tried.class == PRIVILEGE_DELEGATION).then(|| delegates::place(tried.detail)).flatten()
}

fn via(code: u8) -> Via {
    match code {
        event::VIA_SEND => Via::Send,
        event::VIA_BIND => Via::Bind,
        event::VIA_LISTEN => Via::Listen,
        event::VIA_ACCEPT => Via::Accept,
        event::VIA_PACKET => Via::Packet,
        _ => Via::Connect,
    }
}

fn act(socket: &event::Socket) -> Act {
    match socket.act {
        event::ACT_CREATE => Act::Create,
        event::ACT_RECEIVE => Act::Receive,
        event::ACT_OPTION => Act::Option,
        _ => Act::Use,
    }
}

/// Family, type and protocol of a socket, for people.
fn family(socket: &event::Socket) -> String {
    let name = match i32::from(socket.family) {
        libc::AF_UNIX => "unix".into(),
        libc::AF_INET => "inet".into(),
        libc::AF_INET6 => "inet6".into(),
        libc::AF_NETLINK => "netlink".into(),
        libc::AF_PACKET => "packet".into(),
        libc::AF_VSOCK => "vsock".into(),
        other => format!("family {other}"),
    };
    let option = if socket.act == event::ACT_OPTION {
        format!(" option {}/{}", socket.level, socket.option)
    } else {
        String::new()
    };
    format!("{name} type {} protocol {}{option}", socket.kind, socket.protocol)
}

/// What a unix socket is bound to, with `@` before an abstract name.
fn unix_name(unix: &event::Unix) -> Text {
    let name = ring::socket_name(unix);
    match name.split_first() {
        Some((0, rest)) => Text::from([b"@", rest].concat().as_slice()),
        // a caller may count the 0 that ends a path as part of it
        _ => Text::from(name.split(|byte| *byte == 0).next().unwrap_or_default()),
    }
}
