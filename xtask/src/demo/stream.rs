//! The far end of a connection that stays open: it reads until the connection ends, and says how.

use std::{
    io::{ErrorKind, Read as _},
    net::{Ipv4Addr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};

/// What became of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nobody came.
    Nobody,
    /// It stands.
    Open,
    /// The kernel reset it.
    Reset,
    /// It ended otherwise.
    Closed,
}

/// One listener for one connection; it ends with the process.
pub(super) struct Stream {
    pub(super) port: u16,
    fate: Arc<Mutex<Fate>>,
}

impl Stream {
    /// Listens on a free port of the loopback address.
    pub(super) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on the loopback address")?;
        let port = listener.local_addr()?.port();
        let fate = Arc::new(Mutex::new(Fate::Nobody));
        let shared = Arc::clone(&fate);
        thread::spawn(move || {
            let set = |fate| *shared.lock().unwrap_or_else(PoisonError::into_inner) = fate;
            let Ok((mut client, _)) = listener.accept() else { return };
            set(Fate::Open);
            loop {
                match client.read(&mut [0u8; 1024]) {
                    Ok(0) => return set(Fate::Closed),
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => return set(Fate::Reset),
                    Err(_) => return set(Fate::Closed),
                }
            }
        });
        Ok(Self { port, fate })
    }

    /// What became of it so far.
    pub(super) fn fate(&self) -> Fate {
        *self.fate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
