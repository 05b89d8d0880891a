//! Files that a caller names: read without waiting for anybody who does not come, and only where they have an end.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{
        fd::AsFd as _,
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::Path,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long somebody may take to write to a pipe that is read.
const WRITER: Duration = Duration::from_secs(2);

/// A regular file, or a pipe that somebody writes to.
#[derive(Debug)]
pub struct Given {
    file: File,
    pipe: bool,
    /// Something came from the pipe.
    begun: bool,
}

/// Opens a regular file or a pipe (a shell's `<(command)`).
///
/// # Errors
/// It cannot be opened, or is neither; what it is instead is named. A device has no end, and to open one may do something.
pub fn open(path: &Path) -> io::Result<Given> {
    refuse_others(std::fs::metadata(path)?.file_type())?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    // another may stand there since
    let kind = file.metadata()?.file_type();
    refuse_others(kind)?;
    Ok(Given { file, pipe: kind.is_fifo(), begun: false })
}

impl Read for Given {
    /// As of a file; from a pipe to which nobody writes for two seconds, an error.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let start = Instant::now();
        loop {
            match self.file.read(buffer) {
                // a pipe without a writer is at its end, or has not begun
                Ok(0) if self.pipe && !self.begun && !buffer.is_empty() => {}
                Err(error) if self.pipe && error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(length) => {
                    self.begun = true;
                    return Ok(length);
                }
                Err(error) => return Err(error),
            }
            let left = WRITER.saturating_sub(start.elapsed());
            if left.is_zero() {
                let why = format!("it is a pipe that nobody wrote to for {} s", WRITER.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            let mut asked = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
            poll(&mut asked, timeout)?;
            // somebody opened it, and closed it again
            self.begun |= asked[0].revents().is_some_and(|found| found.contains(PollFlags::POLLHUP));
        }
    }
}

fn refuse_others(kind: std::fs::FileType) -> io::Result<()> {
    let what = match kind {
        kind if kind.is_file() || kind.is_fifo() => return Ok(()),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}: name a regular file")))
}

#[cfg(test)]
mod tests {
    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    fn text(path: &Path) -> io::Result<String> {
        let mut text = String::new();
        open(path)?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn only_what_has_an_end_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (file, socket) = (folder.path().join("file"), folder.path().join("socket"));
        std::fs::write(&file, "text").unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(text(&file).unwrap(), "text");
        for (path, what) in [(folder.path(), "directory"), (&socket, "socket"), (Path::new("/dev/zero"), "device")] {
            let error = open(path).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("name a regular file"), "{}: {error}", path.display());
        }
        assert_eq!(open(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_pipe_is_read_to_its_end_and_nobody_is_waited_for_without_end() {
        use std::io::Write as _;
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let silent = text(&fifo).unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut, "{silent}");
        let other = fifo.clone();
        let writer = std::thread::spawn(move || {
            let mut fifo = OpenOptions::new().write(true).open(other).unwrap();
            fifo.write_all(b"one ").unwrap();
            // the reader finds nothing for a moment
            std::thread::sleep(Duration::from_millis(50));
            fifo.write_all(b"two").unwrap();
        });
        assert_eq!(text(&fifo).unwrap(), "one two");
        writer.join().unwrap();
        // what a writer left that is gone by now, as a shell's `<(command)` may be
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"gone").unwrap();
        drop(writer);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        assert_eq!(text(Path::new(&path)).unwrap(), "gone");
    }
}
