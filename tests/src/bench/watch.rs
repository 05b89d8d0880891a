//! What a driver looks at while members and flows come to their end.

use std::{
    io::Read,
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::{
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    unistd::Pid,
};

use crate::{
    harness::wait::{boot_ns, patience, until},
    work::victims::pidfd,
};

/// A server, of connections and of datagrams, that knows when the last message that it received was sent, and how many
/// connections have ended.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) port: u16,
    seen: Arc<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    open: AtomicU64,
    closed: AtomicU64,
    last_sent_ns: AtomicU64,
}

impl Receiver {
    pub(super) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (port, seen) = (listener.local_addr()?.port(), Arc::new(Seen::default()));
        let datagrams = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
        let (shared, also) = (Arc::clone(&seen), Arc::clone(&seen));
        thread::spawn(move || {
            let mut stamp = [0; 8];
            while datagrams.recv(&mut stamp).is_ok() {
                also.last_sent_ns.fetch_max(u64::from_be_bytes(stamp), Ordering::SeqCst);
            }
        });
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || receive(stream, &shared));
            }
        });
        Ok(Self { port, seen })
    }

    /// Waits until so many connections have brought something.
    pub(super) fn opened(&self, count: u64) -> Result<()> {
        until(&format!("{count} flows"), patience(), || {
            Ok((self.seen.open.load(Ordering::SeqCst) >= count).then_some(()))
        })
    }

    /// When the last message that came was sent, `CLOCK_BOOTTIME`.
    pub(super) fn last_sent_ns(&self) -> u64 {
        self.seen.last_sent_ns.load(Ordering::SeqCst)
    }

    /// How many connections have ended.
    pub(super) fn closed(&self) -> u64 {
        self.seen.closed.load(Ordering::SeqCst)
    }
}

/// Each message is the time at which it was sent, so that it does not matter how soon this thread runs.
fn receive(mut stream: TcpStream, seen: &Seen) {
    let mut first = true;
    let mut stamp = [0; 8];
    while stream.read_exact(&mut stamp).is_ok() {
        seen.last_sent_ns.fetch_max(u64::from_be_bytes(stamp), Ordering::SeqCst);
        if std::mem::take(&mut first) {
            seen.open.fetch_add(1, Ordering::SeqCst);
        }
    }
    seen.closed.fetch_add(1, Ordering::SeqCst);
}

/// Processes that are waited for through descriptors. One queue for all of them: a `poll` of a thousand at each death would
/// take the processors that they need to die on.
#[derive(Debug)]
pub(super) struct Watch {
    queue: Epoll,
    /// By number in the queue; none: it is dead.
    processes: Vec<Option<OwnedFd>>,
}

impl Watch {
    /// `pids` as a measuring process answers them.
    pub(super) fn over(pids: &str) -> Result<Self> {
        let open = |word: &str| pidfd(Pid::from_raw(word.parse()?)).map(Some);
        let processes: Vec<Option<OwnedFd>> = pids.split_whitespace().map(open).collect::<Result<_>>()?;
        let queue = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (number, process) in (0..).zip(processes.iter().flatten()) {
            queue.add(process, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
        }
        Ok(Self { queue, processes })
    }

    /// Waits until all are dead, at most for `limit`: how many are not, and when the last one died.
    pub(super) fn wait(&mut self, limit: Duration) -> Result<(usize, u64)> {
        let begin = Instant::now();
        let alive = |processes: &[Option<OwnedFd>]| processes.iter().flatten().count();
        let (mut left, mut last) = (alive(&self.processes), 0);
        let mut events = [EpollEvent::empty(); 64];
        while left > 0 && begin.elapsed() < limit {
            let timeout = EpollTimeout::try_from(limit.saturating_sub(begin.elapsed()).as_millis())?;
            let found = self.queue.wait(&mut events, timeout)?;
            if found > 0 {
                last = boot_ns()?;
            }
            for event in &events[..found] {
                // closed, it leaves the queue
                left -= usize::from(self.processes[usize::try_from(event.data())?].take().is_some());
            }
        }
        Ok((left, last))
    }
}
