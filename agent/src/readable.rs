//! Waits until a descriptor is readable: rings, pidfds, the timer.

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// A descriptor that tokio watches for reading. It must be one that epoll can watch.
#[derive(Debug)]
pub struct Readable(AsyncFd<OwnedFd>);

impl Readable {
    /// Watches a descriptor; needs a running tokio runtime.
    ///
    /// # Errors
    /// Epoll does not take it.
    pub fn watch(descriptor: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is owned, and stays as it is until the watch is dropped with it.
        let watched = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        Ok(Self(watched?))
    }

    /// Waits until it is readable. The readiness is cleared before the caller reads, so that nothing that comes
    /// meanwhile is slept over. Never ends once the runtime shuts down.
    pub async fn ready(&self) {
        match self.0.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            Err(_) => std::future::pending().await,
        }
    }
}
