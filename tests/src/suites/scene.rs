//! What many tests do: a session whose member tries one thing, and the three places to look at afterwards – what the
//! member saw, what came of it, and what the evidence says.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{mount::MsFlags, sys::stat::Mode};
use serde_json::Value;

use crate::harness::{
    prelude::*,
    server::Server,
    wait::{all_gone, gone},
};

/// The policy under which only `member` runs, and nothing is reached.
pub(crate) fn only(member: &str) -> Policy {
    Policy::new().allow("member", member)
}

/// A member's attempt to run a program that would leave a mark.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) session: String,
    target: String,
    answer: String,
    mark: String,
}

/// In a new session under `policy`, `member` does `how` (`spawn`, or words before it) with `target`.
pub(crate) fn attempt(s: &Sandbox, policy: &Policy, member: &str, how: &str, target: &str) -> Result<Attempt> {
    let mark = s.file("mark");
    let running = s.run(&s.policy(policy)?, member, &format!("{how} {target} --work mark {mark}"))?;
    let session = running.session(s)?;
    let finished = running.wait()?;
    finished.ended(0)?;
    s.session_ended(&session, "completed")?;
    let answer = finished.stdout.lines().next().unwrap_or_default().to_owned();
    Ok(Attempt { session, target: target.to_owned(), answer, mark })
}

impl Attempt {
    /// It ran, because of `rule`.
    pub(crate) fn ran(&self, s: &Sandbox, rule: &str) -> Result<()> {
        self.took_place(s, "allow", rule)
    }

    /// It ran although `rule` is against it.
    pub(crate) fn was_only_observed(&self, s: &Sandbox, rule: &str) -> Result<()> {
        self.took_place(s, "would-deny", rule)
    }

    fn took_place(&self, s: &Sandbox, verdict: &str, rule: &str) -> Result<()> {
        ensure!(self.answer == "exit 0", "{} did not run: {}", self.target, self.answer);
        ensure!(Path::new(&self.mark).exists(), "{} ran but left no mark", self.target);
        s.saw_exec(&self.session, &self.target, verdict, rule).map(drop)
    }

    /// It did not run, because of `rule`.
    pub(crate) fn was_refused(&self, s: &Sandbox, rule: &str) -> Result<()> {
        let expected = refused_exec(s);
        ensure!(self.answer == expected, "{}: {} where {expected} was expected", self.target, self.answer);
        ensure!(!Path::new(&self.mark).exists(), "{} was refused but left its mark", self.target);
        s.saw_exec(&self.session, &self.target, refusal(s), rule).map(drop)
    }
}

/// What a refused exec looks like to its parent.
pub(crate) fn refused_exec(s: &Sandbox) -> &'static str {
    if s.tier == Tier::Full { "errno 1" } else { "signal 9" }
}

/// The verdict of a refused exec.
pub(crate) fn refusal(s: &Sandbox) -> &'static str {
    if s.tier == Tier::Full { "deny" } else { "kill" }
}

/// A member's attempt to reach an address.
#[derive(Debug)]
pub(crate) struct Reach {
    pub(crate) session: String,
    answer: String,
}

/// In a new session under `policy`, `member` does `line`; its last line of output is the answer.
pub(crate) fn reach(s: &Sandbox, policy: &Policy, member: &str, line: &str) -> Result<Reach> {
    let running = s.run(&s.policy(policy)?, member, line)?;
    let session = running.session(s)?;
    let finished = running.wait()?;
    finished.ended(0)?;
    s.session_ended(&session, "completed")?;
    Ok(Reach { session, answer: finished.stdout.lines().last().unwrap_or_default().to_owned() })
}

impl Reach {
    /// It got there, because of `rule`; `server` saw one connection or datagram.
    pub(crate) fn arrived(&self, s: &Sandbox, server: &Server, rule: &str) -> Result<()> {
        ensure!(self.answer == "ok", "{} was not reached: {}", server.address(), self.answer);
        server.accepted(1)?;
        s.saw_connect(&self.session, &server.address(), "allow", rule).map(drop)
    }

