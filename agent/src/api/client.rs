//! The caller's end of the sockets: blocking, single-threaded, and only ever in conversation with root.
//!
//! Who listens is asked of the kernel (`SO_PEERCRED`) before the first byte is sent, so that a policy or an answer
//! never goes to, or comes from, somebody who merely owns the path.

use std::{
    io::{self, ErrorKind, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt},
        time::TimeVal,
    },
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{
    frame::{self, Decoder, FrameError},
    wire::{ApiError, Call, Event, Request},
};

/// Why the agent could not be asked, or what it answered instead of a reply.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such socket.
    #[error("no agent runs here: there is no socket {}; start it with `tipstaff daemon`", path.display())]
    Missing {
        /// The socket.
        path: PathBuf,
    },
    /// The socket's owner is gone.
    #[error("no agent answers on {}: the socket was left behind; start the agent with `tipstaff daemon`", path.display())]
    Stale {
        /// The socket.
        path: PathBuf,
    },
    /// The file's mode keeps this user out.
    #[error("this process may not connect to {}; become root or a member of the socket's group, and ask from outside of sessions", path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// Somebody else listens.
    #[error("{} belongs to user {uid}, not to root: nothing was sent to it", path.display())]
    NotRoot {
        /// The socket.
        path: PathBuf,
        /// Who listens.
        uid: u32,
    },
    /// Any other failure to connect.
    #[error("cannot connect to {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing came in time.
    #[error("the agent on {} did not answer within {} s", path.display(), limit.as_secs())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection broke.
    #[error("the connection to the agent on {} broke: {source}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// How.
        source: FrameError,
    },
    /// The agent closed the connection without a reply.
    #[error("the agent on {} closed the connection without an answer", path.display())]
    Closed {
        /// The socket.
        path: PathBuf,
    },
    /// The reply is not one of this version's.
    #[error("the agent on {} gave an answer of another version: {source}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// The agent answered with an error.
    #[error("{0}")]
    Api(#[from] ApiError),
}

#[derive(Deserialize)]
struct ReplyFrame {
    #[serde(default)]
    parameters: Option<Box<RawValue>>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    continues: bool,
}

/// A connection to the agent.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    limit: Duration,
    stream: UnixStream,
    decoder: Decoder,
}

impl Client {
    /// Connects to the agent's socket and makes sure that root listens; `limit` bounds every wait from here on.
    ///
    /// # Errors
    /// One variant for each way in which there is no agent to talk to.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self, ClientError> {
        Self::connect_to(path, limit, 0)
    }

    fn connect_to(path: &Path, limit: Duration, owner: u32) -> Result<Self, ClientError> {
        let stream = open(path, limit).map_err(|errno| connect_error(path, limit, errno))?;
        let peer =
            socket::getsockopt(&stream, sockopt::PeerCredentials).map_err(|errno| connect_error(path, limit, errno))?;
        if peer.uid() != owner {
            return Err(ClientError::NotRoot { path: path.to_owned(), uid: peer.uid() });
        }
        Ok(Self { path: path.to_owned(), limit, stream, decoder: Decoder::default() })
    }

    /// Sends a request and waits for its one reply.
    ///
    /// # Errors
    /// [`ClientError::Api`] for an error reply, the others for what keeps a reply from coming.
    pub fn call<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        self.send(request, false)?;
        let (reply, _) = self.receive()?;
        self.parse(&reply)
    }

    /// Sends a request whose replies are events and gives them as they come, without a limit on the wait.
    ///
    /// # Errors
    /// As [`Client::call`]; so do the items.
    pub fn events(mut self, request: &Request) -> Result<Events, ClientError> {
        self.send(request, true)?;
        self.stream.set_read_timeout(None).map_err(|error| self.broken(error.into()))?;
        Ok(Events { client: self, ended: false })
    }

    fn send(&mut self, request: &Request, more: bool) -> Result<(), ClientError> {
        let call = frame::encode(&Call { request: request.clone(), more }).map_err(|error| self.broken(error))?;
        match self.stream.write_all(&call) {
            // an agent that turns a caller away says why before it closes
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            written => written.map_err(|error| self.broken(error.into())),
        }
    }

    fn receive(&mut self) -> Result<(Box<RawValue>, bool), ClientError> {
        let frame = match frame::read_blocking(&mut self.stream, &mut self.decoder) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(ClientError::Closed { path: self.path.clone() }),
            Err(error) => return Err(self.broken(error)),
        };
        let reply: ReplyFrame = serde_json::from_slice(&frame).map_err(|source| self.answer(source))?;
        if reply.error.is_some() {
            let error: ApiError = serde_json::from_slice(&frame).map_err(|source| self.answer(source))?;
            return Err(error.into());
        }
        let empty = || RawValue::from_string("{}".to_owned());
        let parameters = reply.parameters.map_or_else(empty, Ok).map_err(|source| self.answer(source))?;
        Ok((parameters, reply.continues))
    }

    fn parse<T: DeserializeOwned>(&self, reply: &RawValue) -> Result<T, ClientError> {
        serde_json::from_str(reply.get()).map_err(|source| self.answer(source))
    }

    fn answer(&self, source: serde_json::Error) -> ClientError {
        ClientError::Answer { path: self.path.clone(), source }
    }

    fn broken(&self, source: FrameError) -> ClientError {
        let path = self.path.clone();
        match source {
            FrameError::Io(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                ClientError::Timeout { path, limit: self.limit }
            }
            source => ClientError::Broken { path, source },
        }
    }
}

