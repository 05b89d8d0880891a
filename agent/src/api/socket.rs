//! The sockets as files: their directory, owner, group and mode, what a dead agent left behind, their removal.
//!
//! A socket is made under a temporary name and takes its place only when mode and group are right and it listens, so
//! nobody ever connects to one with other rights, and a left-over is replaced in one step.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown},
            net::UnixListener as StdListener,
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, sockopt},
    unistd::geteuid,
};

/// Connections that wait for an accept.
const BACKLOG: i32 = 64;

/// Why the agent's sockets cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A live process answers on the path.
    #[error("another agent (pid {pid}) answers on {}; stop it, or give this one another --runtime-dir", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
        /// Who listens; 0 if that cannot be told.
        pid: i32,
    },
    /// Something that is no socket stands in the way.
    #[error("{} is not a socket; remove it, or choose another --runtime-dir", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The runtime directory could be tampered with.
    #[error(
        "{} must be a directory of user {uid} that nobody else can write to (it is of user {owner}, mode {mode:04o})",
        path.display()
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The agent's own user.
        uid: u32,
        /// The owner found.
        owner: u32,
        /// The mode found.
        mode: u32,
    },
    /// A socket's path has no more than 107 bytes.
    #[error("the path {} is too long for a socket; choose a shorter --runtime-dir", path.display())]
    PathTooLong {
        /// The socket.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    System {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn system<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> ServerError {
    move |source| ServerError::System { what, path: path.to_owned(), source: source.into() }
}

/// Makes the runtime directory, mode 0755, or makes sure that only the agent's own user can write to it.
pub(super) fn prepare(directory: &Path) -> Result<(), ServerError> {
    match fs::symlink_metadata(directory) {
        Ok(found) => {
            let (uid, owner, mode) = (geteuid().as_raw(), found.uid(), found.mode() & 0o7777);
            if found.is_dir() && owner == uid && mode & 0o022 == 0 {
                return Ok(());
            }
            Err(ServerError::Directory { path: directory.to_owned(), uid, owner, mode })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(system("make the directory", directory))?;
            // what the umask took away
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755))
                .map_err(system("set the mode of", directory))
        }
        Err(error) => Err(system("look at", directory)(error)),
    }
}

/// Where a socket is made before it takes its place.
fn draft(path: &Path) -> PathBuf {
    let mut draft = path.to_owned().into_os_string();
    draft.push("~");
    draft.into()
}

fn address(path: &Path) -> Result<UnixAddr, ServerError> {
    UnixAddr::new(path).map_err(|errno| match errno {
        Errno::ENAMETOOLONG => ServerError::PathTooLong { path: path.to_owned() },
        errno => system("name the socket", path)(errno),
    })
}

/// Whether a socket can stand there: asked before anything is made.
pub(super) fn fits(path: &Path) -> Result<(), ServerError> {
    address(&draft(path)).map(drop)
}

/// A listening socket and the file it stands under.
#[derive(Debug)]
pub(super) struct Bound {
    path: PathBuf,
    /// Device and inode, so that a successor's socket is not removed for ours.
    identity: (u64, u64),
    listener: StdListener,
}

impl Bound {
    pub(super) fn bind(path: PathBuf, gid: u32) -> Result<Self, ServerError> {
        refuse_if_in_use(&path)?;
        let draft = draft(&path);
        let bound = listen(&draft, gid).and_then(|(listener, identity)| {
            fs::rename(&draft, &path).map_err(system("put in place", &path))?;
            Ok(Self { path, identity, listener })
        });
        if bound.is_err() {
            let _ = fs::remove_file(&draft);
        }
        bound
    }

    /// The listener for tokio. Needs a runtime.
    pub(super) fn listener(&self) -> Result<tokio::net::UnixListener, ServerError> {
        self.listener.try_clone().and_then(tokio::net::UnixListener::from_std).map_err(system("listen on", &self.path))
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn listen(draft: &Path, gid: u32) -> Result<(StdListener, (u64, u64)), ServerError> {
    let address = address(draft)?;
    match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(system("remove", draft)(error)),
        _ => {}
    }
    let socket = stream_socket().map_err(system("make the socket", draft))?;
    socket::bind(socket.as_raw_fd(), &address).map_err(system("bind", draft))?;
    chown(draft, None, Some(gid)).map_err(system("set the group of", draft))?;
    fs::set_permissions(draft, fs::Permissions::from_mode(0o660)).map_err(system("set the mode of", draft))?;
    let backlog = Backlog::new(BACKLOG).map_err(system("listen on", draft))?;
    socket::listen(&socket, backlog).map_err(system("listen on", draft))?;
    let file = fs::symlink_metadata(draft).map_err(system("look at", draft))?;
    Ok((StdListener::from(socket), (file.dev(), file.ino())))
}

fn refuse_if_in_use(path: &Path) -> Result<(), ServerError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("look at", path)(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(ServerError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    let probe = stream_socket().map_err(system("make a socket to try", path))?;
    let address = UnixAddr::new(path).map_err(system("name the socket", path))?;
    match socket::connect(probe.as_raw_fd(), &address) {
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
        // a full backlog is a listener too
        Ok(()) | Err(Errno::EAGAIN) => {
            let pid = socket::getsockopt(&probe, sockopt::PeerCredentials).map_or(0, |peer| peer.pid());
            Err(ServerError::InUse { path: path.to_owned(), pid })
        }
        Err(errno) => Err(system("find out who answers on", path)(errno)),
    }
}

fn stream_socket() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
}