    /// It was refused, because of `rule`; `server` saw nothing.
    pub(crate) fn was_refused(&self, s: &Sandbox, server: &Server, rule: &str) -> Result<()> {
        self.was_refused_to(s, &server.address(), rule)?;
        server.untouched()
    }

    /// As [`Reach::was_refused`] where no server is.
    pub(crate) fn was_refused_to(&self, s: &Sandbox, to: &str, rule: &str) -> Result<()> {
        ensure!(self.answer == "errno 1", "{to}: {} where errno 1 was expected", self.answer);
        s.saw_connect(&self.session, to, "deny", rule).map(drop)
    }

    /// It was allowed by `rule`, whatever the network made of it.
    pub(crate) fn was_let_through(&self, s: &Sandbox, to: &str, rule: &str) -> Result<()> {
        ensure!(self.answer != "errno 1", "{to} was refused");
        s.saw_connect(&self.session, to, "allow", rule).map(drop)
    }
}

/// Has the next agent attach its programs on cgroups to `sessions` or to the `root`.
pub(crate) fn attach_to(s: &Sandbox, place: &str) -> Result<()> {
    let path = s.folder().join("tipstaff.toml");
    let text = fs::read_to_string(&path)?;
    let rest: Vec<&str> = text.lines().filter(|line| !line.starts_with("attach")).collect();
    Ok(fs::write(path, format!("attach = \"{place}\"\n{}\n", rest.join("\n")))?)
}

/// A FIFO that a member sleeps on until the test wakes it.
#[derive(Debug)]
pub(crate) struct Fifo {
    pub(crate) path: String,
    file: File,
}

impl Fifo {
    pub(crate) fn new(s: &Sandbox) -> Result<Self> {
        let path = s.file("fifo");
        nix::unistd::mkfifo(Path::new(&path), Mode::from_bits_truncate(0o666))?;
        // open for both, so that neither end waits for the other
        let file = File::options().read(true).write(true).open(&path)?;
        Ok(Self { path, file })
    }

    pub(crate) fn wake(&mut self) -> Result<()> {
        self.file.write_all(b"!").context("a FIFO cannot be written")
    }
}

/// Waits until a workload has reported `lines` lines to `file`.
pub(crate) fn report(file: &str, lines: usize) -> Result<Vec<String>> {
    until(&format!("{lines} lines in {file}"), patience(), || {
        let text = fs::read_to_string(file).unwrap_or_default();
        let found: Vec<String> = text.lines().map(str::to_owned).collect();
        Ok((found.len() >= lines).then_some(found))
    })
}

/// What the agent says of a session whose members it did not speak to: the records, and how many calls they stand for. Whole
/// once the session has ended.
pub(crate) fn refused_calls(s: &Sandbox, session: &str) -> Result<(Vec<Value>, u64)> {
    let records = s.records(session, "calls-refused")?;
    let calls = records.iter().filter_map(|record| record["count"].as_u64()).sum();
    Ok((records, calls))
}

/// Times, as workloads write and send them.
pub(crate) fn stamps(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks().0.iter().map(|stamp| u64::from_be_bytes(*stamp)).collect()
}

/// How many stamps came, once all that had arrived was read.
pub(crate) fn settled(server: &Server) -> Result<usize> {
    until("what arrived to be read", patience(), || {
        let before = stamps(&server.received()).len();
        std::thread::sleep(Duration::from_millis(100));
        Ok((stamps(&server.received()).len() == before).then_some(before))
    })
}

/// A session whose member, each time it is woken, tries a program and an address that are out of scope and a program
/// and an address in scope.
pub(crate) struct Wall {
    pub(crate) running: Running,
    pub(crate) session: String,
    fifos: Vec<Fifo>,
    pub(crate) bad: Server,
    /// What the program that is out of scope would leave.
    mark: String,
    woken: usize,
}

