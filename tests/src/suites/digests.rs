//! A digest holds for the bytes that run.

use std::{
    fs,
    io::{Read as _, Seek, Write},
    os::unix::fs::{FileExt as _, MetadataExt, OpenOptionsExt, PermissionsExt as _},
    path::Path,
};

use nix::errno::Errno;
use sha2::{Digest, Sha256};

use super::{
    exec::write_script,
    programs::{TRIES, Tries},
    scene::{attempt, only, refusal, refused_exec},
};
use crate::{
    harness::{disk::on_disk, launch::User, mapped::Mapped, mounts::Mounted, prelude::*, sandbox::OPERATORS},
    work::ring::{Doer, Ring},
};

pub(super) const TESTS: &[Test] = &[
    Test::sharing("digests::hold-for-the-bytes", WHEREVER, hold),
    Test::sharing("digests::a-mapping-outlives-its-descriptor", WHEREVER, mapped),
    Test::sharing("digests::taken-once", WHEREVER, once),
    Test::new("digests::with-no-agent-and-the-next-one", WHEREVER, orphaned),
    Test::sharing("digests::memory-keeps-no-promise", WHEREVER, in_memory),
    Test::sharing("digests::of-a-script", WHEREVER, scripts),
];

/// A byte of a program's first page that matters to nobody: the last of `e_ident`, which is padding (elf(5)).
const UNUSED: usize = 15;

/// A copy of this program in a folder.
fn copy(folder: &str, name: &str) -> Result<String> {
    let path = format!("{folder}/{name}");
    fs::copy("/proc/self/exe", &path)?;
    Ok(path)
}

pub(super) fn sha256(path: &str) -> Result<String> {
    Ok(Sha256::digest(fs::read(path)?).iter().map(|byte| format!("{byte:02x}")).collect())
}

fn hold(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut mounts = Mounted::default();
    let disk = on_disk(s, &mut mounts)?;
    let (member, good) = (s.program("member")?, copy(&disk, "good")?);
    let rule = |digest: &str| format!("{{ path: \"{good}\", sha256: \"{digest}\", id: pinned }}");
    let right = sha256(&good)?;
    let policy = |digest: &str| only(&member).allow_dir("all", &disk).exec_rule("allow", &rule(digest));
    attempt(s, &policy(&"0".repeat(64)), &member, "spawn", &good)?.was_refused(s, "digest")?;
    // the note tells no more than the rule asked, and nobody has to wait to write a file that was refused
    let (other, huge) = (copy(&disk, "other")?, format!("{disk}/huge"));
    fs::File::create(&huge)?.set_len(1 << 31)?;
    let told = only(&member)
        .exec_rule("allow", &format!("{{ path: \"{other}\", sha256: \"{}\", id: other }}", "0".repeat(64)))
        .exec_rule("allow", &format!("{{ path: \"{huge}\", sha256: \"{right}\", id: huge }}"));
    let told = s.run(&s.policy(&told)?, &member, "idle")?;
    let session = told.session(s)?;
    let opened = fs::File::options().append(true).custom_flags(libc::O_NONBLOCK).open(&other);
    opened.context("a file without its digest is leased")?;
    s.cli(&["end", &session])?.ended(0)?;
    let told = told.wait()?;
    told.complained(&["has another digest", "it is larger than 1 GiB"])?;
    ensure!(!told.stderr.contains(&right), "the digest of a file is told: {}", told.stderr);
    let tries = vec![vec![good.clone()]; TRIES as usize];
    let mut run = Tries::new(s, &s.policy(&policy(&right))?, &member, &tries, None)?;
    ensure!(run.next(1)? == "exit 0", "the file has its digest");
    // opening it to write waits until the kernel's table says that it is not what it was
    let mut file = fs::File::options().write(true).open(&good)?;
    ensure!(run.next(1)? != "exit 0", "a program that is open to write ran");
    let end = file.seek(std::io::SeekFrom::End(0))?;
    file.write_all(b"!")?;
    drop(file);
    for _ in 0..3 {
        ensure!(run.next(1)? == refused_exec(s), "a program that was changed ran");
    }
    // the same bytes again: it is hashed again
    fs::File::options().write(true).open(&good)?.set_len(end)?;
    ensure!(sha256(&good)? == right, "the file is not what it was");
    until("the program to be what it was", patience(), || {
        std::thread::sleep(patience() / TRIES);
        Ok((run.next(1)? == "exit 0").then_some(()))
    })?;
    run.stop(s)
}

