//! `tax`, `net` and `spawn`: the same operations without the agent, with it, and in sessions of it, round by round.
//!
//! A round is: no agent; empty programs in its place; the agent, with the measuring process in no session, and in
//! sessions with 1, 1,000 and 10,000 rules on addresses. Every second round goes the other way, so that a drift of the
//! machine falls on both sides. Each measurement has a process of its own, and is the least of several batches.

use std::{collections::BTreeMap, io::ErrorKind, net::TcpListener, os::fd::AsRawFd as _};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, listen, socket};

use super::{
    Ground,
    floor::Floor,
    place,
    report::{Bound, Figures, Row, Target},
    stats::least,
    worker::Worker,
};

/// Where an operation is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Variant {
    /// No agent.
    Off,
    /// No agent, empty programs on the cgroup.
    Empty,
    /// The agent runs, the process is in no session.
    Outside,
    /// In a session with so many rules on addresses.
    Inside(u32),
}

/// An operation, the size of a batch, and what it may cost more in and out of a session.
struct Operation {
    bench: &'static str,
    name: &'static str,
    what: &'static str,
    batch: u32,
    inside: Option<Target>,
    outside: Option<Target>,
}

/// Batches in a measurement; one more comes before them, to warm up.
const BATCHES: usize = 8;
/// The rules of the sessions.
const RULES: [u32; 3] = [1, 1_000, 10_000];
/// What 10,000 rules may cost over one.
const MANY_RULES: Target = Target { name: "P11", bound: Bound::AtMost(150.0) };

const fn at_most(name: &'static str, bound: f64) -> Option<Target> {
    Some(Target { name, bound: Bound::AtMost(bound) })
}

/// At most `bound`, or nothing that could be told from none.
const fn nothing(name: &'static str, bound: f64) -> Option<Target> {
    Some(Target { name, bound: Bound::Nothing(bound) })
}

const NONE_P1: Option<Target> = Some(Target { name: "P1", bound: Bound::None });
const NONE_P4: Option<Target> = Some(Target { name: "P4", bound: Bound::None });

const OPERATIONS: [Operation; 12] = [
    Operation { bench: "tax", name: "getppid", what: "getppid", batch: 50_000, outside: NONE_P1, inside: None },
    Operation { bench: "tax", name: "open-close", what: "open + close", batch: 10_000, outside: NONE_P1, inside: None },
    Operation {
        bench: "net",
        name: "udp-connect",
        what: "UDP connect",
        batch: 2_000,
        outside: NONE_P4,
        inside: at_most("P3", 300.0),
    },
    Operation {
        bench: "net",
        name: "udp-pair",
        what: "UDP sendto + recv, 64 B",
        batch: 2_000,
        outside: NONE_P4,
        inside: at_most("P4", 250.0),
    },
    Operation {
        bench: "net",
        name: "udp-connected-pair",
        what: "UDP send + recv connected, 64 B",
        batch: 5_000,
        outside: NONE_P4,
        // two packet hooks of 70 ns
        inside: at_most("P4", 140.0),
    },
    Operation {
        bench: "net",
        name: "tcp-connect",
        what: "TCP connect + accept + close",
        batch: 400,
        outside: NONE_P4,
        inside: at_most("P3", 1_500.0),
    },
    Operation {
        bench: "net",
        name: "tcp-connect-out",
        what: "TCP connect + close, server elsewhere",
        batch: 400,
        outside: NONE_P4,
        inside: at_most("P3", 1_500.0),
    },
    Operation {
        bench: "net",
        name: "ping-pong",
        what: "TCP 8 B there and back",
        batch: 2_000,
        outside: NONE_P4,
        inside: None,
    },
    Operation {
        bench: "net",
        name: "stream",
        what: "TCP stream, 64 KiB",
        batch: 2_000,
        outside: NONE_P4,
        inside: Some(Target { name: "stream", bound: Bound::Share(0.02) }),
    },
    Operation {
        bench: "spawn",
        name: "fork",
        what: "fork + exit + wait",
        batch: 100,
        outside: nothing("P2", 1_000.0),
        inside: at_most("P2", 5_000.0),
    },
    Operation {
        bench: "spawn",
        name: "fork-exec",
        what: "fork + exec + exit + wait",
        batch: 30,
        outside: nothing("P2", 3_000.0),
        inside: at_most("P2", 25_000.0),
    },
    Operation {
        bench: "spawn",
        name: "vfork-exec",
        what: "vfork + exec + exit + wait",
        batch: 30,
        outside: nothing("P2", 3_000.0),
        inside: at_most("P2", 25_000.0),
    },
];

