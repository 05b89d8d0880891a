//! The agent's end of the sockets: accepts, decodes, asks the gate, hands calls to the engine, writes what it answers. A call
//! that the gate refuses is counted, and never waits for that.
//!
//! Nothing here blocks the engine: a call waits on its own task, answers go into a bounded queue, and a reader that
//! does not keep up is disconnected. Where the sockets are and who owns them is [`super::socket`]'s.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, Shutdown, send, shutdown},
};
use tokio::{
    io::AsyncWriteExt,
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::timeout,
};

pub use super::socket::ServerError;
use super::{
    answer::{Answer, Outgoing, QUEUE},
    door::{Gate, Refusal, Standing},
    frame::{self, Decoder, FrameError},
    places::{self, Place, Places},
    refused::RefusedCall,
    socket::Bound,
    wire::{ApiError, Call, Request},
};
use crate::evidence::{CallRefusal, ControlSocket};

/// How long a connection may take to say its first call.
const FIRST: Duration = Duration::from_secs(10);
/// How long a connection may be silent between two calls.
const IDLE: Duration = Duration::from_secs(30);
/// How long one write may wait for its reader.
const WRITE: Duration = Duration::from_secs(10);
/// Pause after a failed accept (no descriptors left): others have to close theirs first.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Replies that are written together.
const BATCH: usize = 64;

/// Who is at the other end, as the kernel knew it at connect(2).
#[derive(Clone, Debug)]
pub struct Peer {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Process id in the agent's pid namespace; 0 if it is not in there.
    pub pid: u32,
    socket: Arc<OwnedFd>,
}

impl Peer {
    /// Whether the other end is still open: false once its last descriptor is closed, by its death or by an exec.
    #[must_use]
    pub fn still_connected(&self) -> bool {
        let mut poll_for = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
        let hung_up = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        match poll(&mut poll_for, PollTimeout::ZERO) {
            Ok(0) => true,
            Ok(_) => !poll_for[0].revents().is_some_and(|found| found.intersects(hung_up)),
            Err(_) => false,
        }
    }

    fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
        let socket = Arc::new(stream.as_fd().try_clone_to_owned()?);
        Ok(Self { uid: credentials.uid(), gid: credentials.gid(), pid, socket })
    }
}

impl AsFd for Peer {
    /// The agent's end of the connection.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A call for the engine.
#[derive(Debug)]
pub struct Incoming {
    /// What is asked. The gate has passed its sender, and its socket takes the method.
    pub request: Request,
    /// Who asks.
    pub peer: Peer,
    /// Where the answer goes.
    pub reply: Answer,
    /// When it came.
    pub came: Instant,
}

/// The two sockets, bound and listening. Dropping them removes them.
#[derive(Debug)]
pub struct Listeners {
    read: Bound,
    operate: Bound,
}

impl Listeners {
    /// Makes the runtime directory if it is missing, clears what a dead agent left behind, and binds both sockets
    /// with mode 0660 and the given groups. Needs no runtime; nothing is accepted before [`Listeners::serve`].
    ///
    /// # Errors
    /// [`ServerError::InUse`] if somebody answers on either path; the other variants name path and operation.
    pub fn bind(runtime: &Path, read_gid: u32, operate_gid: u32) -> Result<Self, ServerError> {
        let (read, operate) = (super::read_socket(runtime), super::operate_socket(runtime));
        super::socket::fits(&read)?;
        super::socket::fits(&operate)?;
        super::socket::prepare(runtime)?;
        Ok(Self { read: Bound::bind(read, read_gid)?, operate: Bound::bind(operate, operate_gid)? })
    }

    /// Accepts until the receiver of `calls` is dropped.
    ///
    /// # Errors
    /// Only if the sockets cannot be given to the runtime.
    pub async fn serve(&self, gate: Gate, calls: mpsc::Sender<Incoming>) -> Result<(), ServerError> {
        let read = Door { operate: false, gate: gate.clone(), calls: calls.clone() };
        let operate = Door { operate: true, gate, calls: calls.clone() };
        let (read_from, operate_from) = (self.read.listener()?, self.operate.listener()?);
        tokio::select! {
            () = accept(read_from, read) => {}
            () = accept(operate_from, operate) => {}
            () = calls.closed() => {}
        }
        Ok(())
    }
}

/// What every connection of one socket shares.
#[derive(Clone)]
struct Door {
    operate: bool,
    gate: Gate,
    calls: mpsc::Sender<Incoming>,
}

impl Door {
    /// Decodes a call and decides whether this peer may make it here.
    fn admit(&self, frame: &[u8], peer: &Peer) -> Result<Call, ApiError> {
        let standing = (self.gate.ask)(peer, peer.as_fd()).map_err(|refusal| self.refused(peer, refusal))?;
        let call = Call::decode(frame)?;
        if let (Standing::Nesting(session), false) = (standing, matches!(call.request, Request::Run(_))) {
            let refusal = Refusal { reason: CallRefusal::Nesting, ..Refusal::member(Some(session)) };
            return Err(self.refused(peer, refusal));
        }
        if call.request.operates() && !self.operate {
            return Err(ApiError::Denied { message: "read.sock only answers questions: use operate.sock".to_owned() });
        }
        Ok(call)
    }

