//! First arguments that change while they are judged.

use std::path::Path;

use super::scene::only;
use crate::harness::{prelude::*, wait::in_guest};

pub(super) const TESTS: &[Test] = &[Test::sharing("programs::first-argument-that-flips", WHEREVER, flipping)];

/// The caller changes the first argument while the kernel reads it: what is judged is what the new program has, so that one
/// word runs, the other never does, and each record says of itself which it was.
fn flipping(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, good, mark) = (s.program("member")?, s.program("good")?, s.file("mark"));
    let times = if in_guest() { 50 } else { 300 };
    let policy = only(&member).exec_rule("allow", &format!("{{ path: \"{good}\", subcommands: [status], id: words }}"));
    let line = format!("flip-argv {times} {good} status --work mark {mark}");
    let running = s.run(&s.policy(&policy)?, &member, &line)?;
    let session = running.session(s)?;
    let said = running.wait_for(2 * patience())?.stdout;
    s.session_ended(&session, "completed")?;
    ensure!(!Path::new(&mark).exists(), "the other word ran");
    let execs = s.records(&session, "exec")?;
    let (mut ran, mut killed) = (0, 0);
    for record in execs.iter().filter(|record| record["path"] == good) {
        let (word, found) = (&record["args"][1], (record["verdict"].as_str(), record["rule"].as_str()));
        let right = if word == "status" { ("allow", "words") } else { ("kill", "default") };
        ensure!(found == (Some(right.0), Some(right.1)), "{word} has the record {record}");
        *(if word == "status" { &mut ran } else { &mut killed }) += 1;
    }
    ensure!(ran > 0 && killed > 0 && ran + killed == times, "{ran} ran and {killed} were killed of {times}");
    ensure!(said == format!("{ran} ended {killed} killed 0 not started"), "{said:?}, but {ran} and {killed} records");
    Ok(())
}
