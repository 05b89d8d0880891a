//! Arms the clock program on every online CPU while sessions live, and takes it off after the last. A CPU that comes
//! online meanwhile has no clock until the next session begins it anew.

use aya::programs::{
    PerfEvent,
    links::FdLink,
    perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
};

use super::{Kernel, KernelError, Pins};

/// Ticks a second on each CPU.
const RATE: u64 = 10;
const PROGRAM: &str = "clock";

impl Kernel {
    /// Arms the clock, if it is not. Pinned, it goes on without the agent.
    pub fn arm_clock(&mut self, pins: Option<&Pins>) -> Result<(), KernelError> {
        if self.clock_runs {
            return Ok(());
        }
        let armed = self.attach_clock(pins);
        if armed.is_err() {
            self.disarm_clock(pins)?;
        }
        self.clock_runs = armed.is_ok();
        armed
    }

    /// Takes the clock off.
    pub fn disarm_clock(&mut self, pins: Option<&Pins>) -> Result<(), KernelError> {
        self.clock_runs = false;
        self.clock.clear();
        pins.map_or(Ok(()), |pins| pins.clear_links(PROGRAM))
    }

    fn attach_clock(&mut self, pins: Option<&Pins>) -> Result<(), KernelError> {
        let refused = |error: &dyn std::error::Error| KernelError::refused(format!("program {PROGRAM}"), error);
        let cpus = aya::util::online_cpus().map_err(|(path, e)| KernelError::file("read", path)(e))?;
        for cpu in cpus {
            let program: &mut PerfEvent = self.typed(PROGRAM)?;
            let config = PerfEventConfig::Software(SoftwareEvent::CpuClock);
            let scope = PerfEventScope::AllProcessesOneCpu { cpu };
            let id = program.attach(config, scope, SamplePolicy::Frequency(RATE), false).map_err(|e| refused(&e))?;
            let link = program.take_link(id).map_err(|e| refused(&e))?;
            let link = FdLink::try_from(link).map_err(|e| refused(&e))?;
            match pins {
                None => self.clock.push(link),
                Some(pins) => {
                    let path = pins.link(&format!("{PROGRAM}{cpu}"));
                    link.pin(path).map_err(|e| refused(&e))?;
                }
            }
        }
        Ok(())
    }
}
