//! When the rings are read. To wake the agent costs a member more than the hook that reports it, so it is woken once and
//! then looks by itself, until there was nothing for a while. While nothing happens, nothing runs.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::engine::{Drained, Engine};

/// Between two looks, while awake. A full ring holds many times what is produced in it.
const ROUND: Duration = Duration::from_millis(1);
/// Looks in vain after which the agent sleeps.
const IN_VAIN: u32 = 4;

/// Whether the agent looks by itself, and when next.
#[derive(Debug)]
pub struct Pace {
    /// The last look found more than one batch: the next follows at once, with ends, calls and signals in between.
    more: bool,
    /// Programs were told not to wake anybody.
    awake: bool,
    in_vain: u32,
    next: Instant,
}

impl Default for Pace {
    /// What an earlier agent left in the rings, or told the programs, is not known: the first look is due at once.
    fn default() -> Self {
        Self { more: true, awake: false, in_vain: 0, next: Instant::now() }
    }
}

impl Pace {
    /// Waits until the rings are to be looked into without being told; for ever, while asleep.
    pub async fn due(&self) {
        if self.more {
            tokio::task::yield_now().await;
        } else if self.awake {
            sleep_until(self.next).await;
        } else {
            std::future::pending().await
        }
    }

    /// Takes a batch, stays awake while there is something to take, and else falls asleep.
    pub fn look(&mut self, engine: &mut Engine) {
        if !self.awake {
            engine.set_awake(true);
            (self.awake, self.in_vain) = (true, 0);
        }
        let found = engine.drain();
        self.more = found == Drained::Batch;
        self.next = Instant::now() + ROUND;
        self.in_vain = if found == Drained::Nothing { self.in_vain + 1 } else { 0 };
        // what was put into the rings before the programs knew keeps the agent awake
        if self.in_vain >= IN_VAIN {
            if engine.set_awake(false) {
                self.awake = false;
            } else {
                engine.set_awake(true);
                self.in_vain = 0;
            }
        }
    }
}
