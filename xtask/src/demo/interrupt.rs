//! A signal that asks the demo to stop: its waits end early, and the clean-up is the usual one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

const GLANCE: Duration = Duration::from_millis(20);
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// The last of these signals that came.
pub(super) struct Interrupt(Arc<AtomicUsize>);

impl Interrupt {
    /// From here on none of these signals ends this process.
    pub(super) fn watch() -> Result<Self> {
        let last = Arc::new(AtomicUsize::new(0));
        for signal in SIGNALS {
            signal_hook::flag::register_usize(signal as i32, Arc::clone(&last), signal as usize)
                .with_context(|| format!("cannot watch for {signal}"))?;
        }
        Ok(Self(last))
    }

    /// What came.
    pub(super) fn signal(&self) -> Option<Signal> {
        let last = self.0.load(Ordering::SeqCst);
        SIGNALS.into_iter().find(|signal| *signal as usize == last)
    }

    /// Looks until there is something to see, or nothing at the deadline; a signal is an error.
    pub(super) fn until<T>(&self, deadline: Instant, mut look: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
        loop {
            if let Some(signal) = self.signal() {
                bail!("{signal} came");
            }
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            thread::sleep(GLANCE.min(left));
        }
    }

    /// Lets the time pass until then.
    pub(super) fn rest(&self, until: Instant) -> Result<()> {
        self.until(until, || Ok(None::<()>)).map(|_| ())
    }
}
