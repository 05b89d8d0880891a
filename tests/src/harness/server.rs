//! Servers on loopback that the workloads under test try to reach. They count; they refuse nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, ensure};

use super::{
    capture::within,
    wait::{patience, until},
};

#[derive(Debug, Default)]
struct Seen {
    accepted: AtomicUsize,
    reset: AtomicUsize,
    /// Who came, or sent.
    callers: Mutex<BTreeSet<SocketAddr>>,
    bytes: Mutex<Vec<u8>>,
    /// Whether each arrival is answered with a byte.
    answers: bool,
    /// Open connections, by number.
    streams: Mutex<BTreeMap<usize, TcpStream>>,
}

impl Seen {
    fn callers(&self) -> MutexGuard<'_, BTreeSet<SocketAddr>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<usize, TcpStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A TCP or UDP server; it ends with the test's process.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    /// What datagrams come to; none: it listens.
    datagrams: Option<UdpSocket>,
    seen: Arc<Seen>,
}

impl Server {
    /// On a port that the kernel picks.
    pub(crate) fn tcp(address: &str) -> Result<Self> {
        Self::serve(TcpListener::bind(any_port(address)?)?)
    }

    /// In the network namespace that a process is in.
    pub(crate) fn tcp_within(process: u32, address: &str, port: u16) -> Result<Self> {
        let address = SocketAddr::new(address.parse()?, port);
        Self::serve(within(process, move || Ok(TcpListener::bind(address)?))?)
    }

    /// With a socket that listens already.
    pub(crate) fn serve(listener: TcpListener) -> Result<Self> {
        Self::serve_as(listener, Seen::default())
    }

    /// As [`Server::serve`], and answers what arrives with a byte. A client of SCTP or DCCP waits for it: what it closes before
    /// it was accepted, nobody can accept any more.
    pub(crate) fn answering(listener: TcpListener) -> Result<Self> {
        Self::serve_as(listener, Seen { answers: true, ..Seen::default() })
    }

    fn serve_as(listener: TcpListener, seen: Seen) -> Result<Self> {
        let (address, seen) = (listener.local_addr()?, Arc::new(seen));
        let shared = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                shared.callers().extend(stream.peer_addr());
                let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
                let shared = Arc::clone(&shared);
                thread::spawn(move || keep(number, stream, &shared));
            }
        });
        Ok(Self { address, datagrams: None, seen })
    }

    /// On a port that the kernel picks. A datagram counts as accepted.
    pub(crate) fn udp(address: &str) -> Result<Self> {
        Self::udp_at(any_port(address)?)
    }

    /// As [`Server::udp`], on a port that is known.
    pub(crate) fn udp_at(address: SocketAddr) -> Result<Self> {
        Self::datagrams(UdpSocket::bind(address)?)
    }

    /// With a socket that is bound already.
    pub(crate) fn datagrams(socket: UdpSocket) -> Result<Self> {
        let (address, seen) = (socket.local_addr()?, Arc::new(Seen::default()));
        let (shared, datagrams) = (Arc::clone(&seen), Some(socket.try_clone()?));
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                shared.callers().insert(from);
                shared.bytes().extend(&buffer[..length]);
                shared.accepted.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(Self { address, datagrams, seen })
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// As the evidence writes it.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// `ADDRESS PORT`, as workloads take it.
    pub(crate) fn words(&self) -> String {
        format!("{} {}", self.address.ip(), self.address.port())
    }

    /// Waits until it accepted `count` connections or datagrams, and fails where there were more.
    pub(crate) fn accepted(&self, count: usize) -> Result<()> {
        let what = format!("{} to accept {count}", self.address);
        let accepted = || self.seen.accepted.load(Ordering::SeqCst);
        until(&what, patience(), || Ok((accepted() >= count).then_some(())))?;
        ensure!(accepted() == count, "{} accepted {} where {count} were expected", self.address, accepted());
        Ok(())
    }

    /// Waits until `count` of its connections were reset by the other end.
    pub(crate) fn reset(&self, count: usize) -> Result<()> {
        let reset = || self.seen.reset.load(Ordering::SeqCst);
        let found = until("connections to be reset", patience(), || Ok((reset() >= count).then_some(())));
        found.with_context(|| format!("{} of {count} connections of {} were reset", reset(), self.address))
    }

    /// Fails where anything but this call has reached it. (The kernel queues in order: what came before would have
    /// been accepted before.)
    pub(crate) fn untouched(&self) -> Result<()> {
        if self.datagrams.is_some() {
            let own = if self.address.is_ipv4() { "127.0.0.1" } else { "::1" };
            UdpSocket::bind(any_port(own)?)?.send_to(b"?", self.address)?;
        } else {
            drop(TcpStream::connect(self.address)?);
        }
        self.accepted(1)
    }

    /// The other ends of its connections, or who sent datagrams, as the evidence writes them.
    pub(crate) fn callers(&self) -> BTreeSet<String> {
        self.seen.callers().iter().map(ToString::to_string).collect()
    }

    pub(crate) fn received(&self) -> Vec<u8> {
        self.seen.bytes().clone()
    }

    /// Sends `bytes` on every connection that it has, or to everybody who sent.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<()> {
        if let Some(socket) = &self.datagrams {
            let answer = |caller: &SocketAddr| socket.send_to(bytes, caller).map(drop);
            return self.seen.callers().iter().try_for_each(answer).context("server cannot send");
        }
        self.seen.streams().values_mut().try_for_each(|stream| stream.write_all(bytes)).context("server cannot send")
    }
}

fn keep(number: usize, mut stream: TcpStream, seen: &Seen) {
    if let Ok(copy) = stream.try_clone() {
        seen.streams().insert(number, copy);
    }
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                seen.bytes().extend(&buffer[..length]);
                if seen.answers && stream.write_all(b"!").is_err() {
                    break;
                }
            }
            Err(error) => {
                let reset = error.kind() == std::io::ErrorKind::ConnectionReset;
                seen.reset.fetch_add(usize::from(reset), Ordering::SeqCst);
                break;
            }
        }
    }
    seen.streams().remove(&number);
}

fn any_port(address: &str) -> Result<SocketAddr> {
    let ip: IpAddr = address.parse().with_context(|| format!("{address:?} is no address"))?;
    Ok(SocketAddr::new(ip, 0))
}