    /// Counts a refusal, and gives what the peer is told.
    fn refused(&self, peer: &Peer, refusal: Refusal) -> ApiError {
        let Refusal { session, reason, error } = refusal;
        let socket = if self.operate { ControlSocket::Operate } else { ControlSocket::Read };
        let message = error.to_string();
        (self.gate.count)(RefusedCall { session, pid: peer.pid, uid: peer.uid, socket, reason, message });
        error
    }
}

async fn accept(listener: UnixListener, door: Door) {
    let places = Places::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok((stream, _)) => match Peer::of(&stream) {
                Ok(peer) => (stream, peer),
                Err(error) => {
                    tracing::warn!("cannot tell who connected: {error}");
                    continue;
                }
            },
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Some(place) = places.take(peer.uid) else {
            turn_away(&stream);
            continue;
        };
        let door = door.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &peer, &door, &place).await {
                tracing::debug!(peer.pid, "connection: {error}");
            }
            // the engine may still hold the peer, and with it a descriptor that would keep the caller waiting
            let _ = shutdown(peer.socket.as_raw_fd(), Shutdown::Both);
            drop(place);
        });
    }
}

/// Says why and closes; what the socket's buffer does not take at once is not said.
fn turn_away(stream: &impl AsRawFd) {
    let message = format!("the agent serves {} connections, or all that this user can have: try again", places::ALL);
    let busy = ApiError::Busy { message };
    if let Ok(frame) = frame::encode(&busy) {
        let _ = send(stream.as_raw_fd(), &frame, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }
}

/// The next call; `None`: there is none, or it does not come in time, or others want the place.
async fn next_call(
    reader: &mut OwnedReadHalf,
    decoder: &mut Decoder,
    peer: &Peer,
    (place, patience): (&Place, Duration),
) -> Result<Option<Vec<u8>>, FrameError> {
    let frame = tokio::select! {
        // what has come is read before its place is given to another
        biased;
        frame = timeout(patience, frame::read_async(reader, decoder)) => frame,
        () = place.lost() => {
            turn_away(&*peer.socket);
            return Ok(None);
        }
    };
    match frame {
        Ok(Ok(Some(frame))) if place.waits(false) => Ok(Some(frame)),
        Ok(Ok(Some(_))) => {
            turn_away(&*peer.socket);
            Ok(None)
        }
        Ok(other) => other,
        Err(_late) => Ok(None),
    }
}

async fn converse(stream: UnixStream, peer: &Peer, door: &Door, place: &Place) -> Result<(), FrameError> {
    let (mut reader, mut writer) = stream.into_split();
    let mut decoder = Decoder::new(if door.operate { frame::LIMIT } else { frame::QUESTION });
    let mut patience = FIRST;
    loop {
        let next = next_call(&mut reader, &mut decoder, peer, (place, patience)).await;
        patience = IDLE;
        let frame = match next {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(error) => {
                let message = error.to_string();
                write(&mut writer, &[Outgoing::last(Err(ApiError::BadRequest { message }))]).await?;
                return Err(error);
            }
        };
        let came = Instant::now();
        match door.admit(&frame, peer) {
            Err(error) => write(&mut writer, &[Outgoing::last(Err(error))]).await?,
            Ok(call) => {
                let streams = call.request.streams();
                let (reply, answers) = Answer::channel();
                let incoming = Incoming { request: call.request, peer: peer.clone(), reply, came };
                if door.calls.send(incoming).await.is_err() {
                    break;
                }
                if streams {
                    return stream_answers(&mut reader, &mut decoder, &mut writer, answers).await;
                }
                one_answer(&mut writer, answers).await?;
            }
        }
        if !place.waits(true) {
            break;
        }
    }
    Ok(())
}

async fn one_answer(writer: &mut OwnedWriteHalf, mut answers: mpsc::Receiver<Outgoing>) -> Result<(), FrameError> {
    let none = || Outgoing::last(Err(ApiError::Failed { message: "the agent gave no answer".to_owned() }));
    let answer = answers.recv().await.unwrap_or_else(none);
    write(writer, &[answer]).await
}

/// Writes answers until the last one, or until the reader hangs up; a stream takes no further call.
async fn stream_answers(
    reader: &mut OwnedReadHalf,
    decoder: &mut Decoder,
    writer: &mut OwnedWriteHalf,
    mut answers: mpsc::Receiver<Outgoing>,
) -> Result<(), FrameError> {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let count = tokio::select! {
            count = answers.recv_many(&mut batch, BATCH.min(QUEUE)) => count,
            _ = frame::read_async(reader, decoder) => return Ok(()),
        };
        if count == 0 {
            let failed = ApiError::Failed { message: "the agent ended the stream".to_owned() };
            return write(writer, &[Outgoing::last(Err(failed))]).await;
        }
        write(writer, &batch).await?;
        if batch.iter().any(|answer| !answer.continues) {
            return Ok(());
        }
        batch.clear();
    }
}

async fn write(writer: &mut OwnedWriteHalf, answers: &[Outgoing]) -> Result<(), FrameError> {
    let mut bytes = Vec::new();
    for answer in answers {
        bytes.extend(answer.encode()?);
    }
    match timeout(WRITE, writer.write_all(&bytes)).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the reader takes nothing").into()),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