/// The events of a stream; ends when the agent says so.
#[derive(Debug)]
pub struct Events {
    client: Client,
    ended: bool,
}

impl Iterator for Events {
    type Item = Result<Event, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = match self.client.receive() {
            Ok((_, false)) => {
                self.ended = true;
                return None;
            }
            Ok((reply, true)) => self.client.parse(&reply),
            Err(error) => Err(error),
        };
        self.ended = item.is_err();
        Some(item)
    }
}

/// A connected stream whose every wait is bounded, that of the connect too (a full backlog waits in there).
fn open(path: &Path, limit: Duration) -> nix::Result<UnixStream> {
    let descriptor = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let limit = TimeVal::new(
        i64::try_from(limit.as_secs()).map_err(|_out_of_range| Errno::EINVAL)?,
        i64::from(limit.subsec_micros()),
    );
    socket::setsockopt(&descriptor, sockopt::SendTimeout, &limit)?;
    socket::setsockopt(&descriptor, sockopt::ReceiveTimeout, &limit)?;
    socket::connect(descriptor.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(descriptor))
}

fn connect_error(path: &Path, limit: Duration, errno: Errno) -> ClientError {
    let path = path.to_owned();
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => ClientError::Missing { path },
        Errno::ECONNREFUSED => ClientError::Stale { path },
        Errno::EACCES | Errno::EPERM => ClientError::Permission { path },
        Errno::EAGAIN => ClientError::Timeout { path, limit },
        errno => ClientError::Connect { path, source: errno.into() },
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixListener, thread};

    use super::*;
    use crate::api::wire::{Follow, Ps};

    const LIMIT: Duration = Duration::from_secs(10);

    fn own_uid() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    /// Answers one connection with the given bytes once a whole call has come.
    fn answer_once(path: &Path, reply: &'static [u8]) -> thread::JoinHandle<Vec<u8>> {
        let listener = UnixListener::bind(path).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let call = frame::read_blocking(&mut stream, &mut Decoder::default()).unwrap().unwrap();
            stream.write_all(reply).unwrap();
            call
        })
    }

    #[test]
    fn a_reply_is_decoded_and_the_call_is_as_documented() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let agent = answer_once(&path, b"{\"parameters\":{\"sessions\":[]}}\0");
        let mut client = Client::connect_to(&path, LIMIT, own_uid()).unwrap();
        let ps: Ps = client.call(&Request::Ps {}).unwrap();
        assert_eq!(ps, Ps::default());
        assert_eq!(agent.join().unwrap(), br#"{"method":"dev.tipstaff.Ps","parameters":{}}"#);
    }

    #[test]
    fn an_error_reply_is_an_error_with_its_parameters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let reply = b"{\"error\":\"dev.tipstaff.NotFound\",\"parameters\":{\"message\":\"no session abc\"}}\0";
        let agent = answer_once(&path, reply);
        let mut client = Client::connect_to(&path, LIMIT, own_uid()).unwrap();
        let error = client.call::<Ps>(&Request::Ps {}).unwrap_err();
        assert!(matches!(error, ClientError::Api(ApiError::NotFound { message }) if message == "no session abc"));
        agent.join().unwrap();
    }

    #[test]
    fn a_stream_gives_each_record_as_it_was_sent_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let agent =
            answer_once(&path, b"{\"parameters\":{\"record\":{\"n\": 1}},\"continues\":true}\0{\"parameters\":{}}\0");
        let client = Client::connect_to(&path, LIMIT, own_uid()).unwrap();
        let events = client.events(&Request::Events(Follow { follow: false })).unwrap();
        let records: Vec<String> = events.map(|event| event.unwrap().record.get().to_owned()).collect();
        assert_eq!(records, [r#"{"n": 1}"#]);
        assert_eq!(
            agent.join().unwrap(),
            br#"{"method":"dev.tipstaff.Events","parameters":{"follow":false},"more":true}"#
        );
    }

    #[test]
    fn every_way_to_be_unreachable_has_its_own_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert!(matches!(Client::connect(&path, LIMIT), Err(ClientError::Missing { .. })));

        let listener = UnixListener::bind(&path).unwrap();
        let other = Client::connect_to(&path, LIMIT, own_uid() + 1);
        assert!(matches!(other, Err(ClientError::NotRoot { uid, .. }) if uid == own_uid()));

        drop(listener);
        assert!(matches!(Client::connect(&path, LIMIT), Err(ClientError::Stale { .. })));
    }

    #[test]
    fn a_caller_that_is_turned_away_learns_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let mut client = Client::connect_to(&path, LIMIT, own_uid()).unwrap();
        let (mut agent, _) = listener.accept().unwrap();
        agent.write_all(b"{\"error\":\"dev.tipstaff.Busy\",\"parameters\":{\"message\":\"full\"}}\0").unwrap();
        drop(agent);
        let error = client.call::<Ps>(&Request::Ps {}).unwrap_err();
        assert!(matches!(error, ClientError::Api(ApiError::Busy { .. })), "{error}");
    }

    #[test]
    fn an_agent_that_says_nothing_is_not_waited_for_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        let mut client = Client::connect_to(&path, Duration::from_millis(50), own_uid()).unwrap();
        assert!(matches!(client.call::<Ps>(&Request::Ps {}), Err(ClientError::Timeout { .. })));
    }
}