/// Who has mapped a file to write it, and closed its descriptor, can still change its bytes. The kernel itself refuses to
/// run what is mapped so (`ETXTBSY`), before any program of Tipstaff's is asked.
fn mapped(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut mounts = Mounted::default();
    let disk = on_disk(s, &mut mounts)?;
    let (member, tool) = (s.program("member")?, copy(&disk, "tool")?);
    let (right, path) = (sha256(&tool)?, Path::new(&tool));
    let rule = format!("{{ path: \"{tool}\", sha256: \"{right}\", id: pinned }}");
    let policy = s.policy(&only(&member).allow_dir("all", &disk).exec_rule("allow", &rule))?;
    let (refused, busy) = (refused_exec(s), format!("errno {}", Errno::ETXTBSY as i32));
    let again = |run: &mut Tries| {
        until("the program to be hashed again", patience(), || {
            std::thread::sleep(patience() / TRIES);
            let said = run.next(1)?;
            ensure!(said == "exit 0" || said == refused, "nobody has it mapped: {said}");
            Ok((said == "exit 0").then_some(()))
        })
    };
    // mapped before: what is hashed could be changed, so it is not
    let map = Mapped::of(path)?;
    let told = s.run(&policy, &tool, "nothing")?.wait()?;
    told.ended(125)?.complained(&["tipstaff: ", &tool, "sha256sum(1)"])?;
    let mut run = Tries::new(s, &policy, &member, &vec![vec![tool.clone()]; TRIES as usize], None)?;
    ensure!(run.next(1)? == busy, "a program that is mapped to be written");
    drop(map);
    again(&mut run)?;
    // mapped afterwards, and changed through the mapping alone
    let mut map = Mapped::of(path)?;
    ensure!(run.next(1)? == busy, "a program that is mapped to be written, and has its digest");
    let was = map.write(UNUSED, b'!');
    ensure!(run.next(1)? == busy, "a program that was changed through a mapping");
    drop(map);
    ensure!(sha256(&tool)? != right, "the write did not change the file");
    for _ in 0..3 {
        ensure!(run.next(1)? == refused, "a program ran that was changed through a mapping");
    }
    // the same bytes once more: it is hashed again
    Mapped::of(path)?.write(UNUSED, was);
    ensure!(sha256(&tool)? == right, "the file is not what it was");
    again(&mut run)?;
    run.stop(s)
}

/// An agent's death ends its lease on a file. What is written then, by a descriptor or through a mapping, does not run, and does
/// not either when another agent finds that it is not what it was; what has its digest runs, and is leased again.
fn orphaned(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut mounts = Mounted::default();
    let disk = on_disk(s, &mut mounts)?;
    let (member, tool) = (s.program("member")?, copy(&disk, "tool")?);
    let (right, path, refused) = (sha256(&tool)?, Path::new(&tool), refused_exec(s));
    let rule = format!("{{ path: \"{tool}\", sha256: \"{right}\", id: pinned }}");
    let policy = s.policy(&only(&member).allow_dir("all", &disk).exec_rule("allow", &rule))?;
    let mut run = Tries::new(s, &policy, &member, &vec![vec![tool.clone()]; TRIES as usize], None)?;
    ensure!(run.next(1)? == "exit 0", "the file has its digest");
    let was = fs::read(&tool)?[UNUSED];
    for way in ["a descriptor", "a mapping"] {
        let change = |byte: u8| -> Result<()> {
            if way == "a mapping" {
                Mapped::of(path)?.write(UNUSED, byte);
                return Ok(());
            }
            let file = fs::File::options().write(true).open(&tool)?;
            file.write_all_at(&[byte], UNUSED as u64).context("writing the program")
        };
        s.kill_agent()?;
        ensure!(run.next(1)? == "exit 0", "with no agent what has its digest does not run");
        change(!was)?;
        ensure!(sha256(&tool)? != right, "the file did not change by {way}");
        ensure!(run.next(1)? == refused, "with no agent a program ran that was changed by {way}");
        s.start()?;
        for _ in 0..3 {
            ensure!(run.next(1)? == refused, "with another agent a program ran that was changed by {way}");
        }
        change(was)?;
        ensure!(sha256(&tool)? == right, "the file is not what it was");
        until("the program to be hashed again", patience(), || {
            std::thread::sleep(patience() / TRIES);
            Ok((run.next(1)? == "exit 0").then_some(()))
        })?;
    }
    // it breaks the lease, so that the file is looked at once more
    let opened = fs::File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&tool);
    ensure!(opened.is_err_and(|e| e.raw_os_error() == Some(libc::EWOULDBLOCK)), "a file with its digest is not leased");
    let session = run.session().to_owned();
    s.wait_evidence("the refusals", |r| {
        let about = r["session"] == session && r["type"] == "exec" && r["path"] == tool;
        about && r["verdict"] == refusal(s) && r["rule"] == "changed"
    })?;
    run.stop(s)
}