/// The values of all rounds, by operation and variant.
type Values = BTreeMap<(&'static str, Variant), Vec<f64>>;

/// Runs those of the three benchmarks that are in `names`.
pub(super) fn run(ground: &mut Ground, names: &[&str], pairs: usize) -> Result<Vec<Row>> {
    let chosen: Vec<&Operation> = OPERATIONS.iter().filter(|operation| names.contains(&operation.bench)).collect();
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    place::pin(place::AGENT)?;
    let mut values = Values::new();
    for pair in 0..pairs {
        eprintln!("bench: {}: pair {} of {pairs}", names.join(", "), pair + 1);
        if pair % 2 == 0 {
            without(ground, &chosen, &mut values)?;
            with(ground, &chosen, &mut values)?;
        } else {
            with(ground, &chosen, &mut values)?;
            without(ground, &chosen, &mut values)?;
        }
    }
    Ok(chosen.iter().flat_map(|operation| rows(operation, &values)).collect())
}

fn without(ground: &Ground, chosen: &[&Operation], values: &mut Values) -> Result<()> {
    let cgroup = ground.sandbox.part("elsewhere");
    let worker = Worker::outside(&ground.programs, &cgroup)?;
    measure(worker, None, chosen, Variant::Off, values)?;
    if chosen.iter().any(|operation| operation.bench == "net") {
        let floor = Floor::attach(&cgroup)?;
        let worker = Worker::outside(&ground.programs, &cgroup)?;
        measure(worker, None, chosen, Variant::Empty, values)?;
        drop(floor);
    }
    Ok(())
}

fn with(ground: &mut Ground, chosen: &[&Operation], values: &mut Values) -> Result<()> {
    ground.start()?;
    let agent = Some(ground.sandbox.agent_pid()?);
    let worker = Worker::outside(&ground.programs, &ground.sandbox.part("elsewhere"))?;
    measure(worker, agent, chosen, Variant::Outside, values)?;
    for rules in RULES {
        if rules > 1 && chosen.iter().all(|operation| operation.bench != "net") {
            continue;
        }
        let policy = ground.sandbox.policy(&ground.programs.policy(rules))?;
        let worker = Worker::inside(&ground.programs, &ground.sandbox, &policy)?;
        measure(worker, agent, chosen, Variant::Inside(rules), values)?;
    }
    // which also checks that what was produced was consumed or counted as lost, exactly
    ground.stop()
}

/// The operations that make sense in the variant, each as the least of its batches.
fn measure(
    mut worker: Worker,
    agent: Option<u32>,
    chosen: &[&Operation],
    variant: Variant,
    values: &mut Values,
) -> Result<()> {
    let server = Server::start()?;
    let traffic_alone = matches!(variant, Variant::Empty | Variant::Inside(2..));
    for operation in chosen.iter().filter(|operation| !traffic_alone || operation.bench == "net") {
        let mut batches = Vec::with_capacity(BATCHES);
        for _ in 0..=BATCHES {
            batches.push(worker.time_to(operation.name, operation.batch, server.port)?);
            server.take_all()?;
            // records of one batch are read before the next: none is lost, and none of the work is left over
            agent.map_or(Ok(()), place::quiet)?;
        }
        batches.remove(0);
        values.entry((operation.name, variant)).or_default().push(least(&batches));
    }
    worker.end().with_context(|| format!("{variant:?}"))
}

/// A server of connections in no session, which nobody waits at: the kernel makes them, and between two batches they are
/// taken.
struct Server {
    listener: TcpListener,
    port: u16,
}

impl Server {
    fn start() -> Result<Self> {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 0))?;
        // one batch has room
        listen(&socket, Backlog::new(1024)?)?;
        let listener = TcpListener::from(socket);
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        Ok(Self { listener, port })
    }

    fn take_all(&self) -> Result<()> {
        loop {
            match self.listener.accept() {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("a connection cannot be taken"),
            }
        }
    }
}

fn rows(operation: &Operation, values: &Values) -> Vec<Row> {
    let of = |variant| values.get(&(operation.name, variant)).cloned();
    let Some(off) = of(Variant::Off) else { return Vec::new() };
    let row = |what: String, off: &[f64], on: Vec<f64>, floor, target| {
        let figures = Figures::Compared { off: off.to_vec(), on, floor };
        Row { bench: operation.bench, what, unit: "ns", target, figures }
    };
    let mut rows = Vec::new();
    if let Some(on) = of(Variant::Outside) {
        rows.push(row(format!("{}, no session", operation.what), &off, on, None, operation.outside));
    }
    for rules in RULES {
        let Some(on) = of(Variant::Inside(rules)) else { continue };
        let what = match (operation.bench, rules) {
            ("net", 1) => format!("{}, 1 rule", operation.what),
            ("net", _) => format!("{}, {} rules", operation.what, thousands(rules)),
            _ => format!("{}, in a session", operation.what),
        };
        rows.push(row(what, &off, on, of(Variant::Empty), operation.inside));
    }
    let judged = matches!(operation.name, "udp-connect" | "udp-pair" | "tcp-connect" | "tcp-connect-out");
    if let (true, Some(one), Some(many)) = (judged, of(Variant::Inside(1)), of(Variant::Inside(10_000))) {
        rows.push(row(format!("{}, 10,000 rules against 1", operation.what), &one, many, None, Some(MANY_RULES)));
    }
    rows
}

fn thousands(number: u32) -> String {
    format!("{},{:03}", number / 1000, number % 1000)
}
