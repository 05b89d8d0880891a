//! Random orders and random faults against a model of what must hold: who is a member, who may do what, who is over. What is
//! drawn follows from a number, which is printed: the same number draws the same again.

use std::time::{Duration, Instant};

use anyhow::bail;
use nix::sys::signal::Signal;

use super::{
    Asked, By, Fault, Form,
    model::{Member, Scene},
};
use crate::{
    harness::{
        prelude::*,
        wait::{all_gone, boot_ns, gone},
    },
    suites::scene::SmallDisk,
};

#[rustfmt::skip]
pub(super) const ROWS: &[Fault] = &[Fault {
    promise: "restart",
    name: "soak",
    what: "random orders (run, attach, narrow, freeze, thaw, renew, end) and random faults (SIGKILL, SIGSTOP, SIGTERM, no room for \
           the store or the evidence, evidence that can only be read as an agent starts)",
    holds: "after each: who is alive, who is refused what, whose time is over, and what the agent says of it",
    by: By::Row { run: soak, lasts: 100_000, guests: None, long: false },
}];

/// Sessions at a time.
const MOST: usize = 5;
/// How many of the last steps a failure shows.
const SHOWN: usize = 12;

/// Numbers that follow from the first (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(drawn).unwrap_or(0) % limit.max(1)
    }
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Run { brief: bool },
    Attach,
    Wake,
    Narrow,
    FreezeOrThaw,
    Renew,
    End,
    Kill,
    Stop,
    Suspend,
    FullStore,
    FullEvidence,
    ReadOnlyEvidence,
}

/// In the order of their weights.
const STEPS: [Step; 18] = [
    Step::Wake,
    Step::Run { brief: false },
    Step::Wake,
    Step::Run { brief: true },
    Step::Attach,
    Step::Wake,
    Step::Narrow,
    Step::FreezeOrThaw,
    Step::Wake,
    Step::FreezeOrThaw,
    Step::Renew,
    Step::End,
    Step::Kill,
    Step::Suspend,
    Step::Stop,
    Step::FullStore,
    Step::FullEvidence,
    Step::ReadOnlyEvidence,
];

fn soak(s: &mut Sandbox, asked: Asked) -> Result<Vec<String>> {
    let seed = match asked.seed {
        Some(seed) => seed,
        None => boot_ns()? % 1_000_000_007,
    };
    let usual = match asked.form {
        Form::Short => 20,
        Form::Long => 120,
    };
    let seconds = asked.soak.unwrap_or(usual);
    let disk = SmallDisk::over(s, "state", 8192)?;
    // far more than the records of so long a time take
    let kilobytes = u32::try_from(seconds.saturating_mul(64)).unwrap_or(u32::MAX).max(16_384);
    let evidence = SmallDisk::over(s, "evidence", kilobytes)?;
    s.start()?;
    let mut soak = Soak {
        scene: Scene::new(s)?,
        members: Vec::new(),
        dice: Dice(seed | 1 << 40),
        disk,
        evidence,
        history: Vec::new(),
    };
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        let step = soak.step(s).and_then(|()| soak.all_is_as_it_must_be(s));
        step.with_context(|| {
            let shown = soak.history.len().saturating_sub(SHOWN);
            format!("seed {seed}, after {} steps, the last of them {:?}", soak.history.len(), &soak.history[shown..])
        })?;
    }
    let steps = soak.history.len();
    soak.close(s).with_context(|| format!("seed {seed}, after {steps} steps"))?;
    Ok(vec![format!("seed {seed}: {steps} steps in {seconds} s")])
}

struct Soak {
    scene: Scene,
    members: Vec<Member>,
    dice: Dice,
    disk: SmallDisk,
    evidence: SmallDisk,
    history: Vec<String>,
}

impl Soak {
    fn step(&mut self, s: &mut Sandbox) -> Result<()> {
        // as many draws for each step, whatever comes of it
        let (drawn, who) = (STEPS[self.dice.below(STEPS.len())], self.dice.below(1 << 20));
        let begins = matches!(drawn, Step::Run { .. } | Step::Attach);
        let step = match drawn {
            _ if self.members.is_empty() && !begins => Step::Run { brief: false },
            _ if self.members.len() >= MOST && begins => Step::End,
            other => other,
        };
        let index = who % self.members.len().max(1);
        self.history.push(format!("{step:?} {index}"));
        match step {
            Step::Run { brief } => self.members.push(self.scene.run(s, brief)?),
            Step::Attach => self.members.push(self.scene.attach(s)?),
            Step::Kill => self.without_agent(s, index, Sandbox::kill_agent)?,
            Step::Stop => self.without_agent(s, index, Sandbox::stop_agent)?,
            Step::Suspend => {
                s.signal_agent(Signal::SIGSTOP)?;
                let held = self.wake(s, index);
                s.signal_agent(Signal::SIGCONT)?;
                held?;
            }
            Step::FullStore => self.full_store(s, index)?,
            Step::FullEvidence => self.full_evidence(s, index)?,
            Step::ReadOnlyEvidence => self.read_only_evidence(s, index)?,
            Step::Wake => self.wake(s, index)?,
            Step::End => {
                let member = self.members.swap_remove(index);
                if !member.is_late()? {
                    let told = s.cli(&["end", &member.session])?;
                    ensure!(told.code == 0 || member.is_late()?, "end was answered {told:?}");
                }
                member.ends_well(s)?;
            }
            Step::Narrow | Step::FreezeOrThaw | Step::Renew => self.order(s, step, index)?,
        }
        Ok(())
    }