/// As long as a session lives that needs it, a file is hashed once, however many come after it; when it changed it is hashed
/// again, once for all. (The lease is what says that it did not: when nobody needs it any more, the next session has it hashed.)
fn once(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut mounts = Mounted::default();
    let disk = on_disk(s, &mut mounts)?;
    let (member, good) = (s.program("member")?, copy(&disk, "good")?);
    let pinned = |id: &str| -> Result<Policy> {
        let rule = format!("{{ path: \"{good}\", sha256: \"{}\", id: {id} }}", sha256(&good)?);
        Ok(only(&member).exec_rule("allow", &rule))
    };
    let count = || s.json(&["status"])?["hashed"].as_u64().context("status does not tell what was hashed");
    let before = count()?;
    let taken = |times: u64, when: &str| {
        let now = count()? - before;
        ensure!(now == times, "{when} a file was hashed {now} times where {times} were expected");
        Ok(())
    };
    let tries = vec![vec![good.clone()]; TRIES as usize];
    let mut first = Tries::new(s, &s.policy(&pinned("first")?)?, &member, &tries, None)?;
    ensure!(first.next(1)? == "exit 0", "the file has its digest");
    taken(1, "by the first session")?;
    // by the same policy and by another, beside the first and one after the other
    for id in ["first", "second", "second"] {
        attempt(s, &pinned(id)?, &member, "spawn", &good)?.ran(s, id)?;
        taken(1, "by another session")?;
    }
    // the same byte in its place: the bytes are what they were, and the file is not
    let mut file = fs::File::options().read(true).write(true).open(&good)?;
    let mut byte = [0];
    file.seek(std::io::SeekFrom::Start(UNUSED as u64))?;
    file.read_exact(&mut byte)?;
    file.seek(std::io::SeekFrom::Start(UNUSED as u64))?;
    file.write_all(&byte)?;
    drop(file);
    until("the program to be hashed again", patience(), || {
        std::thread::sleep(patience() / TRIES);
        Ok((first.next(1)? == "exit 0").then_some(()))
    })?;
    taken(2, "after it was written")?;
    attempt(s, &pinned("second")?, &member, "spawn", &good)?.ran(s, "second")?;
    taken(2, "by a session after that")?;
    first.stop(s)?;
    attempt(s, &pinned("second")?, &member, "spawn", &good)?.ran(s, "second")?;
    taken(3, "when no session needed it any more")
}

