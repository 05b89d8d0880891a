//! `spec.scope.sockets`: classes of sockets that no rule on addresses judges.

use std::rc::Rc;

use tipstaff_common::socket;

use crate::policy::{
    problem::Problems,
    traffic::{NetRule, Protocol},
    types::{Effect, Kind, Policy},
    walk::{At, Fields, Keys, fields, list, word},
};

const SOCKETS: Keys = Keys { known: &["allow", "deny"], later: &["hold"] };

/// The classes, by their words. TCP, MPTCP, UDP and UDP-Lite are in none.
pub(in crate::policy) const SOCKET_CLASSES: [(&str, u32); 9] = [
    ("raw", socket::SOCKET_RAW),
    ("packet", socket::SOCKET_PACKET),
    ("ping", socket::SOCKET_PING),
    ("sctp", socket::SOCKET_SCTP),
    ("dccp", socket::SOCKET_DCCP),
    ("netlink", socket::SOCKET_NETLINK),
    ("vsock", socket::SOCKET_VSOCK),
    ("unix", socket::SOCKET_UNIX),
    ("other", socket::SOCKET_OTHER),
];

/// What a policy says of classes: masks of `socket::SOCKET_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    /// May be made.
    pub allow: u32,
    /// May not, whatever allows it.
    pub deny: u32,
}

impl Classes {
    /// What may be made in a session of `kind`.
    #[must_use]
    pub const fn of(self, kind: Kind) -> u32 {
        (kind.socket_classes() | self.allow) & !self.deny
    }
}

impl Kind {
    /// The classes of sockets that may be made where the policy does not speak of them.
    #[must_use]
    pub const fn socket_classes(self) -> u32 {
        match self {
            Self::Service | Self::Ci | Self::Agent => socket::SOCKET_UNIX | socket::SOCKET_NETLINK,
            Self::Operator | Self::Breakglass => socket::SOCKET_ALL,
        }
    }
}

impl Policy {
    /// Classes of connections that may be made, but that no rule lets go anywhere or be listened on. A connect of one would
    /// be refused whatever its address, and where no hook sees it (tier no-lsm), it would wait.
    pub(in crate::policy) fn useless_classes(&self) -> u32 {
        let allows = |rules: &[Rc<NetRule>], protocol: Protocol| {
            let speaks = |rule: &NetRule| rule.protocols.is_empty() || rule.protocols.contains(&protocol);
            rules.iter().any(|rule| rule.effect == Effect::Allow && speaks(rule))
        };
        let open = [self.kind.net_default(), self.listen_default()].contains(&Effect::Allow);
        let useless = |(protocol, _): &(Protocol, u32)| {
            !open && !allows(&self.net, *protocol) && !allows(&self.listen.rules, *protocol)
        };
        let classes = [(Protocol::Sctp, socket::SOCKET_SCTP), (Protocol::Dccp, socket::SOCKET_DCCP)];
        let useless = classes.into_iter().filter(useless).fold(0, |all, (_, mask)| all | mask);
        useless & self.socket_classes()
    }
}

/// `None`: the policy does not have the key.
pub(super) fn read(scope: &Fields<'_>, problems: &mut Problems) -> Option<Classes> {
    let field = scope.get("sockets")?;
    let section = fields(field.at(), SOCKETS, problems)?;
    let mut classes = Classes::default();
    for (key, effect) in super::EFFECTS {
        let Some(field) = section.get(key) else { continue };
        let mut mask = 0;
        for (index, node) in list(field.at(), problems).unwrap_or_default().iter().enumerate() {
            let path = format!("{}[{index}]", field.path);
            mask |= word(At { node, path: &path }, &SOCKET_CLASSES, problems).unwrap_or(0);
        }
        match effect {
            Effect::Allow => classes.allow = mask,
            Effect::Deny => classes.deny = mask,
        }
    }
    Some(classes)
}
