//! A real HTTP server on loopback that counts who came.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";

/// One server; it ends with the process.
pub(super) struct Server {
    address: IpAddr,
    pub(super) port: u16,
    count: Arc<AtomicUsize>,
}

impl Server {
    /// Listens on a free port of a loopback address.
    pub(super) fn start(address: &str) -> Result<Self> {
        Self::start_on(address, 0)
    }

    /// Listens on a port of a loopback address.
    pub(super) fn start_on(address: &str, port: u16) -> Result<Self> {
        let address: IpAddr = address.parse().with_context(|| format!("{address} is no address"))?;
        let listener = TcpListener::bind((address, port)).with_context(|| format!("cannot listen on {address}"))?;
        let port = listener.local_addr()?.port();
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                counter.fetch_add(1, Ordering::SeqCst);
                // a client that goes away early is not this server's worry
                let _ = client.set_read_timeout(Some(Duration::from_secs(2)));
                let _ = client.read(&mut [0u8; 1024]);
                let _ = client.write_all(ANSWER);
            }
        });
        Ok(Self { address, port, count })
    }

    /// A port that is free now, for a server that comes later.
    pub(super) fn free_port() -> Result<u16> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot listen on the loopback address")?;
        Ok(listener.local_addr()?.port())
    }

    /// How many connections it accepted.
    pub(super) fn connections(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Its address, as evidence has it.
    pub(super) fn address(&self) -> String {
        std::net::SocketAddr::new(self.address, self.port).to_string()
    }

    /// Its address for curl.
    pub(super) fn url(&self) -> String {
        format!("http://{}/", self.address())
    }
}
