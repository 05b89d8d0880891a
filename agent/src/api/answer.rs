//! The engine's end of one call: a bounded queue to the task that writes to the caller.
//!
//! The engine never waits on it. One place of the queue is kept for the last reply, so that finishing always works.

use serde::Serialize;
use tokio::sync::mpsc;

use super::{
    frame::{self, FrameError},
    wire::{ApiError, Reply},
};

/// Replies that wait for a reader before it counts as too slow.
pub(super) const QUEUE: usize = 1024;

/// The caller is gone, or was disconnected because it does not read: nothing more can be sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the caller hung up or reads too slowly")]
pub struct Gone;

/// Where the answer to one call goes. Dropping it unfinished gives the caller an error.
#[derive(Debug)]
pub struct Answer {
    queue: mpsc::Sender<Outgoing>,
    over: bool,
}

impl Answer {
    pub(super) fn channel() -> (Self, mpsc::Receiver<Outgoing>) {
        let (queue, answers) = mpsc::channel(QUEUE + 1);
        (Self { queue, over: false }, answers)
    }

    /// Sends the last or only reply. Never waits; a caller that is gone makes no difference.
    pub fn finish(self, result: Result<Reply, ApiError>) {
        self.last(result);
    }

    /// Sends one item of a stream without waiting. A reader whose queue is full is told so and disconnected.
    ///
    /// # Errors
    /// [`Gone`]: drop this answer.
    pub fn try_item(&mut self, reply: Reply) -> Result<(), Gone> {
        if self.over || self.queue.is_closed() {
            return Err(Gone);
        }
        if self.queue.capacity() <= 1 {
            self.over = true;
            let message = format!("this reader is {QUEUE} events behind and was disconnected");
            self.last(Err(ApiError::Busy { message }));
            return Err(Gone);
        }
        self.queue.try_send(Outgoing { result: Ok(reply), continues: true }).map_err(|_gone| Gone)
    }

    /// Sends one item of a stream and waits for room. For history, which is read outside the engine.
    ///
    /// # Errors
    /// [`Gone`]: drop this answer.
    pub async fn item(&mut self, reply: Reply) -> Result<(), Gone> {
        if self.over {
            return Err(Gone);
        }
        // two places, of which one is given back: the last reply's must stay free
        let mut places = self.queue.reserve_many(2).await.map_err(|_gone| Gone)?;
        let place = places.next().ok_or(Gone)?;
        place.send(Outgoing { result: Ok(reply), continues: true });
        Ok(())
    }

    fn last(&self, result: Result<Reply, ApiError>) {
        // fails only when the connection's task is gone, and then there is nobody to tell
        let _ = self.queue.try_send(Outgoing::last(result));
    }
}

/// One reply on its way to the writer.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) result: Result<Reply, ApiError>,
    pub(super) continues: bool,
}

impl Outgoing {
    pub(super) fn last(result: Result<Reply, ApiError>) -> Self {
        Self { result, continues: false }
    }

    /// The frame to write. A reply that no frame can hold becomes an error reply: the caller learns of it.
    pub(super) fn encode(&self) -> Result<Vec<u8>, FrameError> {
        #[derive(Serialize)]
        struct Frame<'a> {
            parameters: &'a Reply,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            continues: bool,
        }
        match &self.result {
            Ok(reply) => frame::encode(&Frame { parameters: reply, continues: self.continues }).or_else(|error| {
                frame::encode(&ApiError::Failed { message: format!("the answer cannot be sent: {error}") })
            }),
            Err(error) => frame::encode(error),
        }
    }
}
