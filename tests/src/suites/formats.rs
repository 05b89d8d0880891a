//! Programs of a format that the kernel does not know and somebody registered a handler for (`binfmt_misc`): the kernel runs the
//! handler in their place, as it runs a script's interpreter.

use std::{fs, path::PathBuf};

use super::{
    exec::{spawn_script, write_script},
    scene::{only, refusal},
};
use crate::harness::{mounts::Mounted, prelude::*};

pub(super) const TESTS: &[Test] = &[Test::sharing("exec::format-that-somebody-registered", WHEREVER, registered)
    .guests_only("registers a format of programs")];

/// A format that is registered until this is dropped, by the end of a file's name.
struct Format {
    entry: PathBuf,
    _mounted: Mounted,
}

impl Format {
    const NAME: &str = "tipstaff-tests";

    fn register(s: &Sandbox, ending: &str, handler: &str) -> Result<Self> {
        let folder = PathBuf::from(s.file("formats"));
        fs::create_dir(&folder)?;
        let mut mounted = Mounted::default();
        mounted.add(("none", Some("binfmt_misc")), &folder, None)?;
        let entry = folder.join(Self::NAME);
        fs::write(folder.join("register"), format!(":{}:E::{ending}::{handler}:", Self::NAME))
            .context("registering a format")?;
        Ok(Self { entry, _mounted: mounted })
    }
}

impl Drop for Format {
    fn drop(&mut self) {
        let _ = fs::write(&self.entry, "-1");
    }
}

/// The file, the handler and what runs the handler, which is a script, are each judged in tier full. What a rule on first
/// arguments says of such a file nobody could tell later: it is refused. In tier no-lsm the last of them decides, which control
/// `exec-script` says.
fn registered(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let (member, interpreter) = (s.program("member")?, s.program("interpreter")?);
    let (handler, app, mark) = (format!("{}/handler", s.bin()), format!("{}/app.tipstaff", s.bin()), s.file("mark"));
    write_script(&handler, &interpreter, &mark)?;
    fs::copy(&handler, &app)?;
    fs::write(&app, "of no format that the kernel knows")?;
    let _format = Format::register(s, "tipstaff", &handler)?;
    let rest = only(&member).allow("handler", &handler).allow("interpreter", &interpreter);
    let words = |effect: &str| format!("{{ path: \"{app}\", subcommands: [status], id: {effect} }}");
    let worded = rest.clone().exec_rule("allow", &words("worded"));
    let unworded = Policy::new().allow_dir("all", s.bin()).exec_rule("deny", &words("unworded"));
    let headless = only(&member).allow("app", &app).allow("interpreter", &interpreter);
    for (policy, rule) in
        [(&rest, "default"), (&headless, "default"), (&worded, "unresolved"), (&unworded, "unresolved")]
    {
        let (said, ran, session) = spawn_script(s, policy, &member, &app, &mark)?;
        if s.tier == Tier::Full {
            ensure!(said == "errno 1" && !ran, "{rule}: {said}, ran: {ran}");
            s.saw_exec(&session, &app, refusal(s), rule)?;
            continue;
        }
        ensure!(said == "exit 0" && ran, "{rule}: {said}, ran: {ran}");
        fs::remove_file(&mark)?;
    }
    let open = rest.allow("app", &app);
    let (said, ran, session) = spawn_script(s, &open, &member, &app, &mark)?;
    ensure!(said == "exit 0" && ran, "in scope: {said}, ran: {ran}");
    s.saw_exec(&session, &app, "allow", "interpreter")?;
    let strict = s.run(&s.policy(&open.strict())?, &member, "nothing")?.wait()?;
    if s.tier == Tier::Full {
        strict.ended(0).map(drop)
    } else {
        strict.ended(125)?.complained(&["exec-script", "strict"]).map(drop)
    }
}
