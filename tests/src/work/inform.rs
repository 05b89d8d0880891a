//! Leaving marks, telling about itself, waiting to be told, and ending.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::BorrowedFd,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, raise},
    unistd::{dup2_stdout, getgid, getgroups, getuid},
};

use super::{one, run};

pub(super) fn act(word: &str, words: &[&str]) -> Result<u8> {
    match word {
        // nothing: a program that was run and ends
        "nothing" => Ok(0),
        // mark FILE: it ran
        "mark" => {
            let (file, _) = one(words)?;
            fs::write(file, "ran").with_context(|| format!("{file} cannot be written"))?;
            Ok(0)
        }
        // say TEXT
        "say" => {
            println!("{}", words.join(" "));
            Ok(0)
        }
        // pid FILE REST: its process id is in FILE
        "pid" => {
            let (file, rest) = one(words)?;
            write_pid(file)?;
            Ok(run(rest))
        }
        // report FILE REST: stdout is FILE from here on
        "report" => {
            let (file, rest) = one(words)?;
            dup2_stdout(File::create(file)?)?;
            Ok(run(rest))
        }
        // await FILE REST: looks until it is there
        "await" => {
            let (file, rest) = one(words)?;
            while !Path::new(file).exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(run(rest))
        }
        // fifo FILE REST: sleeps until it can be read
        "fifo" => {
            let (file, rest) = one(words)?;
            File::open(file)?.read_exact(&mut [0])?;
            Ok(run(rest))
        }
        // names FOLDER REST: what is in it
        "names" => {
            let (folder, rest) = one(words)?;
            let names = fs::read_dir(folder)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
            println!("{}", names.collect::<Vec<_>>().join(" "));
            Ok(run(rest))
        }
        "status" => Ok(one(words)?.0.parse()?),
        "raise" => {
            raise(Signal::try_from(one(words)?.0.parse::<i32>()?)?)?;
            bail!("it survived the signal")
        }
        _ => tell(word, words),
    }
}

fn tell(word: &str, words: &[&str]) -> Result<u8> {
    match word {
        // copies input to output
        "cat" => {
            std::io::copy(&mut std::io::stdin(), &mut std::io::stdout())?;
            std::io::stdout().flush()?;
        }
        // show FILE: prints it; its name may be any bytes
        "show" => {
            let name = std::env::args_os().next_back().context("there is no file")?;
            std::io::stdout().write_all(&fs::read(name)?)?;
        }
        "env" => println!("{}", std::env::var(one(words)?.0).unwrap_or_default()),
        "cwd" => println!("{}", std::env::current_dir()?.display()),
        "ids" => {
            let groups: Vec<String> = getgroups()?.iter().map(ToString::to_string).collect();
            println!("{} {} {}", getuid(), getgid(), groups.join(","));
        }
        "descriptors" => println!("{}", descriptors()?.join(" ")),
        _ => bail!("there is no action {word:?}"),
    }
    Ok(0)
}

/// The open descriptors but the one that is open for looking.
fn descriptors() -> Result<Vec<String>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        numbers.push(entry?.file_name().to_string_lossy().parse::<i32>()?);
    }
    numbers.retain(|fd| {
        // SAFETY: the number is only asked about, with a call that fails where it is not open.
        let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
        nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).is_ok()
    });
    numbers.sort_unstable();
    Ok(numbers.iter().map(ToString::to_string).collect())
}

/// Writes this process's id to `file`, in one step.
pub(super) fn write_pid(file: &str) -> Result<()> {
    let part = format!("{file}.part");
    fs::write(&part, std::process::id().to_string())?;
    Ok(fs::rename(part, file)?)
}
