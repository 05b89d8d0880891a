//! How records come from the kernel to the evidence: none stays in a ring because nobody was woken for it.

use std::{thread, time::Duration};

use nix::sys::signal::Signal;

use super::scene::{Fifo, only};
use crate::harness::{prelude::*, wait::in_guest};

pub(super) const TESTS: &[Test] = &[Test::new("rings::no-record-waits-for-another", WHEREVER, none_waits)];

/// A member connects once whenever it is told to. After each connect nothing else happens until its record is read.
/// The pauses between put the records before, into and after the moments in which the agent falls asleep (it looks
/// every millisecond, and sleeps after four looks in vain).
fn none_waits(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, mut fifo) = (s.program("member")?, Fifo::new(s)?);
    let policy = s.policy(&only(&member).to("here", "127.0.0.1/32", ""))?;
    let running = s.run(&policy, &member, &format!("connect-when-told {} 127.0.0.1 9", fifo.path))?;
    let session = running.session(s)?;
    let read = |count: usize| {
        until(&format!("record {count}"), patience(), || {
            Ok((s.records(&session, "connect")?.len() >= count).then_some(()))
        })
    };
    let count = if in_guest() { 24 } else { 96 };
    for n in 1..=count {
        fifo.wake()?;
        read(n)?;
        thread::sleep(Duration::from_micros(n as u64 % 24 * 250));
    }
    // an agent that was stopped while it was awake has told the programs to wake nobody
    fifo.wake()?;
    s.signal_agent(Signal::SIGSTOP)?;
    for _ in 0..3 {
        fifo.wake()?;
        thread::sleep(Duration::from_millis(2));
    }
    s.signal_agent(Signal::SIGCONT)?;
    read(count + 4)?;
    ensure!(s.records(&session, "connect")?.len() == count + 4, "there are more records than connects");
    drop(running);
    s.session_ended(&session, "completed").map(drop)
}
