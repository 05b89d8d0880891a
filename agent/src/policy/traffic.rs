//! What a checked policy says of traffic: destinations, local addresses, peers, unix sockets, classes of sockets,
//! budgets. Owns their meaning; knows neither YAML nor the kernel's tables.

use std::{fmt, net::IpAddr, path::PathBuf, rc::Rc};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use tipstaff_common::session;

use super::{
    metadata,
    net::loopbacks,
    resolved::Resolved,
    types::{Effect, Kind},
};

/// A protocol that a rule can be limited to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// `IPPROTO_TCP`, and MPTCP, which is TCP on the wire.
    Tcp,
    /// `IPPROTO_UDP`
    Udp,
    /// `IPPROTO_UDPLITE`
    Udplite,
    /// `IPPROTO_SCTP`
    Sctp,
    /// `IPPROTO_DCCP`
    Dccp,
    /// `IPPROTO_ICMP` for IPv4, `IPPROTO_ICMPV6` for IPv6: echo sockets.
    Icmp,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 6] = [Self::Tcp, Self::Udp, Self::Udplite, Self::Sctp, Self::Dccp, Self::Icmp];

    /// `IPPROTO_*` for an address of IPv6, or of IPv4.
    #[must_use]
    pub const fn number(self, v6: bool) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Udplite => 136,
            Self::Sctp => 132,
            Self::Dccp => 33,
            Self::Icmp if v6 => 58,
            Self::Icmp => 1,
        }
    }

    /// Its word in a policy.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Udplite => "udplite",
            Self::Sctp => "sctp",
            Self::Dccp => "dccp",
            Self::Icmp => "icmp",
        }
    }

    /// The protocol with this number, in whichever family it has it.
    #[must_use]
    pub fn of_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.number(false) == number || p.number(true) == number)
    }
}

/// Ports from `low` to `high`, both included; `low` is not above `high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    /// First port.
    pub low: u16,
    /// Last port.
    pub high: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.low == self.high { write!(f, "{}", self.low) } else { write!(f, "{}-{}", self.low, self.high) }
    }
}

/// The addresses of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Addresses {
    /// A network without host bits; never IPv4 in its mapped form.
    Net(IpNet),
    /// Every address of both families.
    Every,
    /// The metadata addresses of clouds: [`metadata::ADDRESSES`].
    Metadata,
    /// The host's resolvers, as they are when the session starts.
    Resolvers,
}

impl Addresses {
    /// As [`Addresses::nets`], without a list where it is one network.
    pub(super) fn with_nets<T>(self, host: &Resolved, with: impl FnOnce(&[IpNet]) -> T) -> T {
        match self {
            Self::Net(net) => with(&[net]),
            other => with(&other.nets(host)),
        }
    }

    /// The networks that this is on a host.
    pub(super) fn nets(self, host: &Resolved) -> Vec<IpNet> {
        match self {
            Self::Net(net) => vec![net],
            Self::Every => vec![IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())],
            Self::Metadata => metadata::ADDRESSES.map(IpNet::from).to_vec(),
            Self::Resolvers => host.resolvers.iter().copied().map(IpNet::from).collect(),
        }
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) => net.fmt(f),
            Self::Every => f.write_str("every address"),
            Self::Metadata => f.write_str("metadata"),
            Self::Resolvers => f.write_str("the host's resolvers"),
        }
    }
}

/// A rule on addresses, ports and protocols: of `net.allow` and `net.deny` (destinations), `net.listen` (local addresses)
/// or `net.inbound` (peers, and the local ports that they reach).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetRule {
    /// Unique in the policy.
    pub id: String,
    /// What it does.
    pub effect: Effect,
    /// Where.
    pub to: Addresses,
    /// Sorted, apart from each other; empty means every port.
    pub ports: Vec<PortRange>,
    /// Sorted, each once; empty means every protocol.
    pub protocols: Vec<Protocol>,
}

impl NetRule {
    /// Whether the rule names this address, which is not in mapped form.
    pub(super) fn names(&self, host: &Resolved, address: IpAddr, port: u16, protocol: u8) -> bool {
        self.to.nets(host).iter().any(|net| net.contains(&address)) && self.fits(port, protocol, address.is_ipv6())
    }

