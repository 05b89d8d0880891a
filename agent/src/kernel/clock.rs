//! Arms the clock program on every online CPU while sessions live, and takes it off after the last. A CPU that comes
//! online meanwhile is armed when the agent learns of it: a perf event does not come back with its CPU (measured).

use std::fs;

use aya::programs::{
    PerfEvent,
    links::FdLink,
    perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
};

use super::{Kernel, KernelError, Pins};

/// Ticks a second on each CPU.
const RATE: u64 = 10;
/// The same while the canary proves it: nobody has to wait a tenth of a second for what a hundredth shows as well.
const PROVING_RATE: u64 = 100;
const PROGRAM: &str = "clock";

impl Kernel {
    /// Arms the clock, if it is not. Pinned, it goes on without the agent.
    pub fn arm_clock(&mut self, pins: Option<&Pins>) -> Result<(), KernelError> {
        self.arm_at(RATE, pins)
    }

    /// Arms the clock for the canary: with the process, and fast.
    pub fn arm_clock_to_prove(&mut self) -> Result<(), KernelError> {
        self.arm_at(PROVING_RATE, None)
    }

    fn arm_at(&mut self, rate: u64, pins: Option<&Pins>) -> Result<(), KernelError> {
        if self.clock_runs {
            return Ok(());
        }
        let armed = online()?.into_iter().try_for_each(|cpu| self.arm_on(cpu, rate, pins));
        if armed.is_err() {
            self.disarm_clock(pins)?;
        }
        self.clock_runs = armed.is_ok();
        armed
    }

    /// Arms the clock anew on one CPU, or on all, where it runs at all.
    pub fn rearm_clock(&mut self, pins: Option<&Pins>, only: Option<u32>) -> Result<(), KernelError> {
        if !self.clock_runs {
            return Ok(());
        }
        let wanted = |cpu: &u32| only.is_none_or(|only| only == *cpu);
        online()?.into_iter().filter(wanted).try_for_each(|cpu| self.arm_on(cpu, RATE, pins))
    }

    /// Takes the clock off.
    pub fn disarm_clock(&mut self, pins: Option<&Pins>) -> Result<(), KernelError> {
        self.clock_runs = false;
        self.clock.clear();
        pins.map_or(Ok(()), |pins| pins.clear_links(self.generation, PROGRAM))
    }

    /// Attaches and pins the clock for one CPU, and only then lets an earlier one of that CPU go: a rename over a pin is one
    /// step in a bpffs (`bpf_dir_iops`, `kernel/bpf/inode.c`).
    fn arm_on(&mut self, cpu: u32, rate: u64, pins: Option<&Pins>) -> Result<(), KernelError> {
        let refused =
            |error: &(dyn std::error::Error + 'static)| KernelError::refused(format!("program {PROGRAM}"), error);
        let generation = self.generation;
        let program: &mut PerfEvent = self.typed(PROGRAM)?;
        let config = PerfEventConfig::Software(SoftwareEvent::CpuClock);
        let scope = PerfEventScope::AllProcessesOneCpu { cpu };
        let id = program.attach(config, scope, SamplePolicy::Frequency(rate), false).map_err(|e| refused(&e))?;
        let link = program.take_link(id).map_err(|e| refused(&e))?;
        let link = FdLink::try_from(link).map_err(|e| refused(&e))?;
        let Some(pins) = pins else {
            self.clock.push(link);
            return Ok(());
        };
        let path = pins.link(generation, &format!("{PROGRAM}{cpu}"));
        // beside it first: an agent that dies in between leaves one clock too many, never none
        let beside = pins.link(generation, &format!("{PROGRAM}{cpu}_next"));
        if beside.exists() {
            fs::remove_file(&beside).map_err(KernelError::file("remove", &beside))?;
        }
        link.pin(&beside).map_err(|e| refused(&e))?;
        fs::rename(&beside, &path).map_err(KernelError::file("put in its place", &beside))
    }
}

fn online() -> Result<Vec<u32>, KernelError> {
    aya::util::online_cpus().map_err(|(path, e)| KernelError::file("read", path)(e))
}
