//! `control`: from the call to what a live session's members see of it.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::{
    Ground, place,
    report::{Bound, Figures, Row, Target},
    watch::Receiver,
    worker::Worker,
};
use crate::harness::wait::{boot_ns, patience, until};

/// Calls of each sort.
const TRIALS: u32 = 50;
/// For whatever was sent before a session stood still to arrive.
const SETTLE: Duration = Duration::from_millis(20);

pub(super) fn run(ground: &mut Ground) -> Result<Vec<Row>> {
    eprintln!("bench: control");
    place::pin(place::AGENT)?;
    ground.start()?;
    let mut rows = Vec::new();
    for rules in [256, 10_000] {
        rows.extend(narrow(ground, rules)?);
    }
    rows.extend(freeze(ground)?);
    ground.stop()?;
    place::unpin()?;
    Ok(rows)
}

/// Each trial removes the rule by which the member goes on connecting.
fn narrow(ground: &Ground, rules: u32) -> Result<[Row; 2]> {
    let policy = ground.sandbox.policy(&ground.programs.policy(rules))?;
    let mut worker = Worker::inside(&ground.programs, &ground.sandbox, &policy)?;
    let session = ground.sandbox.session_of(worker.pid())?;
    let socket = ground.sandbox.folder().join("run/operate.sock");
    let (mut times, mut flips) = (Vec::new(), Vec::new());
    for n in 0..TRIALS {
        let (begin, answer, refused) = thread::scope(|scope| {
            let member = scope.spawn(|| worker.ask(&format!("refused {n}")));
            let begin = boot_ns()?;
            let answer = call(&socket, "Narrow", &json!({"id": session, "remove": [format!("net-{n}")]}))?;
            let refused = member.join().map_err(|_panic| anyhow!("the member's thread broke down"))??;
            Ok::<_, anyhow::Error>((begin, answer, refused.parse::<u64>().with_context(|| refused.clone())?))
        })?;
        ensure!(refused > begin, "net-{n} was refused before it was removed");
        times.push((refused - begin) as f64 / 1e6);
        let [whole, waited] = ["ms", "waited_ms"].map(|field| answer[field].as_f64());
        flips.push(whole.context("ms")? - waited.context("waited_ms")?);
    }
    worker.end()?;
    let what = format!("narrow, of {rules} rules: request to in force, without the kernel's wait (RCU)");
    let in_force = Some(Target { name: "P9", bound: Bound::AtMost(25.0) });
    Ok([
        row(format!("narrow, of {rules} rules: call to first refusal"), Figures::Spread(times)),
        Row { bench: "control", what, unit: "ms", target: in_force, figures: Figures::Spread(flips) },
    ])
}

fn freeze(ground: &Ground) -> Result<[Row; 2]> {
    let policy = ground.sandbox.policy(&ground.programs.policy(1))?;
    let receiver = Receiver::start()?;
    let mut worker = Worker::inside(&ground.programs, &ground.sandbox, &policy)?;
    let session = ground.sandbox.session_of(worker.pid())?;
    let socket = ground.sandbox.folder().join("run/operate.sock");
    worker.ask(&format!("flows 1 {}", receiver.port))?;
    receiver.opened(1)?;
    let (mut frozen, mut thawed) = (Vec::new(), Vec::new());
    for _ in 0..TRIALS {
        let begin = boot_ns()?;
        call(&socket, "Freeze", &json!({"id": session}))?;
        thread::sleep(SETTLE);
        frozen.push(receiver.last_sent_ns().saturating_sub(begin) as f64 / 1e6);
        let begin = boot_ns()?;
        call(&socket, "Thaw", &json!({"id": session}))?;
        until("a thawed member to send", patience(), || Ok((receiver.last_sent_ns() > begin).then_some(())))?;
        thawed.push((boot_ns()? - begin) as f64 / 1e6);
    }
    call(&socket, "End", &json!({"id": session, "reason": "operator"}))?;
    Ok([
        row("freeze: call to last byte sent".to_owned(), Figures::Spread(frozen)),
        row("thaw: call to next byte received".to_owned(), Figures::Spread(thawed)),
    ])
}

fn row(what: String, figures: Figures) -> Row {
    let target = Some(Target { name: "R51", bound: Bound::AtMost(100.0) });
    Row { bench: "control", what, unit: "ms", target, figures }
}

/// Calls the agent through its socket, as `tipstaff` does. What it answers.
pub(super) fn call(socket: &Path, method: &str, parameters: &Value) -> Result<Value> {
    let mut stream = UnixStream::connect(socket).context("operate.sock")?;
    stream.set_read_timeout(Some(patience()))?;
    let call = json!({"method": format!("dev.tipstaff.{method}"), "parameters": parameters});
    stream.write_all(format!("{call}\0").as_bytes())?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 && byte != [0] {
        answer.extend(byte);
    }
    let answer: Value = serde_json::from_slice(&answer).context("the agent's answer")?;
    ensure!(answer["error"].is_null(), "the agent refused {method}: {answer}");
    Ok(answer["parameters"].clone())
}