    /// An order that leaves the session there. One whose time is about to be over is left alone.
    fn order(&mut self, s: &Sandbox, step: Step, index: usize) -> Result<()> {
        let member = &mut self.members[index];
        if member.is_late()? {
            return Ok(());
        }
        let words: &[&str] = match step {
            Step::Narrow if member.narrowed => return Ok(()),
            Step::Narrow => &["narrow", &member.session, "--remove", "good"],
            Step::FreezeOrThaw if member.frozen => &["thaw", &member.session],
            Step::FreezeOrThaw => &["freeze", &member.session],
            _ => &["renew", &member.session, "--ttl", "10m"],
        };
        let told = s.cli(words)?;
        ensure!(told.code == 0, "{words:?} was answered {told:?}");
        match step {
            Step::Narrow => member.narrowed = true,
            Step::FreezeOrThaw => member.frozen = !member.frozen,
            _ => member.deadline = None,
        }
        if step == Step::FreezeOrThaw && !member.frozen {
            member.answers(s)?;
        }
        Ok(())
    }

    fn wake(&mut self, s: &Sandbox, index: usize) -> Result<()> {
        let Some(member) = self.members.get_mut(index) else { return Ok(()) };
        if !member.is_late()? && member.can_be_woken() {
            member.wake()?;
            if !member.frozen {
                member.answers(s)?;
            }
        }
        Ok(())
    }

    /// What holds holds while no agent runs, and with the next one.
    fn without_agent(&mut self, s: &mut Sandbox, index: usize, goes: fn(&mut Sandbox) -> Result<()>) -> Result<()> {
        goes(s)?;
        self.wake(s, index)?;
        s.start()?;
        self.wake(s, index)
    }

    /// With no room for what is kept nothing new starts, what runs is held, and there is room again.
    fn full_store(&mut self, s: &Sandbox, index: usize) -> Result<()> {
        self.disk.fill()?;
        let answered = self.scene.starts_or_is_refused(s);
        let held = answered.and_then(|()| self.wake(s, index));
        self.disk.make_room()?;
        let since = Instant::now();
        held?;
        until("the store to be whole again", patience(), || {
            Ok((!s.cli(&["status"])?.stdout.contains("No space left")).then_some(()))
        })?;
        s.healed(since);
        Ok(())
    }

    /// With no room for evidence what runs is held, and what is missing is told of. Of a session that ends meanwhile the end
    /// would be missing: there is none.
    fn full_evidence(&mut self, s: &mut Sandbox, index: usize) -> Result<()> {
        if self.members.iter().any(|member| member.deadline.is_some()) {
            return Ok(());
        }
        let gaps = |s: &Sandbox| Ok::<_, anyhow::Error>(s.evidence()?.iter().filter(|r| r["type"] == "gap").count());
        let unwritten = |s: &Sandbox| Ok::<_, anyhow::Error>(s.json(&["status"])?["evidence"]["unwritten"].as_u64());
        s.was_counted();
        let before = gaps(s)?;
        self.evidence.fill()?;
        let held = self.wake(s, index);
        let missing = unwritten(s)?;
        self.evidence.make_room()?;
        let since = Instant::now();
        held?;
        if missing > Some(0) {
            // whatever is recorded next is preceded by the gap
            self.scene.brief_visit(s)?;
            ensure!(gaps(s)? > before, "{missing:?} records are missing, and no gap tells of them");
            ensure!(unwritten(s)? == Some(0), "records are missing still, with room for them");
            s.healed(since);
        }
        Ok(())
    }

    /// An agent that could not write does not start; what is in force stays.
    fn read_only_evidence(&mut self, s: &mut Sandbox, index: usize) -> Result<()> {
        s.kill_agent()?;
        self.evidence.read_only(true)?;
        let refused = Running::spawn(s, s.daemon(), None)?.wait();
        let held = self.wake(s, index);
        self.evidence.read_only(false)?;
        refused?.ended(1)?.complained(&["tipstaff: ", "Read-only"])?;
        held?;
        s.start()
    }

    /// Every member whose time is not over is there, and the agent knows it as it is; whose time is over is gone.
    fn all_is_as_it_must_be(&mut self, s: &Sandbox) -> Result<()> {
        let mut index = 0;
        while index < self.members.len() {
            if self.members[index].has_passed()? {
                let member = self.members.swap_remove(index);
                member.ends_well(s)?;
            } else {
                index += 1;
            }
        }
        let listed = s.json(&["ps"])?;
        let rows = listed["sessions"].as_array().context("ps lists nothing")?;
        for member in self.members.iter().filter(|member| !member.is_late().unwrap_or(true)) {
            ensure!(!gone(member.pid()), "the first process of {} is gone", member.session);
            let row = rows.iter().find(|row| row["id"] == member.session);
            let row = row.with_context(|| format!("{} is not listed: {listed}", member.session))?;
            let state = if member.frozen { "frozen" } else { "active" };
            ensure!(row["state"] == state, "{} is {} where {state} was expected", member.session, row["state"]);
        }
        for row in rows {
            if !self.members.iter().any(|member| row["id"] == member.session) {
                bail!("a session is listed that is over: {row}");
            }
        }
        self.scene.unmarked()
    }

    fn close(mut self, s: &Sandbox) -> Result<()> {
        for member in self.members.drain(..) {
            let told = s.cli(&["end", &member.session])?;
            ensure!(told.code == 0 || member.is_late()?, "end was answered {told:?}");
            member.ends_well(s)?;
        }
        self.scene.untouched()?;
        let all = self.scene.pids();
        ensure!(!all.is_empty(), "nobody was a member");
        all_gone(&all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_number_draws_the_same_and_every_step_is_drawn() {
        let draw = |seed| {
            let mut dice = Dice(seed);
            (0..400).map(|_| dice.below(STEPS.len())).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!((0..STEPS.len()).all(|step| draw(7).contains(&step)));
    }
}
