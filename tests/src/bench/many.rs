//! `many`: whether an exec decision gets slower with the rules of its policy and with the sessions beside its own: by the
//! kernel's own count of the time of the program that decides, round by round.

use std::{
    fs,
    process::{Child, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{
    Ground, place,
    programs::{each, since},
    report::{Bound, Figures, Row, Target},
    worker::{Worker, smallest},
};
use crate::harness::{
    bpf::{self, stats_of},
    launch::enter,
    policy::Policy,
    wait::{patience, until},
};

/// Rules of the larger policy, each on a file of its own.
const RULES: usize = 10_000;
/// Sessions beside the measured one.
const SESSIONS: usize = 1_000;
/// Sessions that are started at a time.
const AT_ONCE: usize = 8;
/// Measurements of each kind.
const ROUNDS: usize = 9;
/// Execs in one.
const EXECS: u32 = 500;
/// What 10,000 rules may cost over one.
const MANY_RULES: Target = Target { name: "P11", bound: Bound::AtMost(150.0) };
/// Other sessions cost nothing that can be told from none.
const MANY_SESSIONS: Target = Target { name: "P11", bound: Bound::Nothing(20.0) };
/// What decides on an exec, in tier full and in tier no-lsm.
const DECIDES: [&str; 2] = ["bprm_check_security", "exec"];

pub(super) fn run(ground: &mut Ground) -> Result<Vec<Row>> {
    eprintln!("bench: many");
    place::pin(place::AGENT)?;
    ground.start()?;
    let counting = bpf::count_time().context("the kernel does not count the time of programs")?;
    let few = ground.programs.policy(1);
    let many = rules(ground, few.clone())?;
    let [one_denial, denials] = [1, RULES].map(|count| denying(ground, count));
    let (few, many) = (ground.sandbox.policy(&few)?, ground.sandbox.policy(&many)?);
    let (one_denial, denials) = (ground.sandbox.policy(&one_denial)?, ground.sandbox.policy(&denials)?);
    let mut first = Worker::inside(&ground.programs, &ground.sandbox, &few)?;
    let mut second = Worker::inside(&ground.programs, &ground.sandbox, &many)?;
    let mut third = Worker::inside(&ground.programs, &ground.sandbox, &one_denial)?;
    let mut fourth = Worker::inside(&ground.programs, &ground.sandbox, &denials)?;
    let (mut one, mut ten_thousand, mut denies, mut deny) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        one.push(measure(ground, &mut first)?);
        ten_thousand.push(measure(ground, &mut second)?);
        denies.push(measure(ground, &mut third)?);
        deny.push(measure(ground, &mut fourth)?);
    }
    third.end()?;
    fourth.end()?;
    let crowd = Crowd::start(ground)?;
    let mut beside = Vec::new();
    for _ in 0..ROUNDS {
        beside.push(measure(ground, &mut first)?);
    }
    crowd.end()?;
    first.end()?;
    second.end()?;
    drop(counting);
    ground.stop()?;
    let row = |what: &str, off: &Vec<f64>, on, target| Row {
        bench: "many",
        what: what.to_owned(),
        unit: "ns",
        target,
        figures: Figures::Compared { off: off.clone(), on, floor: None },
    };
    Ok(vec![
        row("an exec decision, 10,000 rules against 3", &one, ten_thousand, Some(MANY_RULES)),
        row("an exec decision, 1 rule that denies a place against none", &one, denies.clone(), None),
        row("an exec decision, 10,000 rules that deny places against 1", &denies, deny, Some(MANY_RULES)),
        row("an exec decision, 1,000 sessions against 2", &one, beside, Some(MANY_SESSIONS)),
    ])
}

/// The policy, and so many rules that deny what is not there.
fn denying(ground: &Ground, count: usize) -> Policy {
    let folder = ground.sandbox.folder().join("bin");
    let rule = |policy: Policy, n: usize| policy.deny(&format!("none-{n}"), folder.join(format!("none-{n}")).display());
    (0..count).fold(ground.programs.policy(1), rule)
}

/// The policy, and a rule for each of many programs.
fn rules(ground: &Ground, policy: Policy) -> Result<Policy> {
    let folder = ground.sandbox.folder().join("bin/many");
    fs::create_dir_all(&folder)?;
    (0..RULES).try_fold(policy, |policy, n| {
        let path = smallest(&folder.join(n.to_string()))?;
        Ok(policy.allow(&format!("exec-{n}"), path))
    })
}

/// The mean time of a decision over so many execs of one program.
fn measure(ground: &Ground, worker: &mut Worker) -> Result<f64> {
    let pins = ground.sandbox.pins();
    // a batch before the counted one, to warm up
    worker.time("vfork-exec", EXECS / 5)?;
    let before = stats_of(pins)?;
    worker.time("vfork-exec", EXECS)?;
    let after = stats_of(pins)?;
    place::quiet(ground.sandbox.agent_pid()?)?;
    let decides = DECIDES.into_iter().find(|name| after.contains_key(*name));
    let decides = decides.context("the agent has no program that decides on an exec")?;
    let during = since(after[decides], before.get(decides).copied());
    ensure!(during.runs >= u64::from(EXECS), "{decides} ran {} times during {EXECS} execs", during.runs);
    Ok(each(&during))
}

/// Sessions that sleep. Dropped, their first processes are killed.
struct Crowd(Vec<Child>);

impl Crowd {
    fn start(ground: &Ground) -> Result<Self> {
        let policy = ground.sandbox.policy(&Policy::new().allow("sleeper", &ground.programs.sleeper))?;
        let mut crowd = Self(Vec::new());
        for _ in 0..SESSIONS {
            let mut command = ground.sandbox.tipstaff();
            command.args(["run", "--policy", &policy, "--", &ground.programs.sleeper]).stdin(Stdio::null());
            enter(&mut command, ground.sandbox.callers(), None)?;
            crowd.0.push(command.spawn().with_context(|| format!("{command:?} cannot be started"))?);
            let asked = crowd.0.len();
            until(&format!("session {asked} to start"), patience(), || {
                Ok((asked - sessions(ground)? < AT_ONCE).then_some(()))
            })?;
        }
        until("all sessions to start", patience(), || Ok((sessions(ground)? == SESSIONS).then_some(())))?;
        place::quiet(ground.sandbox.agent_pid()?)?;
        Ok(crowd)
    }

    fn end(mut self) -> Result<()> {
        for mut child in self.0.drain(..) {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // both fail where it has ended: then there is nothing to do
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sessions that stand beside the two that are measured.
fn sessions(ground: &Ground) -> Result<usize> {
    let folder = ground.sandbox.part("sessions");
    let children = fs::read_dir(folder.path())?.flatten().filter(|entry| entry.path().is_dir());
    Ok(children.count().saturating_sub(2))
}
