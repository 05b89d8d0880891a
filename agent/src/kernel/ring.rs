//! Records from the rings, decoded by copy: every code is checked, nothing is believed for its position.

use std::net::{IpAddr, Ipv6Addr};

use tipstaff_common::event::{
    self, Connect, Exec, Exit, Fork, Header, KIND_CONNECT, KIND_EXEC, KIND_EXIT, KIND_FORK, KIND_MOVE, KIND_PRIVILEGE,
    KIND_SOCKET, KIND_UNIX, Move, Privilege, Socket, Unix,
};

/// A record that cannot be read. It is counted, not guessed at.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Too short for what it says it is.
    #[error("a record of kind {kind} has {length} bytes")]
    Length {
        /// `event::KIND_*`, 0 where not even that is there.
        kind: u16,
        /// Bytes found.
        length: usize,
    },
    /// Written by programs of another layout.
    #[error("a record has version {0}")]
    Version(u16),
    /// No such kind.
    #[error("a record has kind {0}")]
    Kind(u16),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A member made a task.
    Fork(Fork),
    /// A member started a program, or tried to.
    Exec(Box<Exec>),
    /// A labelled thread ended.
    Exit(Exit),
    /// A member connected or sent, or tried to.
    Connect(Connect),
    /// A task joined, or a member was moved.
    Move(Move),
    /// A member made, used or changed a socket that it may not.
    Socket(Socket),
    /// A member connected or sent to a unix socket, or tried to.
    Unix(Box<Unix>),
    /// A member tried what takes a privilege that it may not use.
    Privilege(Privilege),
}

impl Event {
    /// What every record begins with.
    #[must_use]
    pub fn header(&self) -> &Header {
        match self {
            Self::Fork(e) => &e.header,
            Self::Exec(e) => &e.header,
            Self::Exit(e) => &e.header,
            Self::Connect(e) => &e.header,
            Self::Move(e) => &e.header,
            Self::Socket(e) => &e.header,
            Self::Unix(e) => &e.header,
            Self::Privilege(e) => &e.header,
        }
    }
}

/// Name of a kind in evidence; `None` for numbers that are no kind.
#[must_use]
pub const fn kind_name(kind: u16) -> Option<&'static str> {
    Some(match kind {
        KIND_FORK => "fork",
        KIND_EXEC => "exec",
        KIND_EXIT => "exit",
        KIND_CONNECT => "connect",
        KIND_MOVE => "move",
        KIND_SOCKET => "socket",
        KIND_UNIX => "unix",
        KIND_PRIVILEGE => "privilege",
        _ => return None,
    })
}

/// Decodes one record.
pub fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let header: Header = copy(bytes, 0)?;
    if header.version != event::VERSION {
        return Err(DecodeError::Version(header.version));
    }
    Ok(match header.kind {
        KIND_FORK => Event::Fork(copy(bytes, header.kind)?),
        KIND_EXEC => Event::Exec(Box::new(copy(bytes, header.kind)?)),
        KIND_EXIT => Event::Exit(copy(bytes, header.kind)?),
        KIND_CONNECT => Event::Connect(copy(bytes, header.kind)?),
        KIND_MOVE => Event::Move(copy(bytes, header.kind)?),
        KIND_SOCKET => Event::Socket(copy(bytes, header.kind)?),
        KIND_UNIX => Event::Unix(Box::new(copy(bytes, header.kind)?)),
        KIND_PRIVILEGE => Event::Privilege(copy(bytes, header.kind)?),
        other => return Err(DecodeError::Kind(other)),
    })
}

/// Copies a wire type out of unaligned bytes.
fn copy<T: aya::Pod>(bytes: &[u8], kind: u16) -> Result<T, DecodeError> {
    if bytes.len() < size_of::<T>() {
        return Err(DecodeError::Length { kind, length: bytes.len() });
    }
    // SAFETY: there are enough bytes, and every bit pattern is a `T` (that is what `Pod` says of our wire types).
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// The path that an exec asked for.
#[must_use]
pub fn path(exec: &Exec) -> &[u8] {
    let bytes = exec.path.get(..exec.path_length as usize).unwrap_or(&exec.path);
    bytes.split(|b| *b == 0).next().unwrap_or(&[])
}

/// What a unix socket is bound to; an abstract name begins with a 0 byte.
#[must_use]
pub fn socket_name(unix: &Unix) -> &[u8] {
    unix.name.get(..unix.length as usize).unwrap_or(&unix.name)
}

/// The name of a thread that ended.
#[must_use]
pub fn name(exit: &Exit) -> &[u8] {
    exit.name.split(|b| *b == 0).next().unwrap_or(&[])
}

/// The first arguments, and whether there are more than were kept.
#[must_use]
pub fn arguments(exec: &Exec) -> (Vec<&[u8]>, bool) {
    let bytes = exec.args.get(..exec.args_length as usize).unwrap_or(&exec.args);
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let list = if bytes.is_empty() { Vec::new() } else { bytes.split(|b| *b == 0).collect() };
    (list, exec.args_total > exec.args_length)
}

/// The address of a connect; a mapped one is IPv4.
#[must_use]
pub fn address(connect: &Connect) -> IpAddr {
    Ipv6Addr::from(connect.address).to_canonical()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn splits_paths_and_arguments() {
        let mut exec = Exec {
            header: Header { version: event::VERSION, kind: KIND_EXEC, ..Header::default() },
            file: tipstaff_common::rule::FileId::default(),
            path_length: 8,
            args_length: 11,
            args_total: 11,
            late: 0,
            path: [0; 256],
            args: [0; 256],
        };
        exec.path[..8].copy_from_slice(b"/bin/ls\0");
        exec.args[..11].copy_from_slice(b"ls\0-l\0a b\0\0");
        assert_eq!(path(&exec), b"/bin/ls");
        assert_eq!(arguments(&exec), (vec![&b"ls"[..], b"-l", b"a b", b""], false));
        exec.args_total = 12;
        assert!(arguments(&exec).1);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..700), kind in 0u16..10) {
            if bytes.len() > 4 {
                bytes[..2].copy_from_slice(&event::VERSION.to_ne_bytes());
                bytes[2..4].copy_from_slice(&kind.to_ne_bytes());
            }
            if let Ok(event) = decode(&bytes) {
                prop_assert_eq!(event.header().kind, kind);
                if let Event::Exec(exec) = &event { let _ = (path(exec), arguments(exec)); }
                if let Event::Unix(unix) = &event { let _ = socket_name(unix); }
                if let Event::Connect(connect) = &event { let _ = address(connect); }
            }
        }
    }
}