    /// Whether the rule, as one of `net.allow` or `net.deny`, names this destination. A denial of a loopback address holds
    /// for the unspecified address that Linux connects to it, too. An allow rule names a metadata address only where it
    /// names that address or the class.
    pub(super) fn names_destination(&self, host: &Resolved, to: IpAddr, port: u16, protocol: u8) -> bool {
        let nets = self.to.nets(host);
        let address_fits = match self.effect {
            Effect::Allow if metadata::contains(to) => nets.iter().any(|net| metadata::named_by(*net) == Some(to)),
            Effect::Allow => nets.iter().any(|net| net.contains(&to)),
            Effect::Deny => {
                let covers = |address: &IpAddr| nets.iter().any(|net| net.contains(address));
                covers(&to) || loopbacks(to).iter().any(covers)
            }
        };
        address_fits && self.fits(port, protocol, to.is_ipv6())
    }

    fn fits(&self, port: u16, protocol: u8, v6: bool) -> bool {
        let port_fits = self.ports.is_empty() || self.ports.iter().any(|r| (r.low..=r.high).contains(&port));
        port_fits && (self.protocols.is_empty() || self.protocols.iter().any(|p| p.number(v6) == protocol))
    }
}

impl fmt::Display for NetRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to.fmt(f)?;
        if !self.protocols.is_empty() {
            let words: Vec<_> = self.protocols.iter().map(|p| p.as_str()).collect();
            write!(f, " {}", words.join(","))?;
        }
        if !self.ports.is_empty() {
            let ports: Vec<_> = self.ports.iter().map(ToString::to_string).collect();
            write!(f, " {}", ports.join(","))?;
        }
        Ok(())
    }
}

/// What `net.listen` or `net.inbound` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// What happens to what no rule names; `None` where the policy does not have the key: the kind's default.
    pub default: Option<Effect>,
    /// Rules that allow.
    pub rules: Vec<Rc<NetRule>>,
}

/// What a unix rule names. Paths are as in `ExecTarget`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnixTarget {
    /// The socket at this path.
    Path(PathBuf),
    /// Every socket below this directory, in its file system and in those mounted below it when the session starts.
    Dir(PathBuf),
    /// The abstract name, without the `@` that stands for its leading zero byte: 1 to 107 bytes.
    Abstract(String),
}

impl fmt::Display for UnixTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "path {}", path.display()),
            Self::Dir(path) => write!(f, "dir {}", path.display()),
            Self::Abstract(name) => write!(f, "name @{name}"),
        }
    }
}

/// A rule of `spec.scope.unix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixRule {
    /// Unique in the policy.
    pub id: String,
    /// What it does.
    pub effect: Effect,
    /// What it names.
    pub target: UnixTarget,
}

/// `spec.budgets`; `None` is no budget. All members share one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Budgets {
    /// Connects, and messages to an address without a connect, in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connects: Option<u64>,
    /// The same in any one second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connects_per_second: Option<u64>,
    /// Different addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destinations: Option<u64>,
    /// Bytes sent, headers included, in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_bytes: Option<u64>,
    /// The same in any one second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress_bytes_per_second: Option<u64>,
}

impl Budgets {
    /// The smaller of both, each.
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        let less = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        Self {
            connects: less(self.connects, other.connects),
            connects_per_second: less(self.connects_per_second, other.connects_per_second),
            destinations: less(self.destinations, other.destinations),
            egress_bytes: less(self.egress_bytes, other.egress_bytes),
            egress_bytes_per_second: less(self.egress_bytes_per_second, other.egress_bytes_per_second),
        }
    }

    /// As the kernel keeps them: 0 is none.
    #[must_use]
    pub fn for_kernel(self) -> session::Budgets {
        session::Budgets {
            connects: self.connects.unwrap_or(0),
            connects_per_second: self.connects_per_second.unwrap_or(0),
            destinations: self.destinations.unwrap_or(0),
            egress_bytes: self.egress_bytes.unwrap_or(0),
            egress_bytes_per_second: self.egress_bytes_per_second.unwrap_or(0),
        }
    }

    /// From the kernel's form.
    #[must_use]
    pub fn from_kernel(kept: session::Budgets) -> Self {
        let some = |count: u64| (count > 0).then_some(count);
        Self {
            connects: some(kept.connects),
            connects_per_second: some(kept.connects_per_second),
            destinations: some(kept.destinations),
            egress_bytes: some(kept.egress_bytes),
            egress_bytes_per_second: some(kept.egress_bytes_per_second),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Kind {
    /// What happens to a bind or listen where the policy has no `net.listen`.
    #[must_use]
    pub const fn listen_default(self) -> Effect {
        self.exec_default()
    }

    /// What happens to a flow from outside where the policy has no `net.inbound`: who may listen may be reached.
    #[must_use]
    pub const fn inbound_default(self) -> Effect {
        Effect::Allow
    }

    /// What happens to a unix socket that no rule names.
    #[must_use]
    pub const fn unix_default(self) -> Effect {
        self.exec_default()
    }
}
