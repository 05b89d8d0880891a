//! Stopping what is in a session's cgroup, and letting it go: the freezer of cgroup v2. A frozen task can be killed; a
//! task outside the cgroup is not reached.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use super::{SessionCgroup, step_out};

/// How long the kernel may take to stop them. A task in uninterruptible sleep stops when it wakes.
const PATIENCE: Duration = Duration::from_millis(100);
const GLANCE: Duration = Duration::from_millis(1);

impl SessionCgroup {
    /// Stops everything in it and below it. True: the kernel says that all of it stands still.
    pub fn freeze(&self) -> io::Result<bool> {
        step_out(self.path())?;
        fs::write(self.path().join("cgroup.freeze"), "1")?;
        let start = Instant::now();
        while !self.is_frozen()? {
            if start.elapsed() > PATIENCE {
                return Ok(false);
            }
            std::thread::sleep(GLANCE);
        }
        Ok(true)
    }

    /// Lets everything in it run.
    pub fn thaw(&self) -> io::Result<()> {
        fs::write(self.path().join("cgroup.freeze"), "0")
    }

    /// Whether its freezer is set, whatever stands still already.
    #[must_use]
    pub fn is_to_freeze(&self) -> bool {
        fs::read_to_string(self.path().join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
    }

    fn is_frozen(&self) -> io::Result<bool> {
        Ok(fs::read_to_string(self.path().join("cgroup.events"))?.contains("frozen 1"))
    }
}