/// In memory a file's bytes are changed by who has neither descriptor nor mapping any more, while a lease says that nobody
/// writes them. No digest holds there.
fn in_memory(s: &mut Sandbox) -> Result<()> {
    s.start()?;
    let mut mounts = Mounted::default();
    let (disk, memory) = (on_disk(s, &mut mounts)?, s.fresh("memory"));
    fs::create_dir(&memory)?;
    mounts.add(("tmpfs", Some("tmpfs")), &memory, None)?;
    let (member, tool) = (s.program("member")?, copy(&disk, "kept")?);
    let kept = copy(&memory.display().to_string(), "kept")?;
    let ring = match Ring::new(Doer::Caller) {
        Ok(ring) => ring,
        Err(error) => return Err(Lacking(format!("there is no io_uring: {error}")).into()),
    };
    let map = Mapped::of(Path::new(&kept))?;
    let address = map.address();
    ring.keep(address, Mapped::LENGTH)?;
    drop(map);
    let right = sha256(&kept)?;
    let rule = |path: &str| format!("{{ path: \"{path}\", sha256: \"{right}\", id: pinned }}");
    let policy = only(&member).exec_rule("allow", &rule(&kept));
    attempt(s, &policy, &member, "spawn", &kept)?.was_refused(s, "identity-unknown")?;
    let twin = only(&member).exec_rule("allow", &rule(&tool).replace("pinned", "twin"));
    attempt(s, &twin, &member, "spawn", &tool)?.ran(s, "twin")?;
    // why: this is seen by no lease, and moves no time
    let before = fs::metadata(&kept)?;
    let (from, mut to) = std::io::pipe()?;
    to.write_all(b"!")?;
    ring.read_into_kept(&from, address + UNUSED as u64, 1)??;
    let after = fs::metadata(&kept)?;
    ensure!(sha256(&kept)? != right, "the bytes are what they were: a digest could hold here");
    ensure!((before.ctime(), before.ctime_nsec()) == (after.ctime(), after.ctime_nsec()), "a time was moved");
    attempt(s, &policy, &member, "spawn", &kept)?.was_refused(s, "identity-unknown")
}

/// What a script's interpreter reads is not what was looked at, so a note says that, and `strict` refuses; not where root alone
/// could change it and the session is another user's, and not for what the kernel loads by itself.
fn scripts(s: &mut Sandbox) -> Result<()> {
    const USER: User = (64_010, OPERATORS);
    s.start()?;
    let mut mounts = Mounted::default();
    let disk = on_disk(s, &mut mounts)?;
    let (member, interpreter) = (s.program("member")?, s.program("interpreter")?);
    let shared = format!("{disk}/shared");
    fs::create_dir(&shared)?;
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777))?;
    let (open, closed) = (format!("{shared}/script"), format!("{disk}/script"));
    for script in [&open, &closed] {
        write_script(script, &interpreter, &s.file("mark"))?;
    }
    let program = copy(&shared, "program")?;
    for (path, user, noted) in [
        (&open, None, true),
        (&open, Some(USER), true),
        (&closed, None, true),
        (&closed, Some(USER), false),
        (&program, None, false),
        (&program, Some(USER), false),
    ] {
        let rule = format!("{{ path: \"{path}\", sha256: \"{}\", id: pinned }}", sha256(path)?);
        let policy = only(&member).allow("interpreter", &interpreter).exec_rule("allow", &rule);
        let words = [&format!("rule pinned holds for the script {path} as the kernel looks at it"), "its interpreter"];
        let run = |policy: &Policy| {
            let launch = s.launch(&s.policy(policy)?, &member, "say here");
            let launch = user.iter().fold(launch, |launch, (uid, gid)| launch.user(*uid, *gid));
            launch.start()?.wait().with_context(|| format!("{path} by {user:?}"))
        };
        let told = run(&policy)?;
        told.ended(0)?.said("here")?;
        ensure!(told.stderr.contains(words[0]) == noted, "{path} by {user:?}: {:?}", told.stderr);
        let strict = run(&policy.clone().strict())?;
        if noted {
            told.complained(&words)?;
            strict.ended(125)?.complained(&words)?.complained(&["the policy is strict"])?;
            ensure!(strict.stdout.is_empty(), "a command ran that was refused: {}", strict.stdout);
        } else if s.tier == Tier::Full || path == &program {
            strict.ended(0)?.said("here")?;
        } else {
            // there no script is judged by its own file
            strict.ended(125)?.complained(&["exec-script"])?;
        }
        // by whom a session will be started is not known here
        let checked = s.cli(&["policy", "check", &s.policy(&policy)?])?;
        checked.ended(0)?;
        ensure!(checked.stdout.contains(words[0]) == (path == &open), "policy check: {}", checked.stdout);
    }
    Ok(())
}
