//! The escape matrix: what a member tries to get out of its session, one small program each, as an ordinary user, as root
//! without capabilities and as root with them. Each attempt has its allow twin, which shows that the program works, and the
//! effect that must not exist. What succeeds must stand in docs/threat-model.md with its reason.
//!
//! All attempts of one kind of user are made in one session, each by a process of its own.

mod acts;
mod attempt;
mod driver;
mod elf;
mod gifts;
mod govern;
mod judge;
mod known;
mod leave;
mod privilege;
mod run;
mod send;
mod sends;
mod stage;
mod time;
mod unix;
mod victim;

pub(crate) use acts::act;
pub(crate) use driver::attempts;
pub(crate) use elf::PROGRAM;

use std::time::Duration;

use attempt::{Attempt, EVERYBODY, Twin, Who};
use driver::Outcome;
use judge::{Judge, Seen};
use stage::{Part, Stage, USER};

use crate::harness::{
    launch::{Finished, bare},
    prelude::*,
    wait::in_guest,
};

pub(crate) const TESTS: &[Test] = &[Test::sharing("escapes::matrix", WHEREVER, matrix).lasting(240).each_kernel()];

/// Every attempt but those on time, by the promise that it attacks.
const ATTEMPTS: [&[Attempt]; 5] =
    [leave::ATTEMPTS, run::ATTEMPTS, sends::ATTEMPTS, privilege::ATTEMPTS, govern::ATTEMPTS];

/// A function that returns a number, as x86-64 has it.
const CODE: [u8; 6] = [0xb8, 0x2a, 0, 0, 0, 0xc3];
const CODE_SAYS: i32 = 42;

fn all() -> impl Iterator<Item = &'static Attempt> {
    ATTEMPTS.iter().flat_map(|some| some.iter())
}

/// Those on time too.
#[cfg(test)]
fn all_and_time() -> impl Iterator<Item = &'static Attempt> {
    all().chain(time::ATTEMPTS)
}

fn matrix(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let attempts: Vec<&Attempt> = all().filter(|attempt| in_guest() || !attempt.guests).collect();
    let stage = Stage::new(s, &attempts)?;
    let rows: Vec<&Attempt> = attempts.iter().copied().chain(time::ATTEMPTS).collect();
    let mut judge = Judge::new(s.tier, &rows)?;
    for who in EVERYBODY {
        stage.prepare(who, &attempts)?;
        for (part, outcome) in made(s, &stage, who, &attempts, &mut judge)? {
            let attempt = attempts[part.number];
            // what a twin brings about can take a moment
            let waits = part.twin && outcome.answer == "ok";
            let limit = Duration::from_secs(if waits { 2 } else { 0 });
            let came = || {
                stage.look()?;
                stage.came_about(attempt, part, &outcome.answer)
            };
            let did = came()? || waits && until("an effect", limit, || Ok(came()?.then_some(()))).is_ok();
            judge.saw(part, Seen { outcome, did });
        }
    }
    time::matrix(s, &stage, &mut judge, attempts.len())?;
    judge.add_evidence(&s.evidence()?);
    let verdict = judge.close();
    stage.clear()?;
    verdict
}

/// Makes the attempts of one kind of user in a session, and the twins of those that have none in it outside.
fn made(
    s: &Sandbox,
    stage: &Stage<'_>,
    who: Who,
    attempts: &[&Attempt],
    judge: &mut Judge<'_>,
) -> Result<Vec<(Part, Outcome)>> {
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    for (number, attempt) in attempts.iter().enumerate() {
        let part = |twin| Part { who, number, twin };
        inside.push(part(false));
        if attempt.twin == Twin::Inside { inside.push(part(true)) } else { outside.push(part(true)) }
    }
    let user = (who == Who::User).then_some(USER);
    // without BPF LSM `run` takes root's capabilities away
    let bare_inside = who == Who::Bare && s.tier == Tier::Full;
    let words = driver_words(s, stage, attempts, &inside, bare_inside)?;
    let mut launch = s.launch(&s.policy(&stage.policy(who))?, &stage.member, &words);
    if let Some((user, group)) = user {
        launch = launch.user(user, group);
    }
    let running = launch.start()?;
    let session = running.session(s)?;
    let finished = running.wait_for(4 * patience())?;
    s.session_ended(&session, "completed")?;
    judge.session(who, session);
    let mut all = read(&finished, &inside).with_context(|| format!("{} in a session", who.name()))?;
    let words = driver_words(s, stage, attempts, &outside, who == Who::Bare)?;
    let mut command = bare(stage.member.as_ref());
    command.arg("--work").args(words.split(' '));
    let finished = Running::spawn(s, command, user)?.wait_for(4 * patience())?;
    all.extend(read(&finished, &outside).with_context(|| format!("{} outside", who.name()))?);
    stage.look()?;
    Ok(all)
}

/// Seconds that an attempt may take; one that takes longer hangs.
const MOST: u32 = 30;

/// What the driver is told: the words of each part, a line each, in a file.
fn driver_words(s: &Sandbox, stage: &Stage<'_>, attempts: &[&Attempt], parts: &[Part], bare: bool) -> Result<String> {
    let lines: Vec<String> = parts.iter().map(|part| stage.words(attempts[part.number], *part)).collect();
    let file = s.file("attempts");
    std::fs::write(&file, lines.join("\n") + "\n")?;
    Ok(format!("attempts {file} {MOST}{}", if bare { " bare" } else { "" }))
}

fn read(finished: &Finished, parts: &[Part]) -> Result<Vec<(Part, Outcome)>> {
    finished.ended(0)?;
    let outcomes: Vec<Outcome> = finished.stdout.lines().filter_map(driver::parse).collect();
    ensure!(outcomes.len() == parts.len(), "{} of {} attempts were made: {finished:?}", outcomes.len(), parts.len());
    Ok(parts.iter().copied().zip(outcomes).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::all_and_time as all;

    #[test]
    fn names_are_unique() {
        let mut seen = BTreeSet::new();
        for attempt in all() {
            assert!(seen.insert(attempt.full_name()), "{} twice", attempt.full_name());
        }
    }

    #[test]
    fn what_is_known_to_be_open_stands_in_the_threat_model() {
        let text = include_str!("../../../docs/threat-model.md");
        for attempt in all() {
            for known in attempt.open {
                let number = format!("| O{} |", known.o);
                assert!(text.contains(&number), "{}: there is no {number} in the threat model", attempt.full_name());
            }
        }
    }
}
