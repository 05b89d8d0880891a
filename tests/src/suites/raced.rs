//! Files that take a program's place again and again while it is executed.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::scene::{Fifo, only, refusal};
use crate::harness::{prelude::*, sandbox::OPERATORS, wait::in_guest};

pub(super) const TESTS: &[Test] =
    &[Test::sharing("programs::what-takes-its-place-in-a-loop-never-runs", WHEREVER, raced)];

/// Who is not root, so that the files of its rules are looked at again.
const USER: (u32, u32) = (64_010, OPERATORS);

/// A file that anybody may write takes the place of the rule's, and that one its own again, as fast as it goes, while members
/// execute what stands there: whatever the agent makes of it meanwhile, nothing but the rule's file ever runs.
fn raced(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good) = (s.program("member")?, s.program("good")?);
    let (kept, theirs, next) = (s.program("kept")?, s.program("theirs")?, format!("{}/next", s.bin()));
    fs::rename(&kept, &good)?;
    fs::hard_link(&good, &kept)?;
    fs::set_permissions(&theirs, PermissionsExt::from_mode(0o777))?;
    let inode = fs::metadata(&good)?.ino();
    let policy = s.policy(&only(&member).allow("good", &good))?;
    let put = |file: &str| fs::hard_link(file, &next).and_then(|()| fs::rename(&next, &good));
    let (count, stop, mut fifo) = (if in_guest() { 40 } else { 400 }, AtomicBool::new(false), Fifo::new(s)?);
    fs::set_permissions(&fifo.path, PermissionsExt::from_mode(0o666))?;
    let line = format!("fifo {} many {count} {good} --work nothing", fifo.path);
    let running = s.launch(&policy, &member, &line).user(USER.0, USER.1).start()?;
    let session = running.session(s)?;
    let swaps = thread::scope(|scope| {
        let swapping = scope.spawn(|| -> Result<u32> {
            let mut swaps = 0;
            while !stop.load(Ordering::Relaxed) {
                put(&theirs)?;
                put(&kept)?;
                swaps += 1;
            }
            Ok(swaps)
        });
        let ended = fifo.wake().and_then(|()| running.wait_for(4 * patience()));
        stop.store(true, Ordering::Relaxed);
        let swaps = swapping.join().map_err(|_panic| anyhow::anyhow!("who swaps the files panicked"))??;
        ended?.ended(0)?;
        Ok::<_, anyhow::Error>(swaps)
    })?;
    ensure!(swaps > 0, "nothing was swapped");
    s.session_ended(&session, "completed")?;
    let execs = s.records(&session, "exec")?;
    let others = execs.iter().filter(|r| r["verdict"] == "allow" && r["rule"] == "good" && r["file"]["inode"] != inode);
    let others: Vec<_> = others.collect();
    ensure!(others.is_empty(), "of {swaps} swaps, what ran as the rule's file: {others:?}");
    let refused = execs.iter().filter(|r| r["verdict"] == refusal(s)).count();
    eprintln!("{swaps} swaps, {refused} of {count} refused");
    // once it stands there for good it is the rule's again
    until("the rule's file to run", patience(), || {
        let running =
            s.launch(&policy, &member, &format!("spawn {good} --work nothing")).user(USER.0, USER.1).start()?;
        Ok((running.wait()?.stdout == "exit 0").then_some(()))
    })
}
