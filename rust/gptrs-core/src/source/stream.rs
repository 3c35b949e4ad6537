//! Standard input and pipes: a thread of their own reads them, so that nobody else waits for a read
//! that may never end.

use std::fs::File;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use super::STANDARD_INPUT;
use crate::Result;
use crate::tokenizer::Check;

/// How much the thread reads at a time, and how many portions it is ahead.
const PORTION_BYTES: usize = 1 << 18;
const PORTIONS_AHEAD: usize = 4;

/// How long to wait before asking `check` again.
const BETWEEN_CHECKS: Duration = Duration::from_millis(20);

/// What a thread reads for us. Should we stop early, it ends with its next portion.
pub struct Stream {
    portions: Receiver<io::Result<Vec<u8>>>,
    /// A portion, of which the first `taken` bytes are done with.
    portion: Vec<u8>,
    taken: usize,
}

impl Stream {
    pub fn open(path: &str) -> Self {
        let (sender, portions) = sync_channel(PORTIONS_AHEAD);
        let path = path.to_owned();
        thread::spawn(move || {
            if path == STANDARD_INPUT {
                send_all(io::stdin().lock(), &sender);
            } else {
                match File::open(path) {
                    Ok(file) => send_all(file, &sender),
                    Err(error) => drop(sender.send(Err(error))),
                }
            }
        });
        Self { portions, portion: Vec::new(), taken: 0 }
    }

    /// Appends up to `wanted` of the bytes that come next; none at the end. The outer error is
    /// `check`'s.
    pub fn append(
        &mut self,
        wanted: usize,
        buffer: &mut Vec<u8>,
        check: Check<'_>,
    ) -> Result<io::Result<usize>> {
        while self.taken == self.portion.len() {
            check()?;
            match self.portions.recv_timeout(BETWEEN_CHECKS) {
                Ok(Ok(portion)) => (self.portion, self.taken) = (portion, 0),
                Ok(Err(error)) => return Ok(Err(error)),
                Err(RecvTimeoutError::Disconnected) => return Ok(Ok(0)),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        let left = &self.portion[self.taken..];
        let new = &left[..wanted.min(left.len())];
        buffer.extend_from_slice(new);
        self.taken += new.len();
        Ok(Ok(new.len()))
    }
}

fn send_all(mut from: impl Read, to: &SyncSender<io::Result<Vec<u8>>>) {
    loop {
        let mut portion = Vec::new();
        let read = from.by_ref().take(PORTION_BYTES as u64).read_to_end(&mut portion);
        let ended = !matches!(read, Ok(1..));
        if !portion.is_empty() && to.send(Ok(portion)).is_err() {
            return;
        }
        if let Err(error) = read {
            let _ = to.send(Err(error));
        }
        if ended {
            return;
        }
    }
}