impl Wall {
    pub(crate) fn new(s: &Sandbox, times: usize) -> Result<Self> {
        let (member, good, out) = (s.program("member")?, s.program("good")?, s.program("bad")?);
        let (server, bad) = (Server::tcp("127.0.0.1")?, Server::tcp("127.0.0.1")?);
        let policy = only(&member).allow("good", &good).to("server", "127.0.0.1/32", server.port());
        let fifos = (0..times).map(|_| Fifo::new(s)).collect::<Result<Vec<_>>>()?;
        let mark = s.file("mark");
        let tries = |fifo: &Fifo| {
            format!(
                "fifo {} spawn {out} --work mark {mark} + spawn {good} --work nothing + connect tcp {} + connect tcp {}",
                fifo.path,
                bad.words(),
                server.words()
            )
        };
        let line = fifos.iter().map(tries).chain(["idle".to_owned()]).collect::<Vec<_>>().join(" + ");
        let pid = s.file("pid");
        let running = s.run(&s.policy(&policy)?, &member, &format!("pid {pid} say there + {line}"))?;
        let session = running.session(s)?;
        s.pid_in(&pid)?;
        Ok(Self { running, session, fifos, bad, mark, woken: 0 })
    }

    /// Ends it: nobody is left.
    pub(crate) fn is_ended(&self, s: &Sandbox) -> Result<()> {
        s.cli(&["end", &self.session])?.ended(0)?;
        s.session_ended(&self.session, "operator")?;
        all_gone(&[self.running.pid()])
    }

    /// Wakes the member and checks each answer.
    pub(crate) fn holds(&mut self, s: &Sandbox) -> Result<()> {
        self.fifos[self.woken].wake()?;
        self.woken += 1;
        let answers = format!("{}\nexit 0\nerrno 1\nok\n", refused_exec(s));
        let expected = format!("there\n{}", answers.repeat(self.woken));
        let said = until("the member to have tried all", patience(), || {
            let said = self.running.said();
            Ok((said.len() >= expected.len() || gone(self.running.pid())).then_some(said))
        })?;
        ensure!(said == expected, "the member was answered {said:?} where {expected:?} was expected");
        ensure!(!Path::new(&self.mark).exists(), "a program that is out of scope ran");
        Ok(())
    }
}

/// A file system over one of the agent's folders, so small that a test can fill it.
pub(crate) struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    pub(crate) fn over(s: &Sandbox, folder: &str, kilobytes: u32) -> Result<Self> {
        let disk = Self { folder: s.folder().join(folder) };
        disk.mount(&format!("mode=0700,size={kilobytes}k"), MsFlags::empty())?;
        Ok(disk)
    }

    fn mount(&self, options: &str, flags: MsFlags) -> Result<()> {
        nix::mount::mount(Some("tmpfs"), &self.folder, Some("tmpfs"), flags, Some(options)).context("a small tmpfs")
    }

    pub(crate) fn enlarge(&self) -> Result<()> {
        self.mount("size=64m", MsFlags::MS_REMOUNT)
    }

    /// Nothing on it can be changed, or all can again. Nobody may have a file of it open to write.
    pub(crate) fn read_only(&self, on: bool) -> Result<()> {
        let flags = if on { MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY } else { MsFlags::MS_REMOUNT };
        self.mount("mode=0700", flags)
    }

    /// Leaves no room for anything.
    pub(crate) fn fill(&self) -> Result<()> {
        let mut filler = File::create(self.filler())?;
        let full = loop {
            if let Err(error) = filler.write_all(&[7; 4096]) {
                break error;
            }
        };
        ensure!(full.raw_os_error() == Some(libc::ENOSPC), "the disk is not full: {full}");
        Ok(())
    }

    /// Takes back what filled it.
    pub(crate) fn make_room(&self) -> Result<()> {
        fs::remove_file(self.filler()).context("the disk was not filled")
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }
}

/// A policy file that needs room for two hundred thousand bytes wherever it is kept.
pub(crate) fn bulky(s: &Sandbox, policy: &Policy) -> Result<String> {
    s.policy_text(&format!("# {}\n{policy}", "x".repeat(200_000)))
}
