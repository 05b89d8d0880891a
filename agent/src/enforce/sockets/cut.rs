//! The cut: a session's sockets are found, destroyed, and looked for once more. What is written about each is what the
//! kernel said, not what was asked of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
};

use tracing::warn;

use super::{
    namespaces::{Namespaces, Registry},
    wire::Socket,
};
use crate::kernel::boot_now;

/// Protocols with sockets that can be open, by their names in `/proc/net/protocols`: asking for one that is not there
/// would make the kernel load it.
const PROTOCOLS: [(&str, i32); 6] = [
    ("TCP", libc::IPPROTO_TCP),
    ("UDP", libc::IPPROTO_UDP),
    ("UDP-Lite", libc::IPPROTO_UDPLITE),
    ("SCTP", libc::IPPROTO_SCTP),
    ("DCCP", libc::IPPROTO_DCCP),
    ("RAW", libc::IPPROTO_RAW),
];
const FAMILIES: [i32; 2] = [libc::AF_INET, libc::AF_INET6];

/// A socket that was to be cut, and what came of it.
#[derive(Debug)]
pub struct Cut {
    /// The socket as it was before.
    pub socket: Socket,
    /// Inode number of its network namespace.
    pub namespace: u64,
    /// When, on `CLOCK_BOOTTIME`.
    pub when: u64,
    /// Why the kernel did not destroy it; none where it did.
    pub failure: Option<io::Error>,
    /// It is not listed any more.
    pub gone: bool,
}

/// The sockets of one session: where they are looked for, and those that were cut.
#[derive(Debug, Default)]
pub struct Flows {
    /// Where its members were seen.
    pub namespaces: Namespaces,
    cut: BTreeMap<u64, Cut>,
}

impl Flows {
    /// Destroys the sockets that were made in one of these cgroups and that `fails` is true for.
    pub fn cut(&mut self, registry: &mut Registry, cgroups: &[u64], fails: impl Fn(&Socket) -> bool) {
        for (namespace, socket) in self.list(registry, cgroups) {
            if !self.cut.contains_key(&socket.cookie) && fails(&socket) {
                self.destroy(namespace, socket);
            }
        }
    }

    /// Looks again. What is new is destroyed too, and then looked for.
    pub fn confirm(&mut self, registry: &mut Registry, cgroups: &[u64], fails: impl Fn(&Socket) -> bool) {
        let mut left = self.list(registry, cgroups);
        let news: Vec<(u64, Socket)> =
            left.iter().filter(|(_, s)| !self.cut.contains_key(&s.cookie) && fails(s)).cloned().collect();
        if !news.is_empty() {
            news.into_iter().for_each(|(namespace, socket)| self.destroy(namespace, socket));
            left = self.list(registry, cgroups);
        }
        let left: BTreeMap<u64, &Socket> = left.iter().map(|(_, socket)| (socket.cookie, socket)).collect();
        for (cookie, cut) in &mut self.cut {
            // a datagram socket that was destroyed stays open, bound to its port and connected to nobody
            cut.gone = left.get(cookie).is_none_or(|now| now.remote != cut.socket.remote);
        }
    }

    /// What was cut since the last time that this was asked.
    pub fn take(&mut self) -> Vec<Cut> {
        std::mem::take(&mut self.cut).into_values().collect()
    }

    fn destroy(&mut self, namespace: u64, socket: Socket) {
        let Some(diag) = self.namespaces.of(namespace) else { return };
        let destroyed = diag.borrow_mut().destroy(&socket);
        // one that went by itself in between was not destroyed, and needs no reason why
        let failure = destroyed.err();
        let cookie = socket.cookie;
        self.cut.insert(cookie, Cut { socket, namespace, when: boot_now(), failure, gone: false });
    }

    fn list(&self, registry: &mut Registry, cgroups: &[u64]) -> Vec<(u64, Socket)> {
        let mut found = Vec::new();
        let present = present();
        for (namespace, diag) in self.namespaces.each() {
            for (protocol, family) in present.iter().flat_map(|p| FAMILIES.map(|f| (*p, f))) {
                if registry.unlisted.contains(&protocol) {
                    continue;
                }
                let number = |n: i32| u8::try_from(n).unwrap_or(0);
                match diag.borrow_mut().list(number(family), number(protocol), cgroups) {
                    Ok(sockets) => found.extend(sockets.into_iter().map(|socket| (namespace, socket))),
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                        registry.unlisted.insert(protocol);
                    }
                    Err(error) => warn!("the sockets of protocol {protocol} cannot be listed: {error}"),
                }
            }
        }
        found
    }
}

/// The protocols that this kernel has at present.
fn present() -> Vec<i32> {
    let table = fs::read_to_string("/proc/net/protocols").unwrap_or_default();
    let names: BTreeSet<&str> = table.lines().filter_map(|line| line.split_whitespace().next()).collect();
    PROTOCOLS.iter().filter(|(name, _)| names.contains(name)).map(|(_, protocol)| *protocol).collect()
}
