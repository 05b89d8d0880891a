//! Attempts to reach whom is out of scope, and to use sockets that were made elsewhere.

use super::{
    attempt::{Attempt, Effect, Family, Must, Silent},
    known::{CROSSED, GROUPS, INTERFACES, SPECIAL, UNIX},
};

pub(super) const ATTEMPTS: &[Attempt] = &[
    Attempt::send("tcp", "TCP", "by tcp {text} {ip} {port}"),
    Attempt::send("tcp-6", "TCP by IPv6", "by tcp {text} {ip} {port}").family(Family::Six),
    Attempt::send("mapped", "TCP to an IPv4 address in its IPv6 form", "by tcp {text} ::ffff:{ip} {port}"),
    Attempt::send("udp", "UDP, connected", "by udp {text} {ip} {port}"),
    Attempt::send("udp-to", "UDP, without a connect", "by udp-to {text} {ip} {port}"),
    Attempt::send("udp-6", "UDP by IPv6, without a connect", "by udp-message {text} {ip} {port}").family(Family::Six),
    Attempt::send("udp-4-on-6", "UDP to an IPv4 address on an IPv6 socket", "by udp-to {text} ::ffff:{ip} {port}"),
    Attempt::send("udp-many", "one datagram of several in a call (sendmmsg)", "by udp-many {text} {ip} {port}"),
    Attempt::send(
        "reconnect",
        "UDP, connected to a friend, then to nobody, then there",
        "by udp-again {text} {ip} {port}",
    ),
    Attempt::send("unspecified", "UDP to an address whose family is not said", "act unspecified {text} {ip} {port}"),
    Attempt::send("fast-open", "TCP Fast Open, in the first message", "by open-to {text} {ip} {port}"),
    Attempt::send(
        "fast-open-later",
        "TCP Fast Open, when the socket first sends",
        "by open-connect {text} {ip} {port}",
    ),
    Attempt::send("multipath", "Multipath TCP", "by mptcp {text} {ip} {port}"),
    Attempt::send("ring", "io_uring, in the caller", "by ring-tcp {text} {ip} {port}"),
    Attempt::send(
        "ring-worker",
        "io_uring, by a worker, without a connect",
        "by ringworker-message {text} {ip} {port}",
    ),
    Attempt::send("ring-poller", "io_uring, by the polling thread", "by ringpoller-udp {text} {ip} {port}"),
    Attempt::send("any-address", "this host, as the address that is none (0.0.0.0)", "by tcp {text} 0.0.0.0 {port}")
        .outside(),
    Attempt::send("repair", "TCP, said to be connected already (TCP_REPAIR)", "act repair {text} {ip} {port}")
        .outside(),
    Attempt::send(
        "source-route",
        "by way of it to an address in scope, by a source route",
        "by hop {text} {near} {port} {ip}",
    )
    .outside()
    .silent(Silent::NoLsm)
    .must(Must::Dropped, Must::Dropped),
    Attempt::send(
        "routing-header",
        "by way of it to an address in scope, by a routing header",
        "by hop {text} {near} {port} {ip}",
    )
    .family(Family::Six)
    .must(Must::Dropped, Must::Dropped),
    // without LSM it is the capability that is missing: the kernel refuses before it asks any program
    Attempt::send("raw-udp", "UDP that it made itself, by a raw socket", "act raw-udp {text} {ip} {port}")
        .outside()
        .silent(Silent::NoLsm),
    Attempt::send("raw-whole", "a packet with all its headers, by a raw socket", "act raw-whole {text} {ip} {port}")
        .outside()
        .silent(Silent::NoLsm),
    Attempt::send("packet", "a packet handed to an interface (AF_PACKET)", "act packet {text} {ip} {port}")
        .outside()
        .silent(Silent::NoLsm),
    Attempt::send("echo", "an echo request as a datagram", "by ping-to {text} {ip} {port}").outside(),
    Attempt::send("sctp", "an SCTP socket", "make 2 1 132").effect(Effect::Said).outside().may_lack(),
    Attempt::send("other-protocol", "a socket of another protocol of IPv4 (L2TP)", "make 2 2 115")
        .effect(Effect::Said)
        .outside()
        .may_lack(),
    Attempt::send("smc", "a socket of SMC, which falls back to TCP", "make 2 1 256")
        .effect(Effect::Said)
        .outside()
        .may_lack(),
    Attempt::send("machine-socket", "a socket to the machine's host (AF_VSOCK)", "make 40 1 0")
        .effect(Effect::Said)
        .outside()
        .may_lack()
        .open(&[SPECIAL]),
    Attempt::send("cipher-socket", "a socket of the kernel's ciphers (AF_ALG)", "make 38 5 0")
        .effect(Effect::Said)
        .outside()
        .may_lack()
        .open(&[SPECIAL]),
    Attempt::send("listen", "to be reached at an address out of scope", "bind tcp {ip} {free}").effect(Effect::Said),
    Attempt::send("passed-socket", "a socket that somebody outside passed in", "take {giver} {ip} {port}")
        .outside()
        .refused_by(&["none"])
        .open(&[CROSSED]),
    Attempt::send("unix", "a unix socket out of scope, by its path", "act unix-by plain {socket} {text}")
        .effect(Effect::Said)
        .open(&[UNIX]),
    Attempt::send("unix-link", "a unix socket by a link to it", "act unix-by link {socket} {text} {tmp}")
        .effect(Effect::Said)
        .outside()
        .open(&[UNIX]),
    Attempt::send("unix-place", "a unix socket by a descriptor of its file", "act unix-by place {socket} {text}")
        .effect(Effect::Said)
        .outside()
        .open(&[UNIX]),
    Attempt::send("unix-abstract", "a unix socket without a file", "act unix-by plain {abstract} {text}")
        .effect(Effect::Said)
        .open(&[UNIX]),
    Attempt::send("unix-packets", "a unix socket of packets (SOCK_SEQPACKET)", "act unix-by packet {packets} {text}")
        .effect(Effect::Said)
        .open(&[UNIX]),
    Attempt::send("unix-datagram", "a datagram to a unix socket", "unix-to datagram {datagrams}")
        .effect(Effect::Said)
        .open(&[UNIX]),
    Attempt::send("group", "news to the routers of a multicast group that it joins", "act group {ip}")
        .family(Family::Group)
        .outside()
        .open(&[GROUPS]),
    Attempt::send(
        "tunnel",
        "a packet that comes in by an interface of its own (TUN)",
        "act tunnel {text} {mine} {port}",
    )
    .outside()
    .may_lack()
    .open(&[INTERFACES]),
];
